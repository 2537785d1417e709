"""``taskadmin`` as a program, on the database of an embedded server."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemons import Daemon, LineClient, free_port
from tests.processes import clean_environment

PROGRAM = Path(__file__).resolve().parents[2] / "bin" / "taskadmin"
CODE = r"(?:[A-Z2-9]{4}-){6}[A-Z2-9]{4}"


class Machine:
    """A folder with the data of an installation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *arguments: str, status: int = 0, **env: str) -> tuple[str, list[str]]:
        """Run taskadmin in the folder. Returns what it printed, and the lines of its standard error."""
        done = subprocess.run(
            [sys.executable, str(PROGRAM), *arguments],
            cwd=self.folder,
            env=clean_environment(**env),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == status, done.stderr
        return done.stdout, done.stderr.splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_an_admin_from_the_code_to_the_login(machine: Machine) -> None:
    out, lines = machine.run("check", status=1)
    assert any("there is no database in taskd-data yet" in line for line in lines)
    assert not (machine.folder / "taskd-data").exists()
    code, _ = machine.run("create-admin", "Root")
    assert re.fullmatch(f"{CODE}\n", code)
    assert machine.run("create-admin", "root", status=1)[1] == [
        "taskadmin: root exists already; with --existing taskadmin makes this user an admin"
    ]
    out, lines = machine.run("check")
    assert "admins who can act: 1" in out and not lines
    port = free_port()
    listen = f"tcp:{port}:interface=127.0.0.1"
    with Daemon.twistd("taskserver", ["--listen", listen], {"TASKD_BCRYPT_ROUNDS": "4"}, cwd=machine.folder) as daemon:
        daemon.wait_for("is ready on port")
        _, lines = machine.run("reset-password", "root", status=1)
        assert lines[0].startswith("taskadmin: a taskserver is using taskd-data: stop it first")
        _, lines = machine.run("reset-password", "root", status=1, TASKD_LANG="es")
        assert lines[0].startswith("taskadmin: un taskserver está usando taskd-data")
        with LineClient(port) as client:
            typed = code.strip().lower().replace("-", "")
            password = "a long horse 42"
            assert client.request("set_password", username="root", code=typed, new_password=password)["ok"]
            assert client.request("login", username="root", password=password)["role"] == "admin"
        assert daemon.terminate() == 0


def test_errors_are_one_line_each(machine: Machine) -> None:
    assert machine.run("reset-password", "nobody", status=1)[1] == ["taskadmin: nobody is registered as nobody"]
    assert machine.run(status=2)[1][-1].startswith("taskadmin: error: ")
    assert machine.run("frob", status=2, TASKD_LANG="es")[1][-1].startswith("taskadmin: error: ")
    _, lines = machine.run("check", status=1, POSTGRES_HOST="127.0.0.1")
    assert lines == [
        "taskadmin: POSTGRES_HOST is set but RABBITMQ_HOST is not: set both to run distributed, or neither to run"
        " embedded"
    ]
    away = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(free_port()), "RABBITMQ_HOST": "127.0.0.1"}
    _, lines = machine.run("reset-password", "ana", status=1, **away)
    assert len(lines) == 1 and lines[0].startswith("taskadmin: PostgreSQL at 127.0.0.1:"), lines
    (machine.folder / ".env").write_text("TASKD_LANG=en\n")
    (machine.folder / ".env").chmod(0o644)
    assert any("can read .env: run chmod o-rwx .env" in line for line in machine.run("check", status=1)[1])
