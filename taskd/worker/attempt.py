"""One attempt: from its begin to its outcome. It knows neither store nor broker, nor how the handler is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.model.backoff import Backoff
from taskd.model.limits import DEFAULT_ATTEMPTS, MAX_DELAY_SECONDS, MAX_LINE_CHARS
from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.ports.attempts import Outcome
from taskd.ports.handler import ITaskHandler
from taskd.worker.context import OutputListener, TaskContext
from taskd.worker.executors import forks
from taskd.worker.handler_results import Fault, HandlerResult, Success
from taskd.worker.programs import Command

CANCEL_SECONDS = 5.0
"""What a handler gets to end after it is cancelled. Then the log says where it hangs."""


class AttemptStopped(Exception):
    """:meth:`Attempt.stop` ended the attempt. It has no outcome."""


class Place(NamedTuple):
    """Where a handler is at this moment: one line, and the stack if there is one."""

    line: str
    trace: str | None = None


class IExecution(Protocol):
    """The handler of one attempt while it runs. It calls :meth:`Attempt.end` when nothing of it runs any more."""

    patience: float | None
    """Seconds that the outcome waits for the end after :meth:`cancel`. None: the end always comes, however late."""

    stubborn: str
    """What the log says about a handler that does not end, after its place."""

    def cancel(self) -> None:
        """Ask it to end soon."""

    def place(self) -> Place:
        """Where it is at this moment."""


class Attempt:
    """One task while a handler runs it. It passes the handler's output on to ``listener`` until it has its outcome.

    ``done`` fires with the Outcome, or fails with AttemptStopped. Then the slot is ``free``, with two exceptions: a
    thread cannot be ended, and an async handler may ignore its cancellation. They keep the slot until they end, and
    their result is dropped. ``ended`` is called with the attempt at that end.

    ``kind`` has the limits of the task's kind, None if nothing serves it. ``chance`` gives random numbers from 0 to 1.
    """

    _log = Logger()

    def __init__(
        self,
        task: Task,
        clock: IReactorTime,
        kind: ITaskHandler | Command | None,
        chance: Callable[[], float],
        listener: OutputListener,
        ended: Callable[[Attempt], None],
    ) -> None:
        self.task = task
        self.max_attempts = task.max_attempts or (kind.max_attempts if kind is not None else DEFAULT_ATTEMPTS)
        self.outcome: Outcome | None = None
        """Set when ``done`` fires with it."""
        self.free = False
        self.stopped = False
        self.hung = False
        """Its handler should have ended and has not: it keeps its slot."""
        self.execution: IExecution | None = None
        """Set by the executor before it calls the handler, as is ``context``."""
        self.context: TaskContext | None = None
        # Deferreds are made for those who ask: most attempts end before anybody can
        self._done: Deferred[Outcome] | None = None
        self._settled = False
        self._freed: Deferred[None] | None = None
        self._clock = clock
        self._backoff = kind.backoff if kind is not None else Backoff()
        self._chance = chance
        self._listener: OutputListener | None = listener
        self._ended = ended
        self._late = False
        limits = [task.timeout, kind.timeout if kind is not None else None]
        self._timeout = min((seconds for seconds in limits if seconds is not None), default=None)
        self._timer: IDelayedCall | None = None
        if self._timeout is not None:
            self._timer = clock.callLater(self._timeout, self._time_out)

    @property
    def done(self) -> Deferred[Outcome]:
        """Fires with the outcome, or fails with AttemptStopped."""
        if self._done is None:
            self._done = Deferred()
            if self._settled:
                self._fire(self._done)
        return self._done

    @property
    def freed(self) -> Deferred[None]:
        """Fires when the slot is free."""
        if self._freed is None:
            self._freed = succeed(None) if self.free else Deferred()
        return self._freed

    def stop(self) -> None:
        """End the attempt without an outcome, whatever the handler does then. No effect once there is an outcome."""
        is_ending, self.stopped = self.stopped or self._late, True
        if not self._settled and not is_ending:
            self._cancel()

    # -- output of the handler

    def progress(self, fraction: float, note: str) -> None:
        """Pass on a progress."""
        if self._listener is not None and not forks.in_copy:
            self._listener.progress(fraction, note)

    def lines(self, lines: Sequence[str], dropped: int) -> None:
        """Pass on log lines."""
        if self._listener is not None and not forks.in_copy:
            self._listener.lines(lines, dropped)

    # -- end of the handler

    def end(self, result: HandlerResult) -> None:
        """Nothing of the handler runs any more."""
        self._set_timer(None)
        if self.hung:
            self._log.info("task {id} ({kind}) attempt {attempt} that did not end has ended now", **self._ids)
        if not self._settled:
            self._settle(result)
        self.free = True
        # both refer to this attempt: no work for the garbage collector
        self.execution = self.context = None
        self._ended(self)
        if self._freed is not None:
            self._freed.callback(None)

    def _time_out(self) -> None:
        self._timer = None
        self._late = True
        self._cancel()

    def _cancel(self) -> None:
        execution = self.execution
        assert execution is not None
        self._set_timer(None)
        if self.context is not None:
            self.context.cancel()
        if execution.patience is not None:
            self._set_timer(execution.patience or CANCEL_SECONDS)
        try:
            execution.cancel()
        except Exception:
            # the handler awaits a Deferred whose canceller fails
            self._log.failure("task {id} ({kind}) attempt {attempt} could not be cancelled", **self._ids)
        if execution.patience == 0 and not self._settled:
            if self._late:
                self._hangs()
            else:
                self._settle(Fault("stopped"))

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None if seconds is None else self._clock.callLater(seconds, self._hangs)

    def _hangs(self) -> None:
        """The handler should have ended: log where it is, and do not wait for its result any longer."""
        assert self.execution is not None
        self.hung = True
        self._set_timer(None)
        try:
            place = self.execution.place()
        except Exception:
            # the handler's own objects are asked for its code
            self._log.failure("task {id} ({kind}) attempt {attempt} cannot be located", **self._ids)
            place = Place(self.task.kind)
        what = f"{place.line} {self.execution.stubborn}: its slot stays taken until it ends"
        self._log.warn("task {id} ({kind}) attempt {attempt}: {what}", what=what, **self._ids)
        self.lines([what[:MAX_LINE_CHARS]], 0)
        if not self._settled:
            self._settle(Fault("still running", place.trace))

    def _settle(self, result: HandlerResult) -> None:
        self._listener = None
        if self.context is not None:
            self.context.close()
        if not self.stopped:
            if self._late:
                trace = result.trace if isinstance(result, Fault) else None
                result = Fault(f"took longer than {self._timeout:.15g} s", trace)
            self.outcome = self._outcome(result)
        self._settled = True
        if self._done is not None:
            self._fire(self._done)

    def _fire(self, done: Deferred[Outcome]) -> None:
        if self.outcome is None:
            done.errback(AttemptStopped())
        else:
            done.callback(self.outcome)

    def _outcome(self, result: HandlerResult) -> Outcome:
        task = self.task
        if isinstance(result, Success):
            return Outcome(task.id, task.dispatch, task.attempt, State.COMPLETED, result.result)
        if result.cause is not None:
            cause = Failure(result.cause, type(result.cause), result.cause.__traceback__)
            self._log.failure("task {id} ({kind}) attempt {attempt} failed", cause, **self._ids)
        else:
            self._log.warn("task {id} ({kind}) attempt {attempt} failed: {why}", why=result.error, **self._ids)
        state, delay = State.FAILED, 0.0
        if not result.final and task.attempt < self.max_attempts:
            state = State.WAITING
            delay = result.after if result.after is not None else self._backoff_delay()
        return Outcome(task.id, task.dispatch, task.attempt, state, error=result.error, trace=result.trace, delay=delay)

    def _backoff_delay(self) -> float:
        return min(self._backoff.delay(self.task.attempt, self._chance()), MAX_DELAY_SECONDS)

    @property
    def _ids(self) -> dict[str, Any]:
        return {"id": self.task.id, "kind": self.task.kind, "attempt": self.task.attempt}
