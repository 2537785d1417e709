"""Handlers that fork: nothing of the worker runs or stays open in their children, and the worker goes on."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """A worker of forking_worker.py, which waits for :meth:`go`."""

    def __init__(self, folder: Path, *kinds: str) -> None:
        self.folder = folder
        self.clients: list[Client] = []
        with (folder / "stderr").open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.forking_worker", str(folder), *kinds],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        said = self.read()
        self.port, self.child = said["port"], said["child"]

    def go(self) -> None:
        """Have it run its kinds."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        """The next thing that it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.folder / "stderr").read_text()
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> list[str]:
        """Have it end. The lines that it has written until nobody holds its standard output any more."""
        rest, _ = self.process.communicate(timeout=20)
        assert self.process.returncode == 0
        return rest.splitlines()

    def connect(self) -> Client:
        """A client of its port."""
        self.clients.append(Client(self.port))
        return self.clients[-1]


class Client:
    """A connection to the port."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._lines = self._socket.makefile("rwb")

    def echo(self, text: bytes) -> bytes:
        """What comes back."""
        self._lines.write(text + b"\n")
        self._lines.flush()
        return self._lines.readline().rstrip()

    def close(self) -> None:
        """Close it."""
        self._lines.close()
        self._socket.close()

    def is_cut(self) -> bool:
        """Whether the other side has closed the connection."""
        try:
            return self._socket.recv(1) == b""
        except ConnectionError:
            return True


@contextlib.contextmanager
def worker(folder: Path, *kinds: str) -> Iterator[Worker]:
    """One that is gone at the end."""
    one = Worker(folder, *kinds)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.communicate()
        for client in one.clients:
            client.close()


STATUSES = {"returns": "0", "exits": "3", "ends": "4", "raises": "1"}


@pytest.mark.parametrize("way", ["thread", "async", "later"])
def test_a_child_ends_where_its_handler_ends(tmp_path: Path, way: str) -> None:
    kinds = [f"{way}-{ending}" for ending in STATUSES]
    with worker(tmp_path, *kinds, "simulate") as one:
        client = one.connect()
        assert client.echo(b"before") == b"before"
        one.go()
        for kind, status in zip(kinds, STATUSES.values(), strict=True):
            ended: dict[str, Any] = {"kind": kind, "state": "completed", "result": status, "error": None, "log": []}
            assert one.read() == ended
        # the reactor of the worker still has its sockets and its time
        assert one.read()["result"] == '{"seconds":0.01}'
        assert client.echo(b"after") == b"after"
        assert one.connect().echo(b"new") == b"new"
        assert one.end() == []
    errors = (tmp_path / "stderr").read_text()
    assert errors.count("Traceback") == errors.count("ValueError: in the child") == 1


@pytest.mark.parametrize("kind", ["awaits", "callback", "helper", "reactor"])
def test_a_child_never_runs_the_reactor(tmp_path: Path, kind: str) -> None:
    with worker(tmp_path, kind, "simulate") as one:
        client = one.connect()
        assert client.echo(b"before") == b"before"
        one.go()
        said = [one.read()]
        while said[-1].get("kind") != "simulate":
            said.append(one.read())
        ends = [each for each in said if "kind" in each]
        assert [(each["kind"], each["state"]) for each in ends] == [(kind, "completed"), ("simulate", "completed")]
        assert ends[0]["result"] == "0"
        assert client.echo(b"after") == b"after"
        said += [json.loads(line) for line in one.end()]
        assert [each for each in said if "event" in each] == [{"event": "beside"}] * (kind == "reactor")
    assert (tmp_path / "stderr").read_text() == ""


@pytest.mark.parametrize("way", ["thread", "async"])
def test_port_and_lock_are_free_while_a_forked_daemon_lives(tmp_path: Path, way: str) -> None:
    with worker(tmp_path, f"{way}-daemon") as one:
        read, paused = one.connect(), one.connect()
        assert read.echo(b"before") == b"before"
        assert paused.echo(b"pause") == b"pause"
        one.go()
        daemon = json.loads(one.read()["result"])
        try:
            assert read.echo(b"after") == b"after"
            targets = daemon["files"].values()
            assert [
                each for each in targets if each.startswith(("socket:", "anon_inode:", str(tmp_path / "lock")))
            ] == []
            assert daemon["files"][str(daemon["mine"])] == "/etc/hostname"
            one.process.kill()
            one.process.wait()
            os.kill(daemon["pid"], 0)
            with (tmp_path / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert read.is_cut()
            assert paused.is_cut()
            assert is_gone(one.child)
            with pytest.raises(ConnectionRefusedError):
                one.connect()
            # no handler of the worker for this signal is left
            os.kill(daemon["pid"], signal.SIGTERM)
            assert is_gone(daemon["pid"])
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(daemon["pid"], signal.SIGKILL)


def is_gone(pid: int) -> bool:
    """Whether a process that is no child of this one ends within seconds."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_subprocess_and_multiprocessing_work_as_always(tmp_path: Path) -> None:
    expected = {
        "runs_program": '"textmore\\n"',
        "thread-process": '[true,"sent",0,-15]',
        "async-process": '[true,"sent",0,-15]',
        "pool": "[1,2,3,4]",
        "executor": "[1,2]",
    }
    with worker(tmp_path, *expected, "simulate") as one:
        client = one.connect()
        assert client.echo(b"before") == b"before"
        one.go()
        assert {(said := one.read())["kind"]: said["result"] for _ in expected} == expected
        assert one.read()["kind"] == "simulate"
        assert client.echo(b"after") == b"after"
        assert one.end() == []


ENDING = """
import atexit, concurrent.futures, multiprocessing, sys, threading, time
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from taskd.worker.executors import ending

ending.WAIT_SECONDS = 0.5

pools = []

def left(what):
    if what == "executor":
        concurrent.futures.ThreadPoolExecutor(1).submit(time.sleep, 60)
    elif what == "idle":
        pools.append(concurrent.futures.ThreadPoolExecutor(1))
        pools[0].submit(int).result()
    elif what == "thread":
        threading.Thread(target=time.sleep, args=(60,)).start()
    elif what == "reactor":
        deferToThread(time.sleep, 60)
    elif what == "process":
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(5,)).start()

    elif what == "pool":
        pools.append(concurrent.futures.ProcessPoolExecutor(1))
        pools[0].submit(int).result()
    elif what == "exit":
        threading.Thread(target=time.sleep, args=(60,)).start()
        ending.EXIT_SECONDS = 0.5
        atexit.register(time.sleep, 60)

def stop():
    ending.leave_threads_behind(reactor)
    ending.leave_threads_behind(reactor)
    reactor.stop()

atexit.register(print, "exit handler")
reactor.callWhenRunning(left, sys.argv[1])
reactor.callLater(0.2, stop)
reactor.run()
print("after the reactor")
"""


@pytest.mark.parametrize("left", ["nothing", "idle", "executor", "thread", "reactor", "process", "pool", "exit"])
def test_what_handlers_have_left_does_not_keep_the_process_alive(tmp_path: Path, left: str) -> None:
    before = time.monotonic()
    with (tmp_path / "stdout").open("w") as out, (tmp_path / "stderr").open("w") as errors:
        command = [sys.executable, "-c", ENDING, left]
        subprocess.run(command, cwd=ROOT, timeout=15, check=True, stdout=out, stderr=errors)
    assert time.monotonic() - before < 10
    said = "after the reactor\n" if left == "exit" else "after the reactor\nexit handler\n"
    assert (tmp_path / "stdout").read_text() == said
    named = "not waiting for 1 threads" in (tmp_path / "stderr").read_text()
    assert named == (left in ("executor", "thread", "reactor", "exit"))
