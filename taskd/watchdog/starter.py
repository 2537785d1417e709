"""The worker's side of the watchdog: starts it, starts it again when it has died, and stops it."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Mapping
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from taskd.hardening import processes_are_hidden
from taskd.model.backoff import Backoff
from taskd.watchdog.board import Board, memory_file
from taskd.watchdog.process import DUMP_SIGNAL, Config

TICK_SECONDS = 0.2
CHECK_SECONDS = 1.0
RESTART = Backoff(first=1, factor=2, longest=30, jitter=0)
HEALTHY_SECONDS = 30.0
"""A watchdog that lived so long had not failed to start: the next one starts after the first backoff."""
STOP_SECONDS = 1.0

RUN = "import sys; sys.path = [p for p in sys.path if p]; from taskd.watchdog.__main__ import main; main()"
"""What the watchdog's Python runs. ``-m`` would look for modules in the current folder first: a task that can write
there could have its code run by a watchdog, which has the password of the database."""


class Watchdog:
    """The watchdog of this process. From :meth:`start` on the board ticks while the reactor runs.

    ``dsn`` is how it connects to PostgreSQL. With None it only names what blocks the reactor and never ends the worker.
    ``stall`` and ``lease`` are the settings of these names, in seconds.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, board: Board, dsn: Mapping[str, str | int] | None, *, stall: float, lease: float
    ) -> None:
        self._reactor = reactor
        self._board = board
        self.config = Config(-1, -1, -1, -1, dsn, stall if dsn is not None else None, lease)
        """What the next watchdog reads from its standard input; :meth:`start` completes it."""
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._began = 0.0
        self._due = 0.0
        self._checked = 0.0
        self._had_faulthandler = False
        self._loop: LoopingCall | None = None

    @property
    def pid(self) -> int | None:
        """Of the watchdog while it runs."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start it. To be called in the reactor's thread, after the process has become a daemon. Does not fail: where
        the system has no pidfd there is no watchdog."""
        if self._loop is not None:
            return
        try:
            pidfd = os.pidfd_open(os.getpid())
            board = self._board.share()
            dump = memory_file("taskd-dump")
            # faulthandler writes at the end, also after the watchdog has emptied the file
            fcntl.fcntl(dump, fcntl.F_SETFL, fcntl.fcntl(dump, fcntl.F_GETFL) | os.O_APPEND)
        except (AttributeError, OSError) as e:
            self._log.warn("this system has no pidfd or no shared memory, so there is no watchdog: {e}", e=str(e))
            return
        if processes_are_hidden():
            self._log.warn(
                "/proc is mounted with hidepid (ProtectProc= of systemd): the watchdog cannot tell which thread blocks"
            )
        self.config = self.config._replace(pid=os.getpid(), board=board, pidfd=pidfd, dump=dump)
        self._had_faulthandler = faulthandler.is_enabled()
        faulthandler.enable(file=dump, all_threads=True)
        faulthandler.register(DUMP_SIGNAL, file=dump, all_threads=False)
        _started.add(self)
        self._loop = LoopingCall(self._tick)
        self._loop.clock = self._reactor
        self._loop.start(TICK_SECONDS)

    def check(self) -> None:
        """Start it again if it has died. Called once a second from :meth:`start` on. Never blocks."""
        if self._loop is None:
            return
        now = self._reactor.seconds()
        if self._process is not None:
            if (status := self._process.poll()) is None:
                return
            self._process = None
            if now - self._began >= HEALTHY_SECONDS:
                self._failures = 0
            self._failures += 1
            seconds = RESTART.delay(self._failures, 0)
            self._due = now + seconds
            self._log.error(
                "the watchdog ended with status {status}; a new one starts in {seconds} s",
                status=status,
                seconds=round(seconds),
            )
        if now >= self._due:
            self._began = now
            self._launch()

    def stop(self) -> None:
        """The worker is about to end. If the board says that it is stopping, the watchdog ends without telling
        anything; else it lives on until the worker is dead, and tells the store."""
        if self._loop is None:
            return
        if self._process is not None and not self._board.is_stopping:
            # it goes on to ask for stacks, by a signal that would kill the process without faulthandler
            return
        self._loop.stop()
        self._loop = None
        if self._process is not None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait(STOP_SECONDS)
            self._process = None
        self._forget()
        if self._had_faulthandler:
            faulthandler.enable()

    def _tick(self) -> None:
        self._board.tick()
        now = self._reactor.seconds()
        if now - self._checked >= CHECK_SECONDS or self._process is None:
            self._checked = now
            try:
                self.check()
            except Exception:
                self._log.failure("the watchdog could not be looked after")

    def _launch(self) -> None:
        config = self.config
        # not a pipe: that could be opened and read through /proc before the watchdog hides itself
        with contextlib.ExitStack() as sockets:
            try:
                ours, theirs = map(sockets.enter_context, socket.socketpair())
                self._process = subprocess.Popen(
                    # -s: a task can write into the user's site-packages. The last argument is for those who list
                    # processes
                    [sys.executable, "-s", "-c", RUN, "taskd.watchdog"],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    pass_fds=(config.board, config.pidfd, config.dump),
                    # a signal for the worker's terminal or process group must not end it
                    start_new_session=True,
                )
            except OSError as e:
                self._failures += 1
                self._due = self._reactor.seconds() + RESTART.delay(self._failures, 0)
                self._log.error("the watchdog cannot be started: {e}", e=str(e))
                return
            # a few hundred bytes always fit into the socket's buffer
            with contextlib.suppress(OSError):
                ours.sendall(config.encode())

    def _forget(self) -> None:
        """Close what the watchdog shares, and dump no more."""
        _started.discard(self)
        faulthandler.unregister(DUMP_SIGNAL)
        faulthandler.disable()
        for fd in (self.config.pidfd, self.config.dump):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._board.close()


_started: weakref.WeakSet[Watchdog] = weakref.WeakSet()


def _forked() -> None:
    """In a child that a handler has forked: its crash is not the worker's."""
    for watchdog in list(_started):
        watchdog._loop = None
        watchdog._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
