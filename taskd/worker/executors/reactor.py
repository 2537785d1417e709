"""Runs async handlers on the reactor."""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from taskd.ports.handler import ITaskHandler
from taskd.worker.context import TaskContext
from taskd.worker.executors.executor import Ended, Place, _place, _returned, name_of
from taskd.worker.handler_results import Fault, Success, fault

CANCEL_SECONDS = 5.0
"""What an async handler gets to end once it is cancelled."""

T = TypeVar("T")


class ReactorExecutor:
    """An async handler. Cancelling raises CancelledError at its await."""

    patience: float | None = CANCEL_SECONDS
    stubborn = "ignores its cancellation"

    def __init__(self, clock: IReactorTime, handler: ITaskHandler, context: TaskContext) -> None:
        self._clock = clock
        self._handler = handler
        self._context = context
        self._ours: Coroutine[Any, Any, Success | Fault] | None = None
        self._running: Deferred[Success | Fault] | None = None
        self._theirs: Any = None

    def begin(self, ended: Ended) -> None:
        """Run it to its first await, which one that awaits nothing does not have: it needs no Deferred."""
        context, work = contextvars.copy_context(), self._run()
        self._ours = work
        try:
            awaited = context.run(work.send, None)
        except StopIteration as e:
            ended(e.value)
            return
        self._running = context.run(Deferred.fromCoroutine, _go_on(work, awaited))
        self._running.addErrback(_fault_of).addCallback(ended)

    async def _run(self) -> Success | Fault:
        try:
            answer = self._theirs = self._handler.run(self._context)
            if not inspect.isawaitable(answer):
                return Fault(f"{name_of(self._handler)} is served as async and returned nothing that can be awaited")
            value = await answer
            # as everywhere in Twisted, a Deferred that is returned is waited for
            while isinstance(value, Deferred):
                value = await value
            return _returned(value)
        # also those that would end a thread or a process: this is the handler's, not ours
        except BaseException as e:
            return fault(e)
        finally:
            self._theirs = None

    def cancel(self) -> None:
        """Raise CancelledError at what it awaits."""
        if self._ours is not None and inspect.getcoroutinestate(self._ours) == inspect.CORO_RUNNING:
            # the handler itself has led here: it must come to its await first
            self._clock.callLater(0, self.cancel)
        elif self._running is not None:
            self._running.cancel()

    def place(self) -> Place:
        """The await at which it is."""
        at, frames = self._theirs, []
        while inspect.iscoroutine(at):
            if at.cr_frame is not None:
                frames.append(at.cr_frame)
            at = at.cr_await
        return _place(self._handler, frames)


def _go_on(work: Coroutine[Any, Any, T], awaited: Any) -> Generator[Any, Any, T]:
    """The rest of a coroutine that has begun, from what it awaits first."""
    while True:
        step: Callable[[], Any]
        try:
            answer = yield awaited
        except GeneratorExit:
            work.close()
            raise
        except BaseException as e:
            step = functools.partial(work.throw, e)
        else:
            step = functools.partial(work.send, answer)
        try:
            awaited = step()
        except StopIteration as e:
            result: T = e.value
            return result


def _fault_of(failure: Failure) -> Fault:
    assert failure.value is not None
    return fault(failure.value)
