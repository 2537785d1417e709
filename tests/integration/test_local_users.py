"""Local logins with real UNIX sockets: the kernel says who has connected."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import Daemon
from tests.processes import clean_environment

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("useradd") is None,
    reason="only root on Linux can become other users, and useradd makes one for the test",
)

ROOT = Path(__file__).resolve().parents[2]
READY = "is ready on port"
NAME = "taskd-test-user"
NOBODY = 65_534


class Machine:
    """An embedded server on a UNIX socket in a folder that all users may enter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "taskd.sock"
        self.address = f"unix:{self.path}"
        self.env = {"TASKD_LISTEN": self.address, "TASKD_LOCAL_USERS": "1", "TASKD_BCRYPT_ROUNDS": "4"}

    def serve(self, **env: str) -> Daemon:
        """Start the server and wait until it is ready."""
        daemon = Daemon.twistd("taskserver", [], {**self.env, **env}, cwd=self.folder)
        daemon.wait_for(READY)
        return daemon

    def ask(self, uid: int, *requests: dict[str, Any]) -> list[dict[str, Any]]:
        """The replies that a process of this user gets on one connection."""
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            # no new program: the interpreter may lie where this user cannot read it
            try:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
                os.write(writer, talk(str(self.path), requests))
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as replies:
            lines = replies.read().splitlines()
        os.waitpid(child, 0)
        return [json.loads(line) for line in lines]

    def login(self, uid: int) -> dict[str, Any]:
        [reply] = self.ask(uid, {"action": "login", "local": True})
        return reply

    def program(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run taskadmin or taskclient as root."""
        env = clean_environment(**self.env, XDG_STATE_HOME=str(self.folder / "state"))
        command = [sys.executable, str(ROOT / "bin" / name), *arguments]
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=60)


def talk(path: str, requests: tuple[dict[str, Any], ...]) -> bytes:
    """Send all, and read all replies."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(path)
        connection.sendall(b"".join(json.dumps(each).encode() + b"\n" for each in requests))
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while piece := connection.recv(65_536):
            received += piece
        return received


@pytest.fixture
def machine() -> Iterator[Machine]:
    # not tmp_path, which only root may enter
    with tempfile.TemporaryDirectory(prefix="taskd-local-") as folder:
        os.chmod(folder, 0o755)
        yield Machine(Path(folder))


@pytest.fixture
def uid() -> Iterator[int]:
    """A user of this machine, for as long as the test runs."""
    subprocess.run(["useradd", "--no-create-home", "--shell", "/usr/sbin/nologin", NAME], check=True)
    try:
        yield pwd.getpwnam(NAME).pw_uid
    finally:
        subprocess.run(["userdel", NAME], check=True, capture_output=True)


def unused_uid() -> int:
    """A uid of a person without a name."""
    used = {entry.pw_uid for entry in pwd.getpwall()}
    return next(uid for uid in range(54_321, 60_000) if uid not in used)


def test_a_user_of_the_machine_logs_in_without_a_password(machine: Machine, uid: int) -> None:
    with machine.serve(TASKD_REGISTRATION="closed"):
        login, whoami = machine.ask(uid, {"action": "login", "local": True}, {"action": "whoami"})
        assert (login["status"], login["username"], whoami["username"]) == ("logged_in", NAME, NAME)
        [again] = machine.ask(uid, {"action": "login", "token": login["token"]})
        assert again["ok"]
        assert machine.login(uid)["user_id"] == login["user_id"]


def test_who_is_no_person_or_has_no_name_is_refused(machine: Machine, uid: int) -> None:
    with machine.serve():
        replies = {user: machine.login(user) for user in (0, NOBODY, unused_uid())}
    assert all((reply["code"], reply["field"]) == ("forbidden", "local") for reply in replies.values())
    root, nobody, unnamed = (reply["message"] for reply in replies.values())
    assert "uid of a person" in root and root == nobody
    assert "has no name on this machine" in unnamed


def test_a_registered_name_is_bound_by_the_administrator(machine: Machine, uid: int) -> None:
    with machine.serve() as daemon:
        account = {"username": NAME, "password": "correct horse"}
        [registered] = machine.ask(NOBODY, {"action": "register", **account})
        assert registered["ok"]
        refused = machine.login(uid)
        assert refused["code"] == "forbidden"
        assert f"taskadmin bind-local NAME {uid}" in refused["message"]
        daemon.terminate()
    done = machine.program("taskadmin", "bind-local", NAME, str(uid))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"{NAME} is bound to the uid {uid} ({NAME}) of the machine\n"
    assert "local logins: allowed" in machine.program("taskadmin", "check").stdout
    with machine.serve() as daemon:
        assert machine.login(uid)["user_id"] == registered["user_id"]
        daemon.terminate()
    assert machine.program("taskadmin", "bind-local", NAME, "--none").returncode == 0
    with machine.serve():
        assert machine.login(uid)["code"] == "forbidden"


def test_taskclient_says_why_it_is_refused(machine: Machine) -> None:
    with machine.serve():
        done = machine.program("taskclient", "--server", machine.address, "whoami")
    assert (done.returncode, done.stdout) == (4, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("No login without a password: a local login needs the uid of a person")
    assert second.startswith(f"taskclient: not logged in at {machine.address}; log in: ")


def test_without_the_setting_nobody_logs_in_locally(machine: Machine, uid: int) -> None:
    with machine.serve(TASKD_LOCAL_USERS="0"):
        assert "TASKD_LOCAL_USERS=1" in machine.login(uid)["message"]
