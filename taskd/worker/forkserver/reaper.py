"""The reaper: the process between the worker and the fork server. It outlives the fork server and ends what is left.

It is a subreaper above all others: if the fork server is killed, everything that it had started becomes a child of the
reaper. If the reaper is killed, the fork server ends everything. Only killing both at the same moment leaves processes
behind."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
import traceback

from taskd.hardening import forbid_inspection, forbid_new_privileges, processes_are_hidden
from taskd.worker.forkserver import process_tree

PATIENCE = 8.0
"""Seconds that the fork server may take to end everything after the worker has ended."""


def main(setup: str) -> None:
    """Become the reaper, and fork the fork server before anything of the handlers is imported."""
    with contextlib.suppress(PermissionError):
        os.setsid()
    # Reaper and fork server end when the worker does: a signal for the whole service must not interrupt its drain.
    # They are blocked, not ignored: a TERM that reaches a child right after its fork waits until it can take it.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    process_tree.become_subreaper()
    # also for the fork server, its children, and what they start
    forbid_new_privileges()
    # The end of the pipe is not enough: a fork of the worker could hold it open. The fork server follows this process.
    process_tree.die_with_parent(os.getppid(), signal.SIGUSR1)
    orders, events = os.dup(0), os.dup(1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    # what handler modules print while they are imported goes to the worker's log
    os.dup2(2, 1)
    reaper = os.getpid()
    forkserver = os.fork()
    if not forkserver:
        status = 1
        try:
            process_tree.open_oom_score()
            # Its children inherit it: no task looks into the task of another user. A program, which exec starts, does
            # not inherit it.
            _hide()
            from taskd.worker.forkserver.preload import run

            run(reaper, orders, events, setup)
            status = 0
        except BaseException:
            traceback.print_exc()
            process_tree.end_all_below_me()
        finally:
            os._exit(status)
    _hide()
    os.close(events)
    _wait_for(forkserver, orders)
    process_tree.end_all_below_me()
    os._exit(0)


def _hide() -> None:
    """Where that would hide it from the fork server as well, trees could not be listed and ended: nobody hides."""
    if not processes_are_hidden():
        forbid_inspection()


def _wait_for(forkserver: int, orders: int) -> None:
    """Return when the fork server has ended. Kill it if it outlives the worker by PATIENCE."""
    wake, _ = process_tree.pipe_of_signals()
    poll = select.poll()
    poll.register(wake, select.POLLIN)
    # no events: poll then reports only that the worker has hung up
    poll.register(orders, 0)
    kill_at: float | None = None
    while os.waitpid(forkserver, os.WNOHANG) == (0, 0):
        timeout = None if kill_at is None else max(0.0, kill_at - time.monotonic()) * 1000
        for fd, _ in poll.poll(timeout):
            # the bytes are the numbers of the signals
            hung_up = fd == orders or signal.SIGUSR1 in os.read(wake, 4096)
            if fd == orders:
                poll.unregister(orders)
            if hung_up and kill_at is None:
                kill_at = time.monotonic() + PATIENCE
        if kill_at is not None and time.monotonic() >= kill_at:
            process_tree.send(forkserver, signal.SIGKILL)
            kill_at += PATIENCE


if __name__ == "__main__":
    main(sys.argv[1])
