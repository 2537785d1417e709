"""SIGTERM ends a daemon with status 0, whatever is left behind or away."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.daemons import Daemon, LineClient, free_port

ROOT = Path(__file__).resolve().parents[2]


def test_threads_that_a_handler_left_behind_do_not_keep_the_process(tmp_path: Path) -> None:
    """A plain thread, an executor's and one of the reactor's pool."""
    port = free_port()
    env = {
        "TASKD_BCRYPT_ROUNDS": "4",
        "TASKD_REGISTRATIONS_PER_HOUR": "0",
        "TASKD_HANDLERS": "tests.integration.clock_handlers",
        "PYTHONPATH": str(ROOT),
    }
    options = ["--listen", f"tcp:{port}:interface=127.0.0.1"]
    with Daemon.twistd("taskserver", options, env, cwd=tmp_path) as daemon:
        daemon.wait_for("is ready on port")
        with LineClient(port) as client:
            client.request("register", username="ana", password="correct horse")
            assert client.request("login", username="ana", password="correct horse")["ok"]
            task_id = client.request("new_task", task="t", kind="leave.threads")["task_id"]
            assert client.request("wait", task_ids=[task_id], timeout=10)["tasks"][0]["state"] == "completed"
        begin = time.monotonic()
        assert daemon.terminate() == 0
        assert time.monotonic() - begin < 10


@pytest.mark.parametrize("command", ["taskserver", "taskworker"])
def test_a_daemon_that_reaches_nothing_stops_at_once(tmp_path: Path, command: str) -> None:
    """Neither PostgreSQL nor RabbitMQ is there."""
    env = {name: "127.0.0.1" for name in ("POSTGRES_HOST", "RABBITMQ_HOST")}
    env |= {name: str(free_port()) for name in ("POSTGRES_PORT", "RABBITMQ_PORT")}
    options = ["--listen", f"tcp:{free_port()}:interface=127.0.0.1"] if command == "taskserver" else []
    with Daemon.twistd(command, options, env, cwd=tmp_path) as daemon:
        daemon.wait_for("cannot connect, retrying")
        begin = time.monotonic()
        assert daemon.terminate() == 0
        assert time.monotonic() - begin < 5
