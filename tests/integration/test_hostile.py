"""Tasks that attack the daemons that run them, as a program of the same user can.

Root may look into every process, so a test that runs as root starts the daemons as another user, with setpriv. The
capability to search folders lets this user find an interpreter in root's home; it opens nothing of another process.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.daemons import TWISTD, Daemon, LineClient, eventually, free_port
from tests.processes import clean_environment

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = Path(__file__).with_name("hostile.py")
NOBODY = 65534
YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
"""Above 0 the system forbids some of this itself."""

SECRETS = {"POSTGRES_PASSWORD": "correct-horse-pg", "RABBITMQ_PASSWORD": "correct-horse-mq"}
REVERSED = [secret[::-1] for secret in SECRETS.values()]
ENV = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "TASKD_BCRYPT_ROUNDS": "4"}

PROGRAMS = f"""
[attack]
path = "/usr/bin/env"
args = ["{sys.executable}", "{HOSTILE}", "{{reversed...}}"]
max_attempts = 1
max_output = "1M"

[show]
path = "/bin/cat"
args = ["{{file:path}}"]
root = "ROOT"
max_attempts = 1

[status]
path = "/bin/cat"
args = ["/proc/self/status", "/proc/self/limits"]

[fill]
path = "/bin/sh"
args = ["-c", "exec dd if=/dev/zero of=big bs=1000 count=100 2>/dev/null"]
max_file = "50K"
max_attempts = 1
"""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists() or (os.getuid() == 0 and shutil.which("setpriv") is None),
    reason="needs /proc, and as root setpriv",
)


def as_nobody() -> list[str]:
    """The begin of a command that runs as a user who is not root."""
    if os.getuid():
        return []
    user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return ["setpriv", *user, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


def attack() -> dict[int, list[str]]:
    """What a process of that user can open in others."""
    command = [*as_nobody(), sys.executable, str(HOSTILE), *REVERSED]
    done = subprocess.run(command, capture_output=True, check=True, env=clean_environment(**ENV), timeout=60)
    return {int(pid): opened for pid, opened in json.loads(done.stdout).items()}


def tree(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of that user, with a link out of it."""
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (root / "in" / "a.txt").write_text("inside")
    (tmp_path / "outside.txt").write_text("outside")
    (root / "link").symlink_to(tmp_path / "outside.txt")
    (root / "up").symlink_to(tmp_path)
    (tmp_path / "programs.toml").write_text(PROGRAMS.replace("ROOT", str(root)))
    if not os.getuid():
        os.chown(tmp_path, NOBODY, NOBODY)
    return tmp_path


def run(folder: Path, command: str, *options: str, **env: str) -> Daemon:
    """A daemon of that user, with both passwords in its environment."""
    script = str(Path(sys.executable).with_name(TWISTD[0]))
    return Daemon.run([*as_nobody(), script, *TWISTD[1:], command, *options], {**ENV, **SECRETS, **env}, cwd=folder)


@pytest.fixture
def server(folder: Path) -> Iterator[tuple[Daemon, LineClient]]:
    """An embedded server that runs hostile tasks, and a user's connection."""
    port = free_port()
    options = ["--listen", f"tcp:{port}:interface=127.0.0.1", "--programs", str(folder / "programs.toml")]
    with run(folder, "taskserver", *options, "--handlers", "tests.integration.hostile_handlers") as daemon:
        daemon.wait_for("is ready on port")
        client = LineClient(port)
        client.request("register", username="ana", password="correct horse")
        client.request("login", username="ana", password="correct horse")
        yield daemon, client
        client.close()


def ended(client: LineClient, kind: str, **payload: Any) -> dict[str, Any]:
    """The task of this kind when it has ended, with its log."""
    task = client.request("new_task", task="x", kind=kind, payload=payload, max_attempts=1)["task_id"]
    assert client.request("wait", task_ids=[task], timeout=30)["ok"]
    lines = client.request("get_log", task_id=task)["lines"]
    found: dict[str, Any] = client.request("get_task", task_id=task)["task"]
    return {**found, "log": [line["text"] if isinstance(line, dict) else line for line in lines]}


def test_the_attack_works_where_nothing_protects() -> None:
    """Else the other tests would prove nothing."""
    env = clean_environment(**ENV, **SECRETS)
    victim = subprocess.Popen([*as_nobody(), "sleep", "60"], env=env)
    try:
        eventually(lambda: psutil.Process(victim.pid).name() == "sleep")
        found = attack()[victim.pid]
        assert {"environ", "fd", "SECRET"} <= set(found)
        if not YAMA.exists() or YAMA.read_text().strip() == "0":
            assert {"maps", "mem", "getfd", "ptrace", "process_vm_readv"} <= set(found)
    finally:
        victim.kill()
        victim.wait()


def test_nothing_of_a_worker_and_its_watchdog_can_be_read(folder: Path) -> None:
    """Both have the passwords. The worker waits for its database, which does not exist."""
    away = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": "1", "RABBITMQ_HOST": "127.0.0.1", "RABBITMQ_PORT": "1"}
    with run(folder, "taskworker", **away) as daemon:
        eventually(lambda: "taskd.watchdog" in {a for p in tree(daemon.pid) for a in p.cmdline()}, 20)
        pids = [process.pid for process in tree(daemon.pid)]
        # the watchdog hides itself before it reads the password
        eventually(lambda: [attack()[pid] for pid in pids] == [[], []], 20)


@pytest.mark.parametrize("kind", ["command:attack", "attack"])
def test_a_task_reads_no_process_of_its_worker(server: tuple[Daemon, LineClient], kind: str) -> None:
    """Neither the daemon, nor its watchdog, the reaper, the fork server, or the child of another task."""
    daemon, client = server
    task = ended(client, kind, reversed=REVERSED)
    assert task["state"] == "completed", task
    found = json.loads("".join(task["log"]) if kind.startswith("command:") else task["result"])
    pids = {str(process.pid) for process in tree(daemon.pid)}
    assert len(pids & set(found)) >= 4
    assert {pid: opened for pid, opened in found.items() if pid in pids and opened} == {}


def test_tasks_gain_no_privileges_and_are_killed_first(server: tuple[Daemon, LineClient]) -> None:
    """Setuid has no effect, and when memory runs out the kernel prefers them to the worker."""
    daemon, client = server
    status = "\n".join(ended(client, "command:status")["log"])
    assert re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE)
    assert re.search(rf"^Max file size +{2**30} +{2**30} ", status, re.MULTILINE)
    ended(client, "raise.process")
    scores = {p.pid: Path(f"/proc/{p.pid}/oom_score_adj").read_text().strip() for p in tree(daemon.pid)}
    assert sorted(scores.values()) == [scores[daemon.pid]] * (len(scores) - 1) + ["500"]


def test_a_path_stays_below_its_root(server: tuple[Daemon, LineClient]) -> None:
    """Whatever links are there."""
    _, client = server
    for inside in ("in/a.txt", "in/../in/a.txt", "./in//a.txt"):
        assert ended(client, "command:show", file=inside)["log"] == ["inside"], inside
    for outside in ("link", "up/outside.txt", "../outside.txt", "/etc/hostname", "in/../../outside.txt", ".", "up/new"):
        task = ended(client, "command:show", file=outside)
        assert task["state"] == "failed" and task["log"] == [], outside
        assert re.fullmatch(r"file must be a path below /.*/root, not '.*'", task["error"]), task["error"]


def test_a_file_has_a_largest_size(server: tuple[Daemon, LineClient]) -> None:
    """The program is killed, and the error names the setting."""
    task = ended(server[1], "command:fill")
    assert (task["state"], task["error"]) == ("failed", "killed by SIGXFSZ: a file grew beyond max_file")


def test_nothing_in_the_log_controls_a_terminal_or_forges_a_line(server: tuple[Daemon, LineClient]) -> None:
    """Whoever writes it: handlers by exceptions and prints, on the reactor, in threads and in children."""
    daemon, client = server
    for kind in ("raise.async", "raise.thread", "raise.process"):
        assert ended(client, kind)["state"] == "failed"
    log = daemon.output()
    assert log.count(r"\x1b]0;owned\x07\x9b2J\u202e") >= 3
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029]", log)
    lines = log.split("\n")
    assert any("forged" in line for line in lines)
    assert not any(line.startswith("2026-01-01") for line in lines)
