"""A child: forked from the fork server, it runs one task after the other until it is not fit for another one."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence

import msgspec

from taskd.ports.handler import ITaskHandler
from taskd.worker.context import TaskContext
from taskd.worker.forkserver.messages import Call, JobEnded, decode_order, encode
from taskd.worker.forkserver.progress_memory import ProgressMemory
from taskd.worker.forkserver.spawning import default_signals
from taskd.worker.handler_results import Fault, HandlerResult, handler_raised, handler_returned

HIDDEN_IN_TRACEBACKS = True


class ChildContext(TaskContext):
    """One attempt, as its handler in a child process sees it."""

    _listens = False

    @property
    def cancelled(self) -> bool:
        """True as soon as the attempt should end. A handler that reads this ends by itself: from the first read on,
        SIGTERM sets this instead of ending the process."""
        if not self._listens and threading.current_thread() is threading.main_thread():
            self._listens = True
            # keep a signal handler that the task has installed
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                signal.signal(signal.SIGTERM, lambda number, frame: self.cancel())
        return self._cancelled


class ChildOutput:
    """Passes on what the handler of ``job`` reports: its progress by a page of memory, its log lines by a pipe."""

    def __init__(self, job: int, page: ProgressMemory, pipe: int) -> None:
        self._job = job
        self._page = page
        self._pipe = pipe

    def progress(self, fraction: float, note: str) -> None:
        """Report a progress."""
        self._page.write(self._job, fraction, note)

    def lines(self, lines: Sequence[str], dropped: int) -> None:
        """Add lines to the log, after everything that was printed before."""
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with contextlib.suppress(OSError), open(self._pipe, "wb", closefd=False) as pipe:
            pipe.write("".join(f"{line}\n" for line in lines).encode())


class Child:
    """The loop of a child. Its constructor prepares the process that the fork server has forked."""

    def __init__(
        self,
        channel: socket.socket,
        output: int,
        page: ProgressMemory,
        handlers: Mapping[str, ITaskHandler],
    ) -> None:
        self._channel = channel
        self._page = page
        self._handlers = handlers
        self._pid = os.getpid()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._output = os.dup(output)
        os.close(output)
        self._streams = _open_streams()
        # the task's log shows where a crash in C happens
        with contextlib.suppress(Exception):
            faulthandler.enable(2)
        self._folder = os.getcwd()
        self._files = self._identify_files()

    def run(self) -> None:
        """Run tasks until the fork server hangs up or this process is not fit any more."""
        reader = self._channel.makefile("rb")
        while line := reader.readline():
            call = decode_order(line)
            assert isinstance(call, Call)
            end = self._run_task(call)
            if os.getpid() != self._pid:
                # the handler forked, and this is the copy
                os._exit(0)
            fit = self._restore()
            self._channel.sendall(encode(JobEnded(call.job, end, fit)))
            if not fit:
                return

    def _run_task(self, call: Call) -> HandlerResult:
        handler = self._handlers.get(call.kind)
        if handler is None:
            return Fault(f"no handler of the kind {call.kind!r} runs in a child process")
        output = ChildOutput(call.job, self._page, self._output)
        try:
            result = handler_returned(handler.run(ChildContext(msgspec.json.decode(call.context), output)))
        # SystemExit and the like too: the handler fails, not the child
        except BaseException as e:
            result = handler_raised(e)
        if isinstance(result, Fault):
            result.cause = None
        return result

    def _restore(self) -> bool:
        """Undo what a task may have changed. Returns whether this process is fit for the next task."""
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        default_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        sys.stdout, sys.stderr = self._streams
        try:
            os.chdir(self._folder)
            same = self._identify_files() == self._files
        except OSError:
            same = False
        # a thread of this task that goes on would run beside the next task and write into its log
        return same and threading.active_count() == 1

    def _identify_files(self) -> list[tuple[int, int]]:
        stats = [os.fstat(fd) for fd in (0, 1, 2, self._output, self._channel.fileno())]
        return [(each.st_dev, each.st_ino) for each in stats]


def _open_streams() -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
    """Open stdout and stderr so that they flush each line and accept any text."""
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
    made = []
    for fd in (1, 2):
        raw = io.BufferedWriter(io.FileIO(fd, "w", closefd=False))
        made.append(io.TextIOWrapper(raw, "utf-8", "backslashreplace", line_buffering=True))
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = made  # type: ignore[misc]
    return made[0], made[1]
