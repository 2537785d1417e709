"""Runs tasks, and stores how their attempts ended, in batches."""

from __future__ import annotations

import copy

from msgspec.structs import replace
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.batching import ItemBatcher
from taskd.events.publisher import Publisher
from taskd.model.errors import TaskdError, Unavailable
from taskd.model.quotas import text_bytes
from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.ports.attempts import Finished, Outcome
from taskd.ports.store import IStore
from taskd.usage_log import UsageLog
from taskd.worker.attempt import AttemptStopped
from taskd.worker.held import HeldState, HeldTask, HeldTasks
from taskd.worker.identity import Identity
from taskd.worker.marks import Marks
from taskd.worker.means import Means
from taskd.worker.reports import Reports
from taskd.worker.returns import Returns
from taskd.worker.runner import Runner

AGAIN_AFTER = 1.0
"""Seconds until an outcome is stored again if the store was away."""


class Outcomes:
    """From the call of a task's handler to its stored outcome."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        publisher: Publisher,
        runner: Runner,
        reports: Reports,
        held: HeldTasks,
        returns: Returns,
        marks: Marks,
        means: Means,
        identity: Identity,
        usage: UsageLog,
    ) -> None:
        self._clock = clock
        self._store = store
        self._publisher = publisher
        self._runner = runner
        self._reports = reports
        self._held = held
        self._returns = returns
        self._marks = marks
        self._means = means
        self._identity = identity
        self._usage = usage
        self._ended_at_once: list[HeldTask] = []
        self._ends: ItemBatcher[HeldTask] = ItemBatcher(clock, self._finish, self._not_finished)

    def run(self, held: HeldTask) -> None:
        """Run a task that has a slot. Its slot may be free before its outcome is stored, or later if the handler
        hangs."""
        task = held.task
        held.began = self._clock.seconds()
        held.state = HeldState.RUNNING
        held.buffer = self._reports.buffer(task)
        held.attempt = attempt = self._runner.run(task, held.user, held.buffer)
        if attempt.outcome is not None:
            self._ended(attempt.outcome, held)
        else:
            attempt.done.addCallbacks(self._ended, self._stopped, callbackArgs=(held,), errbackArgs=(held,))
        if attempt.free:
            # Most often, for a handler that waits for nothing. It keeps its slot until the reactor comes round: so the
            # time that the reactor takes for each task shows in the means, and no pool takes all of it at a stretch.
            if not self._ended_at_once:
                self._clock.callLater(0, self._free_ended)
            self._ended_at_once.append(held)
        else:
            if task.state is not State.RUNNING:
                self._marks.add(held)
            attempt.freed.addBoth(self._freed, held)

    def flush(self) -> None:
        """Store at once what has ended: all that a look has brought has begun."""
        self._ends.flush()

    # -- the end of an attempt

    def _free_ended(self) -> None:
        ended, self._ended_at_once = self._ended_at_once, []
        for held in ended:
            self._free(held)
        for pool in {held.pool for held in ended}:
            pool.fill()

    def _free(self, held: HeldTask) -> None:
        held.pool.release(held)
        self._means.ended(held)
        if held.on_free is not None:
            held.on_free(held)

    def _freed(self, _: object, held: HeldTask) -> None:
        self._marks.remove(held)
        self._free(held)
        if held.state is HeldState.RETURNING:
            self._returns.send(held)
        held.pool.fill()

    def _ended(self, outcome: Outcome, held: HeldTask) -> None:
        if held.state is HeldState.DROPPED:
            self._left(held)
            return
        held.state = HeldState.FINISHING
        held.outcome = outcome
        # its reports are stored before its outcome, after which no report counts
        reported = self._reports.end(held.buffer)
        if reported is None:
            self._ends.add(held)
        else:
            reported.addCallback(self._reported, held)

    def _reported(self, _: None, held: HeldTask) -> None:
        self._ends.add(held)

    def _stopped(self, failure: Failure, held: HeldTask) -> None:
        if held.state is HeldState.DROPPED:
            self._left(held)
        elif not failure.check(AttemptStopped):
            self._log.failure("an attempt ended without an outcome", failure)
            self._reports.end(held.buffer)
            self._returns.send(held)
        elif held.attempt is not None and held.attempt.hung:
            # others go back when their slots are free
            self._returns.send(held)

    def _left(self, held: HeldTask) -> None:
        self._held.leaving.discard(held)
        self._held.check_idle()

    # -- the outcome

    async def _finish(self, batch: list[HeldTask]) -> None:
        now = self._clock.seconds()
        ours = {held: held.outcome for held in batch if held.state is not HeldState.DROPPED}
        if not ours:
            return
        outcomes = [replace(outcome, age=now - held.began) for held, outcome in ours.items() if outcome is not None]
        again = any(held.stored_before for held in ours)
        found = await self._store.finish(self._identity.name, outcomes, again)
        changed: list[Task] = []
        for held, outcome in ours.items():
            finished = found.get(held.task.id)
            if finished is not None and finished.version and outcome is not None:
                changed.append(_after(held.task, outcome, finished))
                if outcome.result and outcome.state is not State.WAITING:
                    self._usage.add(held.task.user_id, 0, text_bytes(outcome.result))
        self._publisher.publish(changed)
        self._publisher.flush()
        for held in ours:
            try:
                self._finished(found.get(held.task.id), held)
            except Exception:
                self._log.failure("task {id} has ended and could not be forgotten", id=held.task.id)

    def _finished(self, finished: Finished | None, held: HeldTask) -> None:
        if finished is not None:
            self._held.forget(held)
        elif held.state is not HeldState.DROPPED:
            # it was cancelled, or taken back: the store knows which, and waits in the former case for this
            self._log.info("the outcome of task {id} does not count", id=held.task.id)
            self._returns.send(held)

    def _not_finished(self, failure: Failure, held: HeldTask) -> None:
        error, outcome = failure.value, held.outcome
        assert outcome is not None
        if isinstance(error, Unavailable):
            held.stored_before = True
            self._clock.callLater(AGAIN_AFTER, self._ends.add, held)
        elif not held.plain:
            held.plain = True
            held.outcome = _unstorable(outcome, error)
            self._log.failure("the outcome of task {id} cannot be stored: it fails", failure, id=outcome.task_id)
            self._ends.add(held)
        else:
            text = "task {id} cannot fail either, it goes back to the store"
            self._log.failure(text, failure, id=outcome.task_id)
            self._returns.send(held)


def _unstorable(outcome: Outcome, error: BaseException | None) -> Outcome:
    """A failure in plain text in place of an outcome that cannot be stored."""
    what = "result" if outcome.state is State.COMPLETED else "error"
    why = error.message if isinstance(error, TaskdError) else type(error).__name__
    text = f"the {what} cannot be stored: {why}"
    return Outcome(outcome.task_id, outcome.dispatch, outcome.attempt, State.FAILED, error=text)


def _after(task: Task, outcome: Outcome, finished: Finished) -> Task:
    """The task as the store has it after this outcome."""
    if outcome.state is State.WAITING or task.losses:
        # a handler that hangs keeps its own task object: its losses still count
        task = copy.copy(task)
        task.losses = 0
    task.started_at = finished.started_at
    if outcome.state is State.WAITING:
        task.started_at = task.progress = task.note = None
        task.run_at = finished.run_at or task.run_at
    task.state, task.result, task.error = outcome.state, outcome.result, outcome.error
    task.version, task.finished_at = finished.version, finished.finished_at
    return task
