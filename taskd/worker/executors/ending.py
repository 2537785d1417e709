"""The end of a worker's process when handlers have left threads or child processes behind. Python would wait for them
without limit: for the threads of concurrent.futures, for all threads that are no daemons, for children of
multiprocessing; and the reactor for its own pool."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from typing import Any

WAIT_SECONDS = 2.0
"""What threads that are left get to end, once those of the reactor's own pool and once all others. Idle ones need
milliseconds."""

EXIT_SECONDS = 5.0
"""What the exit handlers of all modules may take after that."""


def leave_threads_behind(reactor: Any) -> None:
    """From now on nothing that a handler has started keeps the process alive after the reactor has stopped. Call it
    when the last attempt has ended, while the reactor still runs; a second call has no effect.

    What twistd does after the reactor, and all exit handlers, still happen. The exit status is 0, unless an exit
    handler sets another one.
    """
    global _pid
    if _pid == os.getpid():
        return
    _pid = os.getpid()
    if (pool := getattr(reactor, "threadpool", None)) is not None:
        _bound(pool)
    # started now: Python 3.12 starts no thread while it ends
    for last in _end_without_threads, _end_without_exit_handlers:
        threading.Thread(target=last, name="taskd.end", daemon=True).start()
    atexit.register(_in_exit_handlers.set)
    # atexit is too late to begin: Python joins all threads before. Of these functions the last one is called first. The
    # name is private; without it the time begins with the end of the reactor.
    register = getattr(threading, "_register_atexit", None)
    if register is None:
        reactor.addSystemEventTrigger("after", "shutdown", _begin_to_end)
    else:
        with contextlib.suppress(RuntimeError):
            register(_begin_to_end)


_pid = 0
"""Of the process that has called it."""

_ending = threading.Event()
_in_exit_handlers = threading.Event()


def _bound(pool: Any) -> None:
    stop = pool.stop

    def stop_in_time() -> None:
        joining = threading.Thread(target=stop, name="taskd.end.pool", daemon=True)
        joining.start()
        joining.join(WAIT_SECONDS)

    pool.stop = stop_in_time


def _begin_to_end() -> None:
    """twistd has done everything, and Python begins to end the process."""
    if os.getpid() != _pid:
        return  # a child of multiprocessing ends as it would anywhere
    multiprocessing = sys.modules.get("multiprocessing")
    for child in multiprocessing.active_children() if multiprocessing else ():
        if not child.daemon:
            child.join = _do_not_wait
    _ending.set()


def _do_not_wait(timeout: float | None = None) -> None:
    """In place of the ``join`` of a child process."""


def _end_without_threads() -> None:
    _ending.wait()
    if _in_exit_handlers.wait(WAIT_SECONDS):
        return
    here = threading.main_thread(), threading.current_thread()
    left = [each.name for each in threading.enumerate() if not each.daemon and each not in here]
    print(f"not waiting for {len(left)} threads that handlers have left: {', '.join(left)}"[:1000], file=sys.stderr)
    atexit._run_exitfuncs()
    _exit()


def _end_without_exit_handlers() -> None:
    _ending.wait()
    _in_exit_handlers.wait(WAIT_SECONDS)
    threading.Event().wait(EXIT_SECONDS)
    _exit()


def _exit() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(0)
