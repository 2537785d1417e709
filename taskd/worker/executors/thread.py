"""Runs handlers that block in threads."""

from __future__ import annotations

import functools
import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

from twisted.internet.defer import Deferred

from taskd.ports.handler import ITaskHandler
from taskd.worker.attempt import Attempt, Place
from taskd.worker.context import OutputListener, TaskContext
from taskd.worker.executors.executor import name_of, place_of
from taskd.worker.executors.thread_pool import IThreads
from taskd.worker.handler_results import Fault, HandlerResult, handler_raised, handler_returned, is_hidden

HIDDEN_IN_TRACEBACKS = True

MAX_RELAY_BYTES = 256 * 1024
"""Of a thread's log lines that the reactor has not taken yet. The oldest are dropped."""


class ThreadExecutor:
    """Runs handlers that block in ``threads``."""

    def __init__(self, threads: IThreads) -> None:
        self._threads = threads

    def run(self, attempt: Attempt, handler: ITaskHandler, user: str, payload: Mapping[str, Any]) -> None:
        """Have a thread call it."""
        relay = OutputRelay(attempt, self._threads.wake)
        context = TaskContext(attempt.task, user, payload, attempt.max_attempts, relay)
        execution = ThreadExecution(handler, context)
        attempt.context, attempt.execution = context, execution

        def end(result: HandlerResult) -> None:
            relay.flush()
            attempt.end(result)

        def work() -> None:
            self._threads.wake(functools.partial(end, execution.work()))

        self._threads.call(work)


class ThreadExecution:
    """A handler that runs in a thread. Nothing can end a thread from outside: cancelling only sets ``cancelled``."""

    patience: float | None = 0.0
    stubborn = "does not return, and its thread cannot be ended"

    def __init__(self, handler: ITaskHandler, context: TaskContext) -> None:
        self._handler = handler
        self._context = context
        self._thread: int | None = None
        self._cancelled = False

    def work(self) -> HandlerResult:
        """Call the handler. Called in a thread; raises nothing."""
        if self._cancelled:
            return Fault("cancelled before it began")
        self._thread = threading.get_ident()
        try:
            value = self._handler.run(self._context)
            if isinstance(value, Deferred):
                value.addErrback(lambda _: None)
                return Fault("returned a Deferred from a thread: make the handler an async def that awaits it")
            return handler_returned(value)
        except BaseException as e:
            return handler_raised(e)
        finally:
            self._thread = None

    def cancel(self) -> None:
        """A handler that has no thread yet never runs."""
        self._cancelled = True

    def place(self) -> Place:
        """Where its thread is at this moment."""
        thread = self._thread
        top = sys._current_frames().get(thread) if thread is not None else None
        if top is None or self._thread != thread:
            return Place(name_of(self._handler))
        # the frames below :meth:`work` are the thread pool's
        stack = itertools.takewhile(lambda frame: frame.f_code is not ThreadExecution.work.__code__, _outward(top))
        return place_of(self._handler, [frame for frame in stack if not is_hidden(frame)][::-1])


class OutputRelay:
    """Passes the output of a handler from its thread to ``listener`` in the reactor's thread. Its size is bounded.

    ``wake`` has a function called in the reactor's thread; at most one such call is pending. Only the last progress
    and the newest MAX_RELAY_BYTES of lines are kept; dropped lines are counted.
    """

    def __init__(self, listener: OutputListener, wake: Callable[[Callable[[], None]], None]) -> None:
        self._listener = listener
        self._wake = wake
        self._lock = threading.Lock()
        self._awake = False
        self._progress: tuple[float, str] | None = None
        self._lines: deque[tuple[str, int]] = deque()
        self._bytes = 0
        self._dropped = 0

    def progress(self, fraction: float, note: str) -> None:
        """Called in the handler's thread."""
        with self._lock:
            self._progress = fraction, note
            asleep, self._awake = not self._awake, True
        if asleep:
            self._wake(self.flush)

    def lines(self, lines: Sequence[str], dropped: int) -> None:
        """Called in the handler's thread."""
        sized = [(line, len(line.encode()) + 1) for line in lines]
        with self._lock:
            if dropped:
                self._dropped += dropped + len(self._lines)
                self._lines.clear()
                self._bytes = 0
            self._lines.extend(sized)
            self._bytes += sum(size for _, size in sized)
            while self._bytes > MAX_RELAY_BYTES:
                self._bytes -= self._lines.popleft()[1]
                self._dropped += 1
            asleep, self._awake = not self._awake, True
        if asleep:
            self._wake(self.flush)

    def flush(self) -> None:
        """Pass on all output so far. Called in the reactor's thread, and once more at the end of the handler."""
        with self._lock:
            self._awake = False
            progress, self._progress = self._progress, None
            lines, dropped = [line for line, _ in self._lines], self._dropped
            self._lines.clear()
            self._bytes = self._dropped = 0
        if progress is not None:
            self._listener.progress(*progress)
        if lines or dropped:
            self._listener.lines(lines, dropped)


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
