"""``twistd taskserver`` without configuration: one process with SQLite and its own worker."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import Daemon, LineClient, eventually, free_port, talk

READY = "is ready on port"


class Embedded:
    """An embedded server that can be stopped and started again with the same data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.daemon: Daemon | None = None

    def start(self, *options: str) -> Daemon:
        """Start the server and wait until it is ready."""
        listen = f"tcp:{self.port}:interface=127.0.0.1"
        env = {"TASKD_BCRYPT_ROUNDS": "4", "TASKD_REGISTRATIONS_PER_HOUR": "0"}
        self.daemon = Daemon.twistd("taskserver", ["--listen", listen, *options], env, cwd=self.folder)
        self.daemon.wait_for(READY)
        return self.daemon

    def client(self, name: str = "ana") -> LineClient:
        """A connection logged in as this user, who is registered if needed."""
        client = LineClient(self.port)
        client.request("register", username=name, password="correct horse")
        assert client.request("login", username=name, password="correct horse")["ok"]
        return client

    def rows(self, sql: str) -> list[Any]:
        """The rows of a query."""
        database = sqlite3.connect(self.folder / "taskd-data" / "taskd.sqlite3")
        try:
            return database.execute(sql).fetchall()
        finally:
            database.close()


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Embedded]:
    """An embedded server that is not started."""
    server = Embedded(tmp_path)
    yield server
    if server.daemon is not None:
        server.daemon.dispose()


def test_lines_piped_into_a_socket_are_answered_in_order(embedded: Embedded) -> None:
    """Requests without ids run in order, logins included, and all are answered before the connection is closed."""
    embedded.start()
    ana = {"username": "ana", "password": "correct horse"}
    register, login = (json.dumps({"action": action, **ana}) for action in ("register", "login"))
    replies = talk(
        embedded.port,
        [
            register,
            register,
            '{"action":"get_tasks"}',
            '{"action":"login","username":"ben","password":"wrong one"}',
            '{"action":"login","username":"eva","password":"wrong one"}',
            login,
            '{"action":"get_tasks"}',
            '{"action":"new_task","task":"hola","payload":{"seconds":0}}',
            '{"action":"wait","task_ids":[1]}',
            "nonsense",
            '{"action":"get_tasks"}',
        ],
    )
    statuses = [
        "success",
        "in_use",
        "error",
        "wrong_credentials",
        "wrong_credentials",
        "logged_in",
        "no_tasks",
        "task_created",
    ]
    assert [r["status"] for r in replies] == [*statuses, "success", "error", "success"]
    codes = [r["code"] for r in replies if not r["ok"]]
    assert codes == ["conflict", "auth_required", "forbidden", "forbidden", "bad_json"]
    [task] = replies[-1]["tasks"]
    assert (task["task"], task["status"], task["state"], task["attempt"]) == ("hola", "Completada", "completed", 1)


def test_a_watch_sees_every_change_of_a_task(embedded: Embedded) -> None:
    """Procesando, then Completada, in the order of the versions."""
    embedded.start()
    with embedded.client() as client:
        assert client.request("watch")["tasks"] == []
        task_id = client.request("new_task", task="live", payload={"seconds": 1})["task_id"]
        tasks = [client.event()["task"] for _ in range(3)]
        assert {t["id"] for t in tasks} == {task_id}
        assert [(t["status"], t["state"]) for t in tasks] == [
            ("Procesando", "queued"),
            ("Procesando", "running"),
            ("Completada", "completed"),
        ]
        assert [t["version"] for t in tasks] == [1, 2, 3]


def test_a_thousand_tasks_run_at_the_same_time(embedded: Embedded) -> None:
    """One after the other, they would need 500 seconds."""
    embedded.start("--slots", "1000")
    with embedded.client() as client:
        spec = {"task": "wait", "payload": {"seconds": 0.5}}
        ids = client.request("new_tasks", tasks=[spec] * 1000)["task_ids"]
        done = client.request("wait", task_ids=ids, timeout=15)
        assert done["done"] and {t["state"] for t in done["tasks"]} == {"completed"}


def test_a_killed_and_restarted_server_loses_no_confirmed_task(embedded: Embedded) -> None:
    """Running, queued and waiting tasks are run again, and sessions stay valid."""
    daemon = embedded.start("--slots", "5")
    with embedded.client() as client:
        token = client.request("login", username="ana", password="correct horse")["token"]
        ids = client.request("new_tasks", tasks=[{"task": "t", "payload": {"seconds": 1}}] * 20)["task_ids"]
        eventually(lambda: len(client.request("get_tasks", state="running")["tasks"]) == 5, 10)
        daemon.kill()
    embedded.start("--slots", "50")
    with LineClient(embedded.port) as client:
        assert client.request("login", token=token)["ok"]
        assert client.request("wait", task_ids=ids, timeout=15)["done"]
    assert embedded.rows("SELECT state, count(*) FROM tasks GROUP BY state") == [("completed", 20)]


def test_sigterm_lets_tasks_end_and_releases_the_rest_without_counting_the_attempt(embedded: Embedded) -> None:
    """Tasks get the grace time, watchers get an event, and the exit status is 0."""
    daemon = embedded.start("--slots", "2", "--grace", "1")
    with embedded.client() as client:
        client.request("watch")
        short = {"task": "short", "payload": {"seconds": 0.3}}
        long = {"task": "long", "payload": {"seconds": 600}}
        ids = client.request("new_tasks", tasks=[short, long, long])["task_ids"]
        eventually(lambda: len(client.request("get_tasks", state="running")["tasks"]) == 2, 10)
        daemon.send(signal.SIGTERM)
        events = []
        while line := client.read_line():
            events.append(json.loads(line))
        assert {"event": "draining"} in events
    assert daemon.wait(10) == 0
    rows = embedded.rows("SELECT id, state, attempt FROM tasks ORDER BY id")
    assert rows[:2] == [(ids[0], "completed", 1), (ids[1], "waiting", 0)]
    assert rows[2][1] in ("waiting", "queued") and rows[2][2] == 0
    assert "Traceback" not in daemon.output()


def test_a_second_sigterm_ends_the_grace_time(embedded: Embedded) -> None:
    """Running tasks are released at once, and the exit status is still 0."""
    daemon = embedded.start("--grace", "600")
    with embedded.client() as client:
        client.request("new_task", task="long", payload={"seconds": 600})
        eventually(lambda: client.request("get_tasks", state="running")["tasks"], 10)
    daemon.send(signal.SIGTERM)
    daemon.wait_for("get 600 seconds to end")
    assert daemon.terminate(10) == 0
    assert embedded.rows("SELECT state, attempt FROM tasks") == [("waiting", 0)]


def refused_start(cwd: Path, *arguments: str, **env: str) -> str:
    """Start a daemon that must refuse to start. Returns its one line of error."""
    daemon = Daemon.twistd(arguments[0], arguments[1:], env, cwd=cwd)
    assert daemon.wait(20) == 1, daemon.output()
    lines = [line for line in daemon.output().splitlines() if f"{arguments[0]}: " in line]
    assert len(lines) == 1 and "Traceback" not in daemon.output(), daemon.output()
    return lines[0].partition(f"{arguments[0]}: ")[2]


def test_a_second_server_on_the_same_data_is_refused(embedded: Embedded) -> None:
    """The line of error says what to do."""
    embedded.start()
    line = refused_start(embedded.folder, "taskserver", "--listen", f"tcp:{free_port()}:interface=127.0.0.1")
    assert line == f"another taskserver is using {embedded.folder}/taskd-data: stop it or choose another --data"


def test_a_port_in_use_is_refused(embedded: Embedded) -> None:
    """The server ends before it does anything else."""
    embedded.start()
    listen = f"tcp:{embedded.port}:interface=127.0.0.1"
    line = refused_start(embedded.folder, "taskserver", "--data", "other", "--listen", listen)
    assert line.startswith(f"cannot listen on {listen}: ") and "in use" in line


@pytest.mark.parametrize(
    ("arguments", "env", "expected"),
    [
        (["taskserver"], {"POSTGRES_HOST": "db"}, "POSTGRES_HOST is set but RABBITMQ_HOST is not"),
        (["taskserver"], {"RABBITMQ_HOST": "mq"}, "RABBITMQ_HOST is set but POSTGRES_HOST is not"),
        (["taskserver"], {"POSTGRES_PORT": "many"}, "POSTGRES_PORT must be a whole number from 1 to 65535, not 'many'"),
        (["taskserver"], {"TASKD_LEASE": "nan"}, "TASKD_LEASE must be a number of seconds from 1.0 to 3600.0"),
        (["taskserver", "--slots", "0"], {}, "--slots must be a whole number from 1 to 100000, not '0'"),
        (["taskserver", "--listen", "tcp:x"], {}, "--listen tcp:x: "),
        (["taskserver", "--listen", "nonsense"], {}, "--listen nonsense: "),
        (["taskserver", "--env-file", "absent"], {}, "--env-file absent: there is no such file"),
        (["taskserver", "--data", "/proc/none"], {}, "cannot use the data folder /proc/none: "),
        (["taskworker"], {}, "RABBITMQ_HOST is not set: the embedded server runs its own worker"),
        (["taskworker"], {"RABBITMQ_HOST": "mq"}, "RABBITMQ_HOST is set but POSTGRES_HOST is not"),
        (
            ["taskworker", "--slots", "x"],
            {"RABBITMQ_HOST": "mq", "POSTGRES_HOST": "db"},
            "--slots must be a whole number from 1 to 100000, not 'x'",
        ),
        (
            ["taskworker", "--queue", "a#b"],
            {"RABBITMQ_HOST": "mq", "POSTGRES_HOST": "db"},
            "--queue: a queue's name",
        ),
    ],
)
def test_a_wrong_setting_is_refused_with_one_line(
    tmp_path: Path, arguments: list[str], env: dict[str, str], expected: str
) -> None:
    """The line names the variable or option, and the exit status is 1."""
    assert refused_start(tmp_path, *arguments, **env).startswith(expected)


def test_settings_are_read_from_a_file(embedded: Embedded) -> None:
    """The file ``.env`` in the current folder."""
    (embedded.folder / ".env").write_text("TASKD_QUEUES=slow, fast\nTASKD_DATA=elsewhere\n")
    embedded.start()
    with LineClient(embedded.port) as client:
        assert client.request("hello")["queues"] == ["tasks", "slow", "fast"]
    assert (embedded.folder / "elsewhere" / "taskd.sqlite3").exists()


def test_a_database_of_a_newer_taskd_is_refused(embedded: Embedded) -> None:
    """The line of error names both versions."""
    embedded.start().terminate()
    database = sqlite3.connect(embedded.folder / "taskd-data" / "taskd.sqlite3")
    with database:
        database.execute("INSERT INTO schema_migrations VALUES (9999, 'future', 'later')")
    database.close()
    line = refused_start(embedded.folder, "taskserver", "--listen", f"tcp:{embedded.port}:interface=127.0.0.1")
    assert line.startswith("the database has schema version 9999, this taskd knows only ")


def test_a_database_of_another_installation_is_refused(embedded: Embedded) -> None:
    """The line of error names both."""
    embedded.start().terminate()
    database = sqlite3.connect(embedded.folder / "taskd-data" / "taskd.sqlite3")
    [(found,)] = database.execute("SELECT id FROM installation")
    database.close()
    listen = f"tcp:{embedded.port}:interface=127.0.0.1"
    line = refused_start(embedded.folder, "taskserver", "--listen", listen, "--installation", "elsewhere")
    expected = f"TASKD_INSTALLATION is elsewhere, but the database belongs to the installation {found}: "
    assert line.startswith(expected)


def test_the_help_of_both_daemons_names_their_options(tmp_path: Path) -> None:
    """The help of taskserver also has an example of an endpoint."""
    for daemon, options in {
        "taskserver": ["--listen", "--data", "--slots", "--grace", "--env-file", "tcp:5000"],
        "taskworker": ["--queue", "--slots", "--grace", "--env-file"],
    }.items():
        process = Daemon.twistd(daemon, ["--help"], cwd=tmp_path)
        assert process.wait(20) == 0
        for option in options:
            assert option in process.output(), process.output()


def test_twistd_imports_nothing_of_taskd_but_the_dropin() -> None:
    """Otherwise every twistd command on the machine would start more slowly."""
    import sys

    program = (
        "import sys; from twisted.plugin import getPlugins; from twisted.application.service import IServiceMaker;"
        "names = {p.tapname for p in getPlugins(IServiceMaker)}; assert {'taskserver', 'taskworker'} <= names;"
        "print(*sorted(m for m in sys.modules if m.startswith(('taskd', 'msgspec', 'pika', 'psycopg2'))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
