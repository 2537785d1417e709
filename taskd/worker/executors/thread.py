"""Runs handlers that block in threads."""

from __future__ import annotations

import functools
import itertools
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from taskd.ports.handler import ITaskHandler
from taskd.worker.context import Relay, TaskContext
from taskd.worker.executors.executor import Ended, Place, _place, _returned, name_of
from taskd.worker.executors.thread_pool import IThreads
from taskd.worker.handler_results import OWN_FILES, Fault, Success, fault


class ThreadExecutor:
    """A handler that blocks. A thread cannot be ended from outside: cancelling only tells it."""

    patience: float | None = 0.0
    stubborn = "does not return, and its thread cannot be ended"

    def __init__(self, handler: ITaskHandler, context: TaskContext, relay: Relay, threads: IThreads) -> None:
        self._handler = handler
        self._context = context
        self._relay = relay
        self._threads = threads
        self._thread: int | None = None
        self._cancelled = False

    def begin(self, ended: Ended) -> None:
        """Have a thread run it."""

        def over(ending: Success | Fault) -> None:
            self._relay.hear()
            ended(ending)

        def work() -> None:
            ending = Fault("cancelled before it began") if self._cancelled else self._run()
            self._threads.wake(functools.partial(over, ending))

        self._threads.call(work)

    def _run(self) -> Success | Fault:
        self._thread = threading.get_ident()
        try:
            return _returned(self._handler.run(self._context))
        except BaseException as e:
            return fault(e)
        finally:
            self._thread = None

    def cancel(self) -> None:
        """Only an attempt that looks at ``cancelled`` ends."""
        self._cancelled = True

    def place(self) -> Place:
        """Where its thread is in this moment."""
        thread = self._thread
        top = sys._current_frames().get(thread) if thread is not None else None
        if top is None or self._thread != thread:
            return Place(name_of(self._handler))
        # below this file are the thread pool's own; what the context does for the handler is not shown either
        stack = itertools.takewhile(lambda f: f.f_code.co_filename != __file__, _outward(top))
        return _place(self._handler, [f for f in stack if f.f_code.co_filename not in OWN_FILES][::-1])


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
