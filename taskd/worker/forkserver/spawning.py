"""Forks the processes that run jobs."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import traceback
from collections.abc import Callable, Mapping, Sequence

from taskd.worker.forkserver.jobs import Process
from taskd.worker.forkserver.progress_page import ProgressPage


class Spawner:
    """Forks the fork server. A new process closes the files of the fork server: ``fds``, the ``selector``, and those of
    all other ``processes``."""

    def __init__(self, selector: selectors.BaseSelector, fds: Sequence[int], processes: Mapping[int, Process]) -> None:
        self._selector = selector
        self._fds = fds
        self._processes = processes

    def fork(self, page: ProgressPage | None, main: Callable[[socket.socket, int], None]) -> Process:
        """A new process that calls ``main`` with its channel and its output pipe, and exits. Raises OSError if the
        system has no room for it."""
        opened: list[int] = []
        try:
            ours, theirs = (each.detach() for each in socket.socketpair())
            opened += [ours, theirs]
            source, sink = os.pipe()
            opened += [source, sink]
            pid = os.fork()
        except OSError:
            for fd in opened:
                os.close(fd)
            raise
        if not pid:
            self._become(main, socket.socket(fileno=theirs), sink, [ours, source])
        os.close(theirs)
        os.close(sink)
        os.set_blocking(source, False)
        channel = socket.socket(fileno=ours)
        channel.setblocking(False)
        return Process(pid, channel, source, page)

    def _become(
        self, main: Callable[[socket.socket, int], None], channel: socket.socket, sink: int, others: Sequence[int]
    ) -> None:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
            self._selector.close()
            inherited = [*self._fds, *others]
            for process in self._processes.values():
                inherited += [process.channel.detach(), process.output]
            for fd in inherited:
                with contextlib.suppress(OSError):
                    os.close(fd)
            main(channel, sink)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
