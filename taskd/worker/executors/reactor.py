"""Runs async handlers on the reactor."""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Callable, Generator, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from taskd.ports.handler import ITaskHandler
from taskd.worker.attempt import CANCEL_SECONDS, Attempt, Place
from taskd.worker.context import TaskContext
from taskd.worker.executors import forks
from taskd.worker.executors.entries import NO_ENTRIES, IEntries
from taskd.worker.executors.executor import name_of, place_of
from taskd.worker.handler_results import Fault, HandlerResult, handler_raised, handler_returned

HIDDEN_IN_TRACEBACKS = True


class ReactorExecutor:
    """Runs async handlers in the reactor's thread."""

    def __init__(self, clock: IReactorTime, entries: IEntries) -> None:
        self._clock = clock
        self._steps = Steps(entries)

    def run(self, attempt: Attempt, handler: ITaskHandler, attributes: Mapping[str, Any]) -> None:
        """Run it to its first await, or to its end."""
        context = TaskContext(attributes, attempt)
        execution = ReactorExecution(self._clock, handler, context, attempt.task.dispatch, self._steps)
        attempt.context, attempt.execution = context, execution
        execution.begin(attempt.end)


class Steps:
    """Notes in ``entries`` which handler's code runs on the reactor."""

    def __init__(self, entries: IEntries) -> None:
        # without a watchdog, the path of each task is shorter by two calls
        self._entries = None if entries is NO_ENTRIES else entries
        self._inside: ReactorExecution | None = None

    def enter(self, execution: ReactorExecution) -> ReactorExecution | None:
        """A step of this handler begins: it runs to its next await or to its end. The result is for :meth:`leave`."""
        entries, outer = self._entries, self._inside
        self._inside = execution
        if entries is not None:
            if outer is not None:
                # a handler has called back another one: entries do not nest
                entries.leave()
            entries.enter(*execution.ids)
        return outer

    def leave(self, outer: ReactorExecution | None) -> None:
        """The step has ended. In a copy of the worker, which the handler has forked, this does not return."""
        if forks.in_copy:
            forks.leave()
        entries = self._entries
        self._inside = outer
        if entries is not None:
            entries.leave()
            if outer is not None:
                entries.enter(*outer.ids)


class ReactorExecution:
    """An async handler that runs. Cancelling raises CancelledError at its await."""

    patience: float | None = CANCEL_SECONDS
    stubborn = "ignores its cancellation"

    def __init__(
        self, clock: IReactorTime, handler: ITaskHandler, context: TaskContext, dispatch: int, steps: Steps
    ) -> None:
        self.ids = (context.id, dispatch, context.kind)
        """Of the task: its number, dispatch and kind."""
        self._clock = clock
        self._handler = handler
        self._context = context
        self._steps = steps
        self._coroutine = self._run()
        self._running: Deferred[HandlerResult] | None = None
        self._awaitable: Any = None

    def begin(self, ended: Callable[[HandlerResult], None]) -> None:
        """Run the handler to its first await. One that awaits nothing needs no Deferred: it has ended then."""
        variables = contextvars.copy_context()
        outer = self._steps.enter(self)
        result: HandlerResult | None = None
        try:
            awaited = variables.run(self._coroutine.send, None)
        except StopIteration as e:
            result = e.value
        finally:
            self._steps.leave(outer)
        if result is not None:
            ended(result)
            return
        self._running = variables.run(Deferred.fromCoroutine, self._go_on(awaited))
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
            if forks.in_copy:
                forks.leave(e)
            return handler_raised(e)
        finally:
            self._awaitable = None

    def _go_on(self, awaited: Any) -> Generator[Any, Any, HandlerResult]:
        """The rest of the coroutine, which runs already. ``awaited`` is what it awaits first."""
        coroutine = self._coroutine
        while True:
            step: Callable[[Any], Any]
            try:
                value = yield awaited
            except GeneratorExit:
                outer = self._steps.enter(self)
                try:
                    coroutine.close()
                finally:
                    self._steps.leave(outer)
                raise
            except BaseException as e:
                step, value = coroutine.throw, e
            else:
                step = coroutine.send
            outer = self._steps.enter(self)
            try:
                awaited = step(value)
            except StopIteration as e:
                result: HandlerResult = e.value
                return result
            finally:
                self._steps.leave(outer)

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


def _fault_of(failure: Failure) -> Fault:
    assert failure.value is not None
    return handler_raised(failure.value)
