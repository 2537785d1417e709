"""Forks the processes that run jobs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import traceback
from collections.abc import Callable

from taskd.worker.forkserver import process_tree
from taskd.worker.forkserver.jobs import Process
from taskd.worker.forkserver.progress_memory import ProgressMemory

_RESET = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}


def fork(
    page: ProgressMemory | None, main: Callable[[socket.socket, int], None], close_files: Callable[[], None]
) -> Process:
    """A new process in a session of its own, with SIGTERM blocked. It calls ``close_files``, to close the files of the
    fork server, and ``main`` with its channel and its output pipe, which is also its stdout and stderr; then it exits.
    Raises OSError if the system has no room for it."""
    forkserver = os.getpid()
    opened: list[int] = []
    try:
        ours, theirs = (each.detach() for each in socket.socketpair())
        opened += [ours, theirs]
        source, sink = os.pipe()
        opened += [source, sink]
        pid = process_tree.fork_to_be_killed_first()
    except OSError:
        for fd in opened:
            os.close(fd)
        raise
    if not pid:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            default_signals()
            os.close(ours)
            os.close(source)
            close_files()
            os.setsid()
            process_tree.become_subreaper()
            process_tree.die_with_parent(forkserver, signal.SIGKILL)
            process_tree.yield_to_the_worker()
            _wire_standard_streams(sink)
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


def default_signals() -> None:
    """Reset all signals to their defaults except SIGPIPE and SIGXFSZ: Python ignores them and raises exceptions."""
    for number in _RESET:
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)


def _wire_standard_streams(output: int) -> None:
    """Make stdin empty, and stdout and stderr the task's output."""
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(output, 1)
    os.dup2(output, 2)
