"""The system's clock is set while everything runs."""

from __future__ import annotations

import json
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import Daemon, LineClient, eventually, free_port
from tests.faketime import SystemClock

ROOT = Path(__file__).resolve().parents[2]
HOUR = 3600.0

LATE = 5.0
"""Seconds that anything may come later than it should: due tasks are looked for once a second, and a busy machine takes
its time. What goes wrong with a clock is an hour late."""


@pytest.fixture
def clock(tmp_path: Path) -> SystemClock:
    """The clock of the server."""
    return SystemClock(tmp_path)


class Embedded:
    """An embedded server with the handlers of this test."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.port = free_port()
        options = ["--listen", f"tcp:{self.port}:interface=127.0.0.1"]
        own = {
            "TASKD_BCRYPT_ROUNDS": "4",
            "TASKD_REGISTRATIONS_PER_HOUR": "0",
            "TASKD_HANDLERS": "tests.integration.clock_handlers",
            "PYTHONPATH": str(ROOT),
        }
        self.daemon = Daemon.twistd("taskserver", options, own | env, cwd=folder)

    def client(self) -> LineClient:
        """A connection that is logged in as ana."""
        client = LineClient(self.port)
        client.request("register", username="ana", password="correct horse")
        assert client.request("login", username="ana", password="correct horse")["ok"]
        return client

    def __enter__(self) -> Embedded:
        self.daemon.__enter__()
        self.daemon.wait_for("is ready on port")
        return self

    def __exit__(self, *error: Any) -> None:
        self.daemon.dispose()


class Stopwatch:
    """When the tasks of ana begin and end, as the server tells a watching client, in seconds of this process's clock.
    The client reads in a thread of its own, so that no event waits for the test."""

    def __init__(self, server: Embedded) -> None:
        self.tasks: dict[int, dict[str, Any]] = {}
        self._began: dict[int, float] = {}
        self._ended: dict[int, float] = {}
        self._added: dict[int, float] = {}
        self._client, self._watching = server.client(), server.client()
        assert self._watching.request("watch")["ok"]
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()
        # the answer ends the thread
        self._watching.send_line(b'{"action":"unwatch","id":"end"}')
        self._thread.join()
        self._watching.close()

    def _read(self) -> None:
        while line := self._watching.read_line(60):
            message = json.loads(line)
            if message.get("id") == "end":
                return
            task, now = message["task"], time.monotonic()
            self.tasks[task["id"]] = task
            if task["started_at"] is not None:
                self._began.setdefault(task["id"], now)
            if task["finished_at"] is not None:
                self._ended[task["id"]] = now

    def add(self, **fields: Any) -> int:
        """Create a task."""
        before = time.monotonic()
        task_id: int = self._client.request("new_task", task="t", **fields)["task_id"]
        self._added[task_id] = before
        return task_id

    def run(self, timeout: float = 20.0) -> None:
        """Wait until every task has ended."""
        eventually(lambda: self._ended.keys() >= self._added.keys(), timeout, "all tasks have ended")

    def waited(self, task_id: int) -> float:
        """From creation to beginning."""
        return self._began[task_id] - self._added[task_id]

    def took(self, task_id: int) -> float:
        """From beginning to end."""
        return self._ended[task_id] - self._began[task_id]


def moment(text: str) -> datetime:
    """A time as the server writes it."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def test_nothing_is_early_late_or_lost_when_the_clock_is_set(tmp_path: Path, clock: SystemClock) -> None:
    """An hour back, then forward past the true time, while tasks run, wait and are delayed."""
    with Embedded(tmp_path, clock.env()) as server, server.client() as client:
        earliest = "0001-01-01T00:00:00Z"
        for offset in (-HOUR, HOUR):
            with Stopwatch(server) as watch:
                first = watch.add(kind="simulate", payload={"seconds": 0})
                sleepers = [
                    watch.add(kind=k, payload={"seconds": 3}) for k in ("simulate", "wait.reactor", "wait.thread")
                ]
                hanging = watch.add(kind="wait.ever", timeout=3)
                created = moment(client.request("get_task", task_id=first)["task"]["created_at"])
                assert earliest < created.isoformat()
                earliest = created.isoformat()
                due = created + timedelta(seconds=2)
                delayed = [watch.add(delay=2), watch.add(run_at=due.isoformat())]
                time.sleep(0.5)
                clock.set(offset)
                begin = time.monotonic()
                waiting = client.request("wait", task_ids=[hanging], timeout=1)
                assert not waiting["done"] and 0.9 < time.monotonic() - begin < 1 + LATE
                # what is created after the clock was set counts by the same time as before
                delayed.append(watch.add(delay=2))
                watch.run()
                assert [watch.tasks[each]["state"] for each in (*sleepers, *delayed)] == ["completed"] * 6
                assert watch.tasks[hanging]["state"] == "failed" and "3 s" in watch.tasks[hanging]["error"]
                for each in (*sleepers, hanging):
                    assert watch.waited(each) < LATE
                    assert 2.5 < watch.took(each) < 3 + LATE
                for each in delayed:
                    assert watch.waited(each) < 2 + LATE
                    if each != delayed[1]:
                        assert watch.waited(each) > 1.9
                assert moment(watch.tasks[delayed[1]]["started_at"]) >= due
                for task in watch.tasks.values():
                    begun, over = moment(task["started_at"]), moment(task["finished_at"])
                    assert moment(task["created_at"]) <= begun <= over <= created + timedelta(seconds=20)
                    assert task["attempt"] == 1
        assert "the system's clock has been set back by 3600 seconds" in server.daemon.output()
        begin = time.monotonic()
        assert server.daemon.terminate() == 0
        assert time.monotonic() - begin < 10


def test_an_embedded_server_starts_with_the_time_of_the_system(tmp_path: Path, clock: SystemClock) -> None:
    """Whatever it was before: what has become due while nothing ran runs at once."""
    with Embedded(tmp_path, clock.env()) as server, server.client() as client:
        waiting = client.request("new_task", task="t", delay=3 * HOUR)["task_id"]
        assert server.daemon.terminate() == 0
    clock.set(4 * HOUR)
    with Embedded(tmp_path, clock.env()) as server, server.client() as client:
        assert client.request("wait", task_ids=[waiting], timeout=10)["done"]
