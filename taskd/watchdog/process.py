"""The watchdog's process. It imports as little as it can: a machine runs as many of them as workers."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from taskd.model.visible import visible_lines
from taskd.watchdog.board import Board
from taskd.watchdog.culprit import Usage
from taskd.watchdog.watch import STEP_SECONDS, IBeats, Watch

DUMP_SIGNAL: int = getattr(signal, "SIGRTMAX", 0) - 7
"""A real-time signal: handlers and their libraries use others, and twistd's debugger has SIGUSR2."""

LATE_SECONDS = 0.5
"""How much later than asked for the kernel may wake the watchdog. Anything later is a pause of the whole machine."""

DUMP_SECONDS = 0.2
CRASH_BYTES = 65536


class Config(NamedTuple):
    """What the worker tells its watchdog, over its standard input because the DSN has a password. ``board``, ``pidfd``
    and ``dump`` are inherited descriptors. ``stall`` is None if the watchdog must not end the worker."""

    pid: int
    board: int
    pidfd: int
    dump: int
    dsn: Mapping[str, str | int] | None
    stall: float | None
    lease: float

    def encode(self) -> bytes:
        """As bytes for :func:`main`."""
        return json.dumps(self._asdict()).encode()


class WorkerProcess:
    """The worker, through /proc, its pidfd, and the file into which its faulthandler dumps."""

    def __init__(self, pid: int, pidfd: int, dump: int) -> None:
        self._pid = pid
        self._pidfd = pidfd
        self._dump = dump
        self._hertz = os.sysconf("SC_CLK_TCK")
        self._tgkill: Any = None

    def stopped(self) -> bool:
        """State T or t in /proc."""
        try:
            return _fields(f"/proc/{self._pid}/stat")[0] in "Tt"
        except (OSError, IndexError):
            return False

    def usage(self) -> Mapping[int, Usage]:
        """From /proc/PID/task."""
        found = {}
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{self._pid}/task"):
                # a thread may end at any moment
                with contextlib.suppress(OSError, IndexError, ValueError):
                    folder = f"/proc/{self._pid}/task/{name}"
                    stat = _fields(f"{folder}/stat")
                    found[int(name)] = Usage((int(stat[11]) + int(stat[12])) / self._hertz, _waits(f"{folder}/status"))
        return found

    def stack(self, native: int) -> str:
        """Signal this one thread, so that it dumps its own stack. A dump of all threads would read stacks that change
        meanwhile, which can crash the worker (python/cpython issue 116008), and it ends after 100 threads."""
        os.ftruncate(self._dump, 0)
        try:
            if self._tgkill is None:
                import ctypes

                self._tgkill = ctypes.CDLL(None).tgkill
            self._tgkill(self._pid, native, DUMP_SIGNAL)
        except (ImportError, AttributeError, OSError):
            # the kernel prefers the main thread, which is the reactor's
            if native != self._pid:
                return ""
            signal.pidfd_send_signal(self._pidfd, DUMP_SIGNAL)
        before, deadline = "", time.monotonic() + DUMP_SECONDS
        while time.monotonic() < deadline:
            select.select((), (), (), 0.02)
            text = self.crash()
            if text and text == before:
                os.ftruncate(self._dump, 0)
                return text
            before = text
        return ""

    def crash(self) -> str:
        """The content of the dump file."""
        try:
            return os.pread(self._dump, CRASH_BYTES, 0).decode(errors="replace")
        except OSError:
            return ""

    def stop(self) -> None:
        """By the pidfd: it cannot hit another process."""
        self._send(signal.SIGSTOP)

    def kill(self) -> None:
        """By the pidfd, too."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)


def _fields(path: str) -> list[str]:
    """The fields of a stat file after the process's name, which may contain anything."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def _waits(path: str) -> int | None:
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("voluntary_ctxt_switches:"):
                return int(line.split()[1])
    return None


def say(level: str, text: str) -> None:
    """Write to standard error, in the format of twistd's log. Lose the text rather than wait for a reader."""
    # names of files and functions, and the texts of errors, are of other people
    text = visible_lines(text.rstrip().replace("\n", "\n\t"))
    line = f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} [taskd.watchdog#{level}] {text}\n"
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    rest = line.encode(errors="replace")
    with contextlib.suppress(OSError):
        # a pipe that can take something takes PIPE_BUF bytes without blocking
        while rest and poll.poll(0):
            rest = rest[os.write(2, rest[: select.PIPE_BUF]) :]


def main() -> None:
    """Watch over the worker until it has died or said that it stops."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    config = Config(**json.loads(sys.stdin.buffer.read()))
    board = Board.open(config.board)
    process = WorkerProcess(config.pid, config.pidfd, config.dump)
    watch = Watch(board, process, _beats(config.dsn), time.monotonic, say, stall=config.stall, lease=config.lease)
    if _died(watch, board, config.pidfd):
        watch.dead()
        while (pause := watch.tell()) is not None:
            select.select((), (), (), pause)


def _beats(dsn: Mapping[str, str | int] | None) -> IBeats | None:
    if dsn is None:
        return None
    import psycopg2

    from taskd.store.postgres.beats import BeatConnection

    beats = BeatConnection(dsn)
    # connected now, so that the death of a worker is reported at once; if it fails, the first call tries again
    with contextlib.suppress(psycopg2.Error):
        beats.connect()
    return beats


def _died(watch: Watch, board: Board, pidfd: int) -> bool:
    """Wait for the worker's end. False if it has said before that it stops."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    pause = STEP_SECONDS
    troubled = False
    while not board.is_stopping:
        asked = time.monotonic()
        if poll.poll(pause * 1000):
            return not board.is_stopping
        if (late := time.monotonic() - asked - pause) > LATE_SECONDS:
            watch.paused(late)
        pause = STEP_SECONDS
        try:
            pause = watch.step()
        except Exception as e:
            if not troubled:
                say("error", f"a defect of taskd's watchdog, please report it: {type(e).__name__}: {e}")
            troubled = True
    return False
