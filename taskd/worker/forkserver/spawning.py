"""Forks the processes that run jobs."""

from __future__ import annotations

import os
import signal
import socket
import traceback
from collections.abc import Callable

from taskd.worker.forkserver.jobs import Process
from taskd.worker.forkserver.progress_page import ProgressPage


def fork(
    page: ProgressPage | None, main: Callable[[socket.socket, int], None], close_files: Callable[[], None]
) -> Process:
    """A new process. It calls ``close_files``, to close the files of the fork server, and ``main`` with its channel and
    its output pipe; then it exits. Raises OSError if the system has no room for it."""
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
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
            os.close(ours)
            os.close(source)
            close_files()
            main(socket.socket(fileno=theirs), sink)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(theirs)
    os.close(sink)
    os.set_blocking(source, False)
    channel = socket.socket(fileno=ours)
    channel.setblocking(False)
    return Process(pid, channel, source, page)
