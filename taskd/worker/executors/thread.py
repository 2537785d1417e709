"""Runs handlers that block in threads."""

from __future__ import annotations

import functools
import gc
import itertools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

from twisted.internet.defer import Deferred

from taskd.ports.handler import ITaskHandler
from taskd.worker.attempt import Attempt, Place
from taskd.worker.context import OutputListener, TaskContext
from taskd.worker.executors import forks
from taskd.worker.executors.entries import IEntries
from taskd.worker.executors.executor import name_of, place_of
from taskd.worker.executors.thread_pool import IThreads
from taskd.worker.forkserver.output_buffer import OutputBuffer
from taskd.worker.handler_results import Fault, HandlerResult, handler_raised, handler_returned, is_hidden

HIDDEN_IN_TRACEBACKS = True


class ThreadExecutor:
    """Runs handlers that block in ``threads``."""

    def __init__(self, threads: IThreads, entries: IEntries) -> None:
        self._threads = threads
        self._entries = entries

    def run(self, attempt: Attempt, handler: ITaskHandler, attributes: Mapping[str, Any]) -> None:
        """Have a thread call it."""
        relay = OutputRelay(attempt, self._threads.wake)
        context = TaskContext(attributes, relay)
        execution = ThreadExecution(handler, context, attempt.task.dispatch, self._entries)
        attempt.context, attempt.execution = context, execution

        def end(result: HandlerResult) -> None:
            try:
                relay.flush()
            finally:
                attempt.end(result)

        def work() -> None:
            self._threads.wake(functools.partial(end, execution.work()))

        self._threads.call(work)


class ThreadExecution:
    """A handler that runs in a thread. Nothing can end a thread from outside: cancelling only sets ``cancelled``."""

    patience: float | None = 0.0
    stubborn = "does not return, and its thread cannot be ended"

    def __init__(self, handler: ITaskHandler, context: TaskContext, dispatch: int, entries: IEntries) -> None:
        self._handler = handler
        self._context = context
        self._dispatch = dispatch
        self._entries = entries
        self._thread: int | None = None
        self._cancelled = False

    def work(self) -> HandlerResult:
        """Call the handler. Called in a thread; raises nothing."""
        if self._cancelled:
            return Fault("cancelled before it began")
        self._thread = threading.get_ident()
        try:
            value = self._call()
            if isinstance(value, Deferred):
                value.addErrback(lambda _: None)
                return Fault("returned a Deferred from a thread: make the handler an async def that awaits it")
            return handler_returned(value)
        except BaseException as e:
            return handler_raised(e)
        finally:
            self._thread = None

    def _call(self) -> Any:
        context = self._context
        self._entries.enter(context.id, self._dispatch, context.kind)
        try:
            value = self._handler.run(context)
        except BaseException as e:
            if forks.in_copy:
                forks.leave(e)
            self._entries.leave()
            raise
        if forks.in_copy:
            forks.leave()
        self._entries.leave()
        return value

    def cancel(self) -> None:
        """A handler that has no thread yet never runs."""
        self._cancelled = True

    def place(self) -> Place:
        """Where its thread is at this moment."""
        thread = self._thread
        top = _frame_of(thread) if thread is not None else None
        if top is None or self._thread != thread:
            return Place(name_of(self._handler))
        # the frames below :meth:`work` are the thread pool's
        stack = itertools.takewhile(lambda frame: frame.f_code is not ThreadExecution.work.__code__, _outward(top))
        return place_of(self._handler, [frame for frame in stack if not is_hidden(frame)][::-1])


class OutputRelay:
    """Passes the output of a handler from its thread to ``listener`` in the reactor's thread. Its size is bounded.

    ``wake`` has a function called in the reactor's thread; at most one such call is pending. Only the last progress
    and the newest lines are kept; dropped lines are counted.
    """

    def __init__(self, listener: OutputListener, wake: Callable[[Callable[[], None]], None]) -> None:
        self._listener = listener
        self._wake = wake
        self._lock = threading.Lock()
        self._awake = False
        self._progress: tuple[float, str] | None = None
        self._output = OutputBuffer()
        self._dropped = 0

    def progress(self, fraction: float, note: str) -> None:
        """Called in the handler's thread."""
        if forks.in_copy:
            return
        with self._lock:
            self._progress = fraction, note
        self._wake_reactor()

    def lines(self, lines: Sequence[str], dropped: int) -> None:
        """Called in the handler's thread."""
        if forks.in_copy:
            return
        with self._lock:
            if dropped:
                # these were dropped after the lines that wait here: drop those too, so that the count comes first
                before, lost = self._output.take()
                self._dropped += dropped + len(before) + lost
            self._output.feed("".join(f"{line}\n" for line in lines).encode())
        self._wake_reactor()

    def _wake_reactor(self) -> None:
        with self._lock:
            asleep, self._awake = not self._awake, True
        if asleep:
            self._wake(self.flush)

    def flush(self) -> None:
        """Pass on all output so far. Called in the reactor's thread, and once more at the end of the handler."""
        with self._lock:
            self._awake = False
            progress, self._progress = self._progress, None
            lines, dropped = self._output.take()
            dropped += self._dropped
            self._dropped = 0
        if progress is not None:
            self._listener.progress(*progress)
        if lines or dropped:
            self._listener.lines(lines, dropped)


def _frame_of(thread: int) -> FrameType | None:
    # CPython before 3.11.9 deadlocks if the garbage collector runs inside this call (python/cpython issue 106883)
    collects = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames().get(thread)
    finally:
        if collects:
            gc.enable()


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
