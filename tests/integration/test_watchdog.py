"""The watchdog with real processes: a worker that is blocked, stopped, killed or crashes, and what is reported.

Each test starts this module as a program. It plays a worker: a reactor, a board, and a thread for handlers.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import services
from tests.processes import Process, clean_environment, eventually

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the watchdog needs a pidfd")

HERE = Path(__file__).name
NAME = "host:1:abcd"


# -- the worker


def sleeps() -> None:
    """What blocks the reactor's thread."""
    time.sleep(3)


def sleeps_on() -> None:
    """The same, for longer than any test waits."""
    time.sleep(60)


def backtracks() -> None:
    """What holds the GIL."""
    re.match(r"(a+)+$", "a" * 31 + "b")


def computes() -> None:
    """What uses a CPU without the GIL."""
    import hashlib

    end = time.monotonic() + 6
    while time.monotonic() < end:
        hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2_000_000)


def crashes() -> None:
    """What kills the worker."""
    import faulthandler

    faulthandler._sigsegv()  # type: ignore[attr-defined]


def forks() -> None:
    """A child that crashes and tries to tick."""
    if not os.fork():
        crashes()
    os.wait()


def play(what: str, dsn: str = "null") -> None:
    """A worker in which a handler does ``what`` when the watchdog watches."""
    from twisted.internet import reactor as _reactor

    from taskd.watchdog.board import Board
    from taskd.watchdog.starter import Watchdog

    reactor: Any = _reactor
    board = Board(2)
    watchdog = Watchdog(reactor, board, json.loads(dsn), stall=5, lease=30)
    if what == "ends":
        # without a database it would not be ended
        watchdog.config = watchdog.config._replace(stall=5)

    def handle(function: Any, task_id: int, kind: str) -> None:
        board.enter(task_id, 1, kind)
        function()
        board.leave()

    def in_thread(function: Any, task_id: int, kind: str) -> None:
        threading.Thread(target=handle, args=(function, task_id, kind), daemon=True).start()

    def begin() -> None:
        print("begins", time.time(), watchdog.pid, flush=True)
        if what in ("sleeps", "sleeps beside"):
            if what == "sleeps beside":
                in_thread(computes, 8, "lab.compute")
            handle(sleeps, 7, "lab.sleep")
            print("goes on", flush=True)
        elif what == "backtracks":
            in_thread(backtracks, 9, "lab.match")
            handle(lambda: time.sleep(0.2), 7, "lab.sleep")
        elif what == "ends":
            handle(sleeps_on, 7, "lab.sleep")
        elif what == "crashes":
            in_thread(crashes, 9, "lab.crash")
        elif what == "forks":
            handle(forks, 9, "lab.fork")
        elif what == "stops":
            board.stopping()
            watchdog.stop()
            print("stopped", flush=True)

    def when_it_watches() -> None:
        status = Path(f"/proc/{watchdog.pid}/status").read_text()
        ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
        ready = ignored >> (signal.SIGTERM - 1) & 1
        # it then opens the board and connects
        reactor.callLater(*((1, begin) if ready else (0.1, when_it_watches)))

    def start() -> None:
        watchdog.start()
        board.rename(NAME)
        when_it_watches()

    reactor.callWhenRunning(start)
    reactor.run()


if __name__ == "__main__":
    play(*sys.argv[1:])


# -- the tests


class Worker:
    """A process that plays a worker, until the end of the test."""

    def __init__(self, folder: Path, what: str, dsn: Any = None) -> None:
        command = [sys.executable, "-m", "tests.integration.test_watchdog", what, json.dumps(dsn)]
        self.process = Process(command, folder / "log", env=clean_environment(), cwd=Path(__file__).parents[2])
        line = re.compile(r"begins (\S+) (\d+)\n")
        eventually(lambda: line.search(self.output), 20, "the worker begins")
        match = line.search(self.output)
        assert match is not None
        self.began = float(match[1])
        self.watchdog = int(match[2])

    @property
    def output(self) -> str:
        return self.process.output()

    def says(self, pattern: str, within: float) -> float:
        """Wait until it or its watchdog has said this. Returns the seconds since it began."""
        eventually(lambda: re.search(pattern, self.output), within, f"{pattern}, but: {self.output}")
        return time.time() - self.began

    @property
    def watched(self) -> bool:
        """Whether the watchdog runs."""
        return psutil.pid_exists(self.watchdog) and psutil.Process(self.watchdog).status() != psutil.STATUS_ZOMBIE

    def left(self, within: float = 1) -> None:
        """The watchdog ends."""
        eventually(lambda: not self.watched, within, "the watchdog ends")


@pytest.fixture
def worker(tmp_path: Path) -> Any:
    """Starts workers, and kills them at the end."""
    started: list[Worker] = []

    def start(what: str, dsn: Any = None) -> Worker:
        started.append(Worker(tmp_path, what, dsn))
        return started[-1]

    yield start
    for each in started:
        each.process.send(signal.SIGCONT)
        each.process.stop(signal.SIGKILL, 10)
        each.left(10)


def test_a_handler_that_sleeps_on_the_reactor_is_named(worker: Any) -> None:
    it = worker("sleeps")
    line = rf"\[taskd.watchdog#warn\] .* 1 s: task 7 \(lab\.sleep\) blocks it at .*/{HERE}:\d+ in sleeps\(\)\n"
    # less than 2 s on a machine that is idle
    assert it.says(line, 4) < 4
    it.says(r"\[taskd.watchdog#info\] the reactor runs again after 3 s\n", 4)
    assert "goes on" in it.output
    assert it.output.count("taskd.watchdog#") == 2
    assert psutil.Process(it.watchdog).memory_info().rss < 24 * 1024 * 1024


def test_it_is_named_while_a_thread_computes_without_the_gil(worker: Any) -> None:
    it = worker("sleeps beside")
    it.says(r"task 7 \(lab\.sleep\) blocks it at .* in sleeps\(\)\n", 4)
    assert "lab.compute" not in it.output


def test_a_thread_that_holds_the_gil_is_named(worker: Any) -> None:
    """Not the handler that was on the reactor at that moment."""
    it = worker("backtracks")
    it.says(rf"task 9 \(lab\.match\) blocks it at .*/{HERE}:\d+ in backtracks\(\)\n", 5)
    assert "lab.sleep" not in it.output


def test_a_stopped_worker_is_not_blocked(worker: Any) -> None:
    it = worker("nothing")
    it.process.send(signal.SIGSTOP)
    time.sleep(3)
    it.process.send(signal.SIGCONT)
    time.sleep(1.5)
    assert "taskd.watchdog" not in it.output


def test_the_watchdog_of_a_killed_worker_ends(worker: Any) -> None:
    it = worker("nothing")
    # a signal for the whole service does not end it before
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(it.watchdog, number)
    time.sleep(0.3)
    assert it.watched
    it.process.send(signal.SIGKILL)
    it.left()
    it.says("the worker has died", 1)


def test_a_worker_that_stops_ends_its_watchdog(worker: Any) -> None:
    it = worker("stops")
    it.says("stopped", 2)
    it.left()
    assert "taskd.watchdog" not in it.output


def test_a_worker_is_ended_after_the_stall_time(worker: Any) -> None:
    it = worker("ends")
    assert it.process.wait(9) == -signal.SIGKILL
    # counted from the last tick, which was before it began
    assert 4.5 < time.time() - it.began < 7
    assert re.search(rf"the worker is ended: .* for 5 s at .*/{HERE}:\d+ in sleeps_on\(\)\n", it.output)
    it.left()


def test_without_a_database_no_worker_is_ended(worker: Any) -> None:
    """Such a watchdog belongs to the embedded server."""
    from taskd.watchdog.starter import Watchdog

    assert Watchdog(None, None, None, stall=5, lease=30).config.stall is None  # type: ignore[arg-type]


def test_a_crash_names_the_handler(worker: Any) -> None:
    it = worker("crashes")
    assert it.process.wait(5) == -signal.SIGSEGV
    it.says(rf"task 9 \(lab\.crash\) crashed with a segmentation fault at .*/{HERE}:\d+ in crashes\(\)\n", 1)
    # the dump is not lost
    it.says("Fatal Python error: Segmentation fault", 1)
    it.left()


def test_a_forked_child_is_not_the_worker(worker: Any) -> None:
    it = worker("forks")
    time.sleep(1)
    it.process.send(signal.SIGKILL)
    it.says(r"the worker has died\n", 1)
    assert "crashed" not in it.output


def test_a_watchdog_that_dies_is_replaced(worker: Any) -> None:
    it = worker("nothing")
    first = it.watchdog
    os.kill(first, signal.SIGKILL)
    children = psutil.Process(it.process.pid).children
    eventually(lambda: [c.pid for c in children() if c.pid != first], 5, "a new watchdog")
    # the first one is no zombie
    [it.watchdog] = [child.pid for child in children()]


# -- with a database

INSERT = "INSERT INTO workers (name, queues, kinds, slots, timeline) VALUES (%s, '[]', '[]', '{}', '1')"
READ = "SELECT beat, state, stalled, culprit FROM workers WHERE name = %s"


class Row:
    """The worker's row in a database of its own."""

    def __init__(self) -> None:
        services.require("postgres")
        self.server = services.postgres()
        self.database = self.server.create_database()
        self.dsn = self.server.dsn(self.database)
        schema = Path(__file__).parents[2] / "schema" / "postgres" / "0001_initial.sql"
        with self.server.connect(self.database) as connection, connection.cursor() as cursor:
            cursor.execute(schema.read_text())
            cursor.execute(INSERT, (NAME,))

    def read(self) -> Any:
        """beat, state, stalled and culprit."""
        [row] = self.server.query(READ, (NAME,), self.database)
        return row


@pytest.fixture
def row() -> Any:
    it = Row()
    yield it
    it.server.drop_database(it.database)


def test_the_store_hears_of_a_blocked_worker_and_of_its_end(row: Row, worker: Any) -> None:
    it = worker("ends", row.dsn)
    eventually(lambda: row.read()[2], 2.5, "stalled")
    beat, state, stalled, culprit = row.read()
    assert re.fullmatch(rf"task 7 \(lab\.sleep\) blocks it at .*/{HERE}:\d+ in sleeps_on\(\)", stalled)
    assert (state, culprit) == ("serving", None)
    time.sleep(1.2)
    assert row.read()[0] > beat
    assert it.process.wait(9) == -signal.SIGKILL
    eventually(lambda: row.read()[1] == "gone", 1, "gone")
    culprit = row.read()[3]
    assert (culprit["task_id"], culprit["dispatch"]) == (7, 1)
    assert re.fullmatch(rf"blocked the worker for 5 s at .*/{HERE}:\d+ in sleeps_on\(\)", culprit["reason"])
    it.left()


def test_the_store_hears_of_a_death_at_once(row: Row, worker: Any) -> None:
    it = worker("nothing", row.dsn)
    eventually(lambda: row.read()[0] > 1, 3, "a beat")
    it.process.send(signal.SIGKILL)
    eventually(lambda: row.read()[1] == "gone", 1, "gone")
    assert row.read()[3] == {"among": {}}, "nothing had begun"


def test_nobody_vouches_for_a_stopped_worker(row: Row, worker: Any) -> None:
    it = worker("nothing", row.dsn)
    eventually(lambda: row.read()[0] > 1, 3, "a beat")
    it.process.send(signal.SIGSTOP)
    time.sleep(0.5)
    beat = row.read()[0]
    time.sleep(2.5)
    assert row.read()[0] == beat
    it.process.send(signal.SIGCONT)
    eventually(lambda: row.read()[0] > beat, 2, "a beat after it goes on")
    assert row.read()[2] is None


def test_a_fenced_worker_is_left_alone(row: Row, worker: Any) -> None:
    it = worker("nothing", row.dsn)
    row.server.query("UPDATE workers SET state = 'fenced' WHERE name = %s RETURNING 1", (NAME,), row.database)
    it.says(f"counts {NAME} as dead", 3)
    beat = row.read()[0]
    time.sleep(1.5)
    assert row.read()[0] == beat
    it.process.send(signal.SIGKILL)
    it.left()
    assert row.read()[1] == "fenced"


def test_a_stopped_database_does_not_hold_the_watchdog(row: Row) -> None:
    """The kernel still acknowledges what is sent to it."""
    import psycopg2

    from taskd.store.postgres.beats import BeatConnection

    beats = BeatConnection(row.dsn, statement_timeout=0.2, patience=0.3)
    assert beats.vouch(NAME, "a handler") == 2
    assert row.read()[:3] == (2, "serving", "a handler")
    [(pid,)] = row.server.query("SELECT pid FROM workers", (), row.database)
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(psycopg2.OperationalError):
            beats.vouch(NAME, None)
        assert time.monotonic() - began < 2
    finally:
        os.kill(pid, signal.SIGCONT)
    # the one that got no answer may count
    assert beats.vouch(NAME, None) in (3, 4)
    assert beats.gone(NAME, (7, 2, "reason")) is True
    assert beats.gone(NAME, None) is False
    assert beats.vouch(NAME, None) == 0
    assert row.read()[3] == {"task_id": 7, "dispatch": 2, "reason": "reason"}
    beats.close()
