"""The test harness itself: skipped tests, child processes, private services, and the balancer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import psycopg2
import pytest

from tests import services
from tests.daemons import Daemon, LineClient
from tests.processes import clean_environment, eventually, free_port

ROOT = Path(__file__).resolve().parents[2]

WANTS_A_SERVICE = """
    from twisted.trial.unittest import TestCase
    from tests import programs, services

    programs.missing = lambda: ["postgres", "nginx"]

    def test_plain():
        services.require("postgres")

    class Trial(TestCase):
        def setUp(self):
            services.require("nginx", "rabbitmq")

        async def test_async(self):
            pass

    def test_that_needs_neither():
        services.require("rabbitmq")
"""

ECHO = """
    import socketserver, sys

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            for _ in self.rfile:
                self.wfile.write(b'{"ok":true,"healthy":true,"port":%d}\\n' % self.server.server_address[1])

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True

    with Server(("127.0.0.1", int(sys.argv[1])), Handler) as server:
        print("listening", flush=True)
        server.serve_forever()
"""


def run_pytest(folder: Path, **environment: str) -> list[str]:
    """The lines that a run of ``WANTS_A_SERVICE`` prints."""
    (folder / "test_it.py").write_text(textwrap.dedent(WANTS_A_SERVICE))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-ra", folder / "test_it.py"],
        cwd=ROOT,
        env=clean_environment(PYTHONPATH=str(ROOT), COLUMNS="200", **environment),
        capture_output=True,
        text=True,
    )
    return done.stdout.splitlines()


def start_echo(folder: Path, port: int) -> Daemon:
    """Start a server that answers every line with its port."""
    daemon = Daemon.run([sys.executable, "-c", textwrap.dedent(ECHO), str(port)], cwd=folder)
    daemon.wait_for("listening")
    return daemon


def test_the_last_lines_say_what_was_skipped_and_how_to_get_it(tmp_path: Path) -> None:
    """A missing service skips the tests that need it and no others."""
    *_, why, how, totals = run_pytest(tmp_path)
    assert "1 passed, 2 skipped" in totals
    assert "nginx, postgres were skipped" in why
    assert how.strip() == "apt-get install nginx libnginx-mod-stream postgresql"


def test_a_skipped_test_is_a_failure_where_services_are_required(tmp_path: Path) -> None:
    """TASKD_REQUIRE_SERVICES=1, as on CI."""
    *_, totals = run_pytest(tmp_path, TASKD_REQUIRE_SERVICES="1")
    assert "2 failed, 1 passed" in totals


def test_children_end_with_a_killed_test_run(tmp_path: Path) -> None:
    """Even ``kill -9`` of the test run leaves no child behind."""
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux signals a child when its parent ends")
    program = "import sys; from tests.daemons import *; from pathlib import Path; import time;"
    program += "d = Daemon.run(['sleep', '600'], cwd=Path(sys.argv[1])); print(d.pid, flush=True); time.sleep(600)"
    run = subprocess.Popen([sys.executable, "-c", program, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    child = int(run.stdout.readline())
    # before that the child is setpriv, which has not requested the signal yet
    eventually(lambda: Path(f"/proc/{child}/comm").read_text().strip() == "sleep", 10, "the child has begun")
    run.kill()
    run.wait()
    run.stdout.close()
    eventually(lambda: _has_ended(child), 10, "the child has ended")


def _has_ended(pid: int) -> bool:
    try:
        # a zombie has ended; it waits for init to collect it
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_the_balancer_spreads_connections_and_passes_over_a_dead_server(tmp_path: Path) -> None:
    """deploy/nginx.conf in a real nginx."""
    services.require("nginx")
    ports = [free_port(), free_port()]
    nginx = services.Nginx(ports)
    with start_echo(tmp_path, ports[0]), start_echo(tmp_path, ports[1]) as second:
        nginx.start()
        try:
            clients = [LineClient(nginx.port) for _ in range(4)]
            assert sorted(map(which_server, clients)) == sorted(ports * 2)
            second.kill()
            for _ in range(3):
                with LineClient(nginx.port) as client:
                    assert which_server(client) == ports[0]
        finally:
            nginx.stop()
    for client in clients:
        client.close()


def which_server(client: LineClient) -> int:
    """The port of the server at the other end."""
    client.send_line(b"which")
    return int(json.loads(client.read_line())["port"])


def test_the_health_check_of_a_server(tmp_path: Path) -> None:
    """deploy/healthcheck.py server: healthy, then down."""
    port = free_port()
    command = [sys.executable, str(ROOT / "deploy" / "healthcheck.py"), "server", f"127.0.0.1:{port}"]
    with start_echo(tmp_path, port):
        assert subprocess.run(command).returncode == 0
    sick = subprocess.run(command, capture_output=True, text=True)
    assert sick.returncode == 1
    assert sick.stderr.startswith("server: ") and sick.stderr.count("\n") == 1


def test_a_crashed_postgres_comes_back_with_what_was_committed() -> None:
    """A PostgreSQL of this test only, with fsync as in production."""
    services.require("postgres")
    server = services.Postgres()
    server.start()
    try:
        assert server.query("SHOW fsync") == [("on",)]
        server.query("CREATE TABLE kept AS SELECT 42 AS number")
        server.stop("immediate")
        with pytest.raises(psycopg2.OperationalError):
            server.connect()
        server.start()
        assert server.query("SELECT number FROM kept") == [(42,)]
    finally:
        server.stop("immediate")


def test_databases_of_the_shared_postgres_are_apart(postgres: services.Postgres, database: str) -> None:
    """Each test has its own database."""
    other = postgres.create_database()
    postgres.query("CREATE TABLE mine ()", database=database)
    assert postgres.query("SELECT to_regclass('mine')", database=other) == [(None,)]
    postgres.drop_database(other)
    assert postgres.env(database)["POSTGRES_DB"] == database != other


def test_rabbitmq_runs_apart_from_the_machines_own(rabbitmq: services.RabbitMQ) -> None:
    """It has its own port, node name and Erlang port mapper."""
    assert rabbitmq.port != 5672
    users = [line.split()[0] for line in rabbitmq.ctl("list_users").splitlines()]
    assert rabbitmq.env()["RABBITMQ_USER"] in users
    with socket.create_connection((rabbitmq.host, rabbitmq.port), 5):
        pass


def test_services_see_nothing_of_the_callers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of a developer do not reach the tested daemons."""
    monkeypatch.setenv("POSTGRES_HOST", "production")
    monkeypatch.setenv("TASKD_SLOTS", "1")
    environment = clean_environment(TASKD_SLOTS="2")
    assert "POSTGRES_HOST" not in environment and environment["TASKD_SLOTS"] == "2"
    assert os.environ["POSTGRES_HOST"] == "production"


def test_a_process_that_does_not_end_in_time_is_killed(tmp_path: Path) -> None:
    """The error has its output."""
    program = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    daemon = Daemon.run([sys.executable, "-c", program], cwd=tmp_path)
    daemon.wait_for("deaf")
    with pytest.raises(AssertionError, match="deaf"):
        daemon.terminate(0.2)
    assert daemon.returncode == -signal.SIGKILL
    with pytest.raises(AssertionError, match="ended with"):
        daemon.wait_for("never")
