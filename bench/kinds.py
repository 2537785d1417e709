"""Cost of the executors (async, thread, process, program): ``python -m bench.kinds`` prints one line of JSON.

- ``nothing``: a task that does nothing, with each executor: the time from its submission to its ``completed`` event,
  one at a time (``p50_ms``, ``p99_ms``), and tasks a second from submission to end with all of them at once;
- ``spin``: the seconds that a task takes that uses ``--seconds`` of CPU time, alone and two at once. ``cores`` is the
  number of cores used, 2 * alone / together. Meanwhile the server (with --embedded, the process of the worker) gets a
  ping every 10 ms: ``ping_*`` is the time of its replies, ``idle_ping_*`` the time when no task runs;
- ``cancel_ms``: the time from the request to cancel a running task until the task notices it, the median of ten, with
  each executor.

Everything runs in one worker, or with --embedded in one process with SQLite.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.harness import Deployment, Failed, Figures, Services, emit, folder, milliseconds, run_benchmark, wait_until
from bench.kinds_handlers import ENDED, PROGRAM
from taskd import __version__
from tests.daemons import LineClient
from tests.services import ROOT

EXECUTORS = ("async", "thread", "process", "program")
PING_SECONDS = 0.01
CANCELS = 10
PROGRAMS = f"""
[nothing]
path = "/bin/true"

[endless]
path = "{sys.executable}"
args = ["-c", "{{code}}"]
env = {{ {ENDED} = "FILE" }}
"""


class _Run:
    """The measurements on one deployment."""

    def __init__(self, deployment: Deployment, notes: Path, limit: float) -> None:
        self._notes = notes
        self._limit = limit
        self.client, _ = deployment.client("ana", watch=True)
        self.other, _ = deployment.client("bob")

    def kind(self, executor: str, name: str) -> str:
        """The kind of task that does this with this executor."""
        return f"command:{name}" if executor == "program" else f"{executor}.{name}"

    def submit(self, kind: str, **payload: Any) -> int:
        """Submit a task. Returns its id."""
        reply = self.client.request("new_task", task="t", kind=kind, payload=payload)
        if not reply["ok"]:
            raise Failed(f"no task of kind {kind}: {reply}")
        return int(reply["task_id"])

    def wait(self, task_id: int, state: str) -> None:
        """Wait until a watched task is in this state."""
        while True:
            event = self.client.event(self._limit)
            if event["event"] == "task" and event["task"]["id"] == task_id:
                if event["task"]["state"] == state:
                    return
                if event["task"]["status"] in ("Fallida", "Cancelada"):
                    raise Failed(f"a task ended otherwise: {event['task']}")

    def nothing(self, executor: str, count: int) -> Figures:
        """Measure tasks that do nothing, one by one, then all at once."""
        kind = self.kind(executor, "nothing")
        for _ in range(10):
            self.wait(self.submit(kind), "completed")
        took = []
        for _ in range(count):
            began = time.monotonic()
            self.wait(self.submit(kind), "completed")
            took.append(time.monotonic() - began)
        began = time.monotonic()
        spec = {"task": "t", "kind": kind}
        ids = self.other.request("new_tasks", tasks=[spec] * count)["task_ids"]
        reply = self.other.request("wait", task_ids=ids, timeout=self._limit)
        if not reply["done"] or {task["status"] for task in reply["tasks"]} != {"Completada"}:
            raise Failed(f"not all tasks of kind {kind} have ended well")
        return milliseconds(took) | {"per_s": round(count / (time.monotonic() - began))}

    def spin(self, seconds: float) -> Figures:
        """Measure a task that uses a core, alone, then two at once, and pings meanwhile."""
        idle = self._pings([], 1.0)
        found: Figures = {}
        pings: list[float] = []
        for name, count in (("alone_s", 1), ("together_s", 2)):
            began = time.monotonic()
            ids = [self.submit("process.spin", seconds=seconds) for _ in range(count)]
            pings += self._pings(ids, self._limit)
            found[name] = round(time.monotonic() - began, 3)
        cores = round(2 * found["alone_s"] / found["together_s"], 2)
        return found | {"cores": cores} | milliseconds(pings, "ping_") | milliseconds(idle, "idle_ping_")

    def _pings(self, ids: Sequence[int], seconds: float) -> list[float]:
        """Seconds of each ping, until these tasks have ended, or for ``seconds`` if there are none."""
        took: list[float] = []
        end = time.monotonic() + seconds
        open_ = set(ids)
        while time.monotonic() < end and (open_ or not ids):
            began = time.monotonic()
            self.client.request("ping")
            took.append(time.monotonic() - began)
            for event in _taken(self.client):
                if event["event"] == "task" and event["task"]["state"] == "completed":
                    open_.discard(event["task"]["id"])
            time.sleep(PING_SECONDS)
        if open_:
            raise Failed(f"not within {seconds:g} s: tasks that keep a core busy")
        return took

    def cancel(self, executor: str) -> float:
        """Median milliseconds until a running task notices that it was cancelled."""
        took = []
        payload = {"code": PROGRAM} if executor == "program" else {}
        for _ in range(CANCELS):
            task_id = self.submit(self.kind(executor, "endless"), **payload)
            self.wait(task_id, "running")
            time.sleep(0.3)
            more = partial(self._noticed_more_than, len(self._noticed()))
            began = time.time()
            self.client.request("cancel_task", task_id=task_id)
            wait_until(more, self._limit, "a task notices its cancellation")
            took.append(self._noticed()[-1] - began)
        return round(statistics.median(took) * 1e3, 1)

    def _noticed_more_than(self, count: int) -> bool:
        return len(self._noticed()) > count

    def _noticed(self) -> list[float]:
        return [float(line) for line in self._notes.read_text().splitlines()]


def _taken(client: LineClient) -> list[dict[str, Any]]:
    events = list(client.events)
    client.events.clear()
    return events


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the options say. Returns the exit status."""
    options = _options(arguments)
    return run_benchmark(lambda stack: _play(options, stack))


def _play(options: argparse.Namespace, stack: contextlib.ExitStack) -> None:
    place = stack.enter_context(folder())
    services = None if options.embedded else Services.start(stack)
    notes = place / "ended"
    notes.touch()
    programs = place / "programs.toml"
    programs.write_text(PROGRAMS.replace("FILE", str(notes)))
    env = {
        "PYTHONPATH": str(ROOT),
        "TASKD_HANDLERS": "bench.kinds_handlers",
        "TASKD_PROGRAMS": str(programs),
        ENDED: str(notes),
    }
    deployment = Deployment(place, services, env=env)
    stack.callback(deployment.stop)
    deployment.start()
    run = _Run(deployment, notes, options.limit)
    wait_until(lambda: _serves(run.other), options.limit, "the worker serves")
    emit(
        {
            "system": "taskd",
            "version": __version__,
            "mode": "embedded" if options.embedded else "distributed",
            "tasks": options.tasks,
            "nothing": {executor: run.nothing(executor, options.tasks) for executor in EXECUTORS},
            "spin": run.spin(options.seconds),
            "cancel_ms": {executor: run.cancel(executor) for executor in EXECUTORS},
            "processors": os.cpu_count(),
        }
    )


def _serves(client: LineClient) -> bool:
    return "command:nothing" in [kind["kind"] for kind in client.request("kinds")["kinds"]]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.kinds", description=(__doc__ or "").partition(":")[0])
    add = parser.add_argument
    add("--embedded", action="store_true", help="one process with SQLite instead of server, worker and services")
    add("--tasks", type=int, default=200, metavar="N", help="tasks for each executor one by one, and as many at once")
    add("--seconds", type=float, default=3.0, metavar="S", help="CPU seconds that a busy task takes")
    add("--limit", type=float, default=60.0, metavar="SECONDS", help="for each wait")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
