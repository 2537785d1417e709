"""One attempt: from a claimed task to its outcome. It knows neither store nor broker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
from taskd.worker.context import TaskContext
from taskd.worker.executors.executor import IExecution
from taskd.worker.executors.reactor import CANCEL_SECONDS
from taskd.worker.forkserver.client import OutputListener
from taskd.worker.handler_results import Fault, Success
from taskd.worker.programs import Command


class AttemptStopped(Exception):
    """The attempt was ended from outside, by :meth:`Attempt.stop`. It has no outcome."""


class _Rules:
    """What holds for an attempt: how long it may take, in seconds, and how often and when its task is tried again."""

    __slots__ = ("_backoff", "_chance", "limit", "max_attempts")

    def __init__(self, task: Task, kind: ITaskHandler | Command | None, chance: Callable[[], float]) -> None:
        limits = [task.timeout, kind.timeout if kind is not None else None]
        self.limit = min((seconds for seconds in limits if seconds is not None), default=None)
        self.max_attempts = task.max_attempts or (kind.max_attempts if kind is not None else DEFAULT_ATTEMPTS)
        self._backoff = kind.backoff if kind is not None else Backoff()
        self._chance = chance

    def delay(self, failures: int) -> float:
        return min(self._backoff.delay(failures, self._chance()), MAX_DELAY_SECONDS)


class _Hearing:
    """Passes on what a task says until its attempt has ended."""

    def __init__(self, said: OutputListener) -> None:
        self._said: OutputListener | None = said

    def progress(self, fraction: float, note: str) -> None:
        if self._said is not None:
            self._said.progress(fraction, note)

    def lines(self, lines: Sequence[str], dropped: int) -> None:
        if self._said is not None:
            self._said.lines(lines, dropped)

    def close(self) -> None:
        self._said = None


class Attempt:
    """One task while a handler has it.

    ``done`` fires with its Outcome, or fails with Stopped. Its slot is ``free`` then, but for a thread, which cannot be
    ended, and an async handler that ignores its cancellation: those keep the slot until they really end, and what they
    return then is dropped. ``over`` is called with it in the end.
    """

    _log = Logger()

    def __init__(
        self, task: Task, clock: IReactorTime, rules: _Rules, hearing: _Hearing, over: Callable[[Attempt], None]
    ) -> None:
        self.task = task
        self.done: Deferred[Outcome] = Deferred()
        self.free = False
        self.stopped = False
        self._freed: Deferred[None] | None = None
        self._over = over
        self._clock = clock
        self._rules = rules
        self._hearing = hearing
        self._way: IExecution | None = None
        self._context: TaskContext | None = None
        self._late = False
        self._settled = False
        self._hung = False
        self._timer: IDelayedCall | None = None

    @property
    def freed(self) -> Deferred[None]:
        """Fires when its slot is free."""
        if self._freed is None:
            self._freed = succeed(None) if self.free else Deferred()
        return self._freed

    def stop(self) -> None:
        """End it. Whatever the handler makes of that does not count. Once there is an outcome, this changes nothing."""
        ending, self.stopped = self.stopped or self._late, True
        if not self._settled and not ending:
            self._cancel()

    # the runner's

    def begin(self, way: IExecution, context: TaskContext | None) -> None:
        """Have the handler run, and its time as well."""
        self._way, self._context = way, context
        if self._rules.limit is not None:
            self._timer = self._clock.callLater(self._rules.limit, self._out_of_time)
        way.begin(self.end)

    def end(self, ending: Success | Fault) -> None:
        """Nothing of it runs any more."""
        self._set_timer(None)
        if self._hung:
            self._log.info("task {id} ({kind}) attempt {attempt} has ended at last", **self._ids)
        if not self._settled:
            self._settle(ending)
        self.free = True
        self._over(self)
        if self._freed is not None:
            self._freed.callback(None)

    def _out_of_time(self) -> None:
        self._timer = None
        self._late = True
        self._cancel()

    def _cancel(self) -> None:
        assert self._way is not None
        self._set_timer(None)
        if self._context is not None:
            self._context.cancel()
        patience = self._way.patience
        if patience is not None:
            self._set_timer(patience or CANCEL_SECONDS)
        try:
            self._way.cancel()
        except Exception:
            # what the handler awaits has a canceller of somebody else's
            self._log.failure("task {id} ({kind}) attempt {attempt} could not be cancelled", **self._ids)
        if patience == 0 and not self._settled:
            if self._late:
                self._hangs()
            else:
                self._settle(Fault("stopped"))

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None if seconds is None else self._clock.callLater(seconds, self._hangs)

    def _hangs(self) -> None:
        """It should have ended: say where it stands, and wait no longer for its outcome."""
        assert self._way is not None
        self._hung = True
        self._set_timer(None)
        place = self._way.place()
        what = f"{place.line} {self._way.stubborn}: its slot stays taken until it ends"
        self._log.warn("task {id} ({kind}) attempt {attempt}: {what}", what=what, **self._ids)
        self._hearing.lines([what[:MAX_LINE_CHARS]], 0)
        if not self._settled:
            self._settle(Fault("still running", place.trace))

    def _settle(self, ending: Success | Fault) -> None:
        self._settled = True
        self._hearing.close()
        if self._context is not None:
            self._context.close()
        if self.stopped:
            self.done.errback(AttemptStopped())
            return
        if self._late:
            trace = ending.trace if isinstance(ending, Fault) else None
            ending = Fault(f"took longer than {self._rules.limit:.15g} s", trace)
        self.done.callback(self._outcome(ending))

    def _outcome(self, ending: Success | Fault) -> Outcome:
        task, rules = self.task, self._rules
        if isinstance(ending, Success):
            return Outcome(task.id, task.dispatch, task.attempt, State.COMPLETED, ending.result)
        if ending.cause is not None:
            cause = Failure(ending.cause, type(ending.cause), ending.cause.__traceback__)
            self._log.failure("task {id} ({kind}) attempt {attempt} failed", cause, **self._ids)
        else:
            self._log.warn("task {id} ({kind}) attempt {attempt} failed: {why}", why=ending.error, **self._ids)
        state, delay = State.FAILED, 0.0
        if not ending.final and task.attempt < rules.max_attempts:
            state = State.WAITING
            delay = ending.after if ending.after is not None else rules.delay(task.attempt)
        return Outcome(task.id, task.dispatch, task.attempt, state, error=ending.error, trace=ending.trace, delay=delay)

    @property
    def _ids(self) -> dict[str, Any]:
        return {"id": self.task.id, "kind": self.task.kind, "attempt": self.task.attempt}
