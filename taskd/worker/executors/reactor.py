"""Runs async handlers on the reactor."""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import Callable, Coroutine, Generator, Mapping
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from taskd.ports.handler import ITaskHandler
from taskd.worker.attempt import CANCEL_SECONDS, Attempt, Place
from taskd.worker.context import TaskContext
from taskd.worker.executors.executor import name_of, place_of
from taskd.worker.handler_results import Fault, HandlerResult, handler_raised, handler_returned

HIDDEN_IN_TRACEBACKS = True

T = TypeVar("T")


class ReactorExecutor:
    """Runs async handlers in the reactor's thread."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock

    def run(self, attempt: Attempt, handler: ITaskHandler, attributes: Mapping[str, Any]) -> None:
        """Run it to its first await, or to its end."""
        context = TaskContext(attributes, attempt)
        execution = ReactorExecution(self._clock, handler, context)
        attempt.context, attempt.execution = context, execution
        execution.begin(attempt.end)


class ReactorExecution:
    """An async handler that runs. Cancelling raises CancelledError at its await."""

    patience: float | None = CANCEL_SECONDS
    stubborn = "ignores its cancellation"

    def __init__(self, clock: IReactorTime, handler: ITaskHandler, context: TaskContext) -> None:
        self._clock = clock
        self._handler = handler
        self._context = context
        self._coroutine = self._run()
        self._running: Deferred[HandlerResult] | None = None
        self._awaitable: Any = None

    def begin(self, ended: Callable[[HandlerResult], None]) -> None:
        """Run the handler to its first await. One that awaits nothing needs no Deferred: it has ended then."""
        variables = contextvars.copy_context()
        try:
            awaited = variables.run(self._coroutine.send, None)
        except StopIteration as e:
            ended(e.value)
            return
        self._running = variables.run(Deferred.fromCoroutine, _go_on(self._coroutine, awaited))
        self._running.addErrback(_fault_of).addCallback(ended)

    async def _run(self) -> HandlerResult:
        try:
            answer = self._awaitable = self._handler.run(self._context)
            if not inspect.isawaitable(answer):
                return Fault(f"{name_of(self._handler)} is served as async and returned nothing that can be awaited")
            value = await answer
            # like everywhere in Twisted, wait for a Deferred that is returned
            while isinstance(value, Deferred):
                value = await value
            return handler_returned(value)
        # SystemExit and the like too: the handler fails, not the worker
        except BaseException as e:
            return handler_raised(e)
        finally:
            self._awaitable = None

    def cancel(self) -> None:
        """Raise CancelledError at its await."""
        if inspect.getcoroutinestate(self._coroutine) == inspect.CORO_RUNNING:
            # the handler's own code called this: it must come to its await first
            self._clock.callLater(0, self.cancel)
        elif self._running is not None:
            self._running.cancel()

    def place(self) -> Place:
        """Its innermost await."""
        at, frames = self._awaitable, []
        while inspect.iscoroutine(at):
            if at.cr_frame is not None:
                frames.append(at.cr_frame)
            at = at.cr_await
        return place_of(self._handler, frames)


def _go_on(coroutine: Coroutine[Any, Any, T], awaited: Any) -> Generator[Any, Any, T]:
    """The rest of a coroutine that runs already. ``awaited`` is what it awaits first."""
    while True:
        step: Callable[[], Any]
        try:
            answer = yield awaited
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as e:
            step = functools.partial(coroutine.throw, e)
        else:
            step = functools.partial(coroutine.send, answer)
        try:
            awaited = step()
        except StopIteration as e:
            result: T = e.value
            return result


def _fault_of(failure: Failure) -> Fault:
    assert failure.value is not None
    return handler_raised(failure.value)
