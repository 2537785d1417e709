"""Runs claimed tasks, and stores how their attempts ended, in batches."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.batching import Batcher
from taskd.events.publisher import RETURNS_TOLD, Publisher
from taskd.model.errors import TaskdError, Unavailable
from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.ports.attempts import Finished, Held, Outcome
from taskd.ports.store import IStore
from taskd.worker.attempt import Attempt, AttemptStopped
from taskd.worker.held import HeldState, HeldTask, HeldTasks, ack, claim_number
from taskd.worker.identity import Identity
from taskd.worker.reclaim import Reclaim
from taskd.worker.reports import ReportBuffer, Reports
from taskd.worker.runner import Runner

AGAIN_AFTER = 1.0
"""Seconds until an outcome is stored again if the store was away."""


class Outcomes:
    """From the claim of a task to its stored outcome and the ack of its delivery."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        publisher: Publisher,
        runner: Runner,
        reports: Reports,
        held: HeldTasks,
        reclaim: Reclaim,
        identity: Identity,
    ) -> None:
        self._clock = clock
        self._store = store
        self._publisher = publisher
        self._runner = runner
        self._reports = reports
        self._held = held
        self._reclaim = reclaim
        self._identity = identity
        self._ends: Batcher[HeldTask, Finished | None] = Batcher(clock, self._finish)
        self._returns: Batcher[HeldTask, None] = Batcher(clock, self._return)

    def begin(self, held: HeldTask) -> None:
        """Run a claimed task. Its slot may be free before the worker holds it no longer, or later if the handler
        hangs."""
        task = held.task
        assert task is not None
        held.since = self._clock.seconds()
        held.state = HeldState.RUNNING
        self._held.running[task.id] = held
        held.buffer = self._reports.buffer(task)
        held.attempt = self._runner.run(task, held.user, held.buffer)
        held.attempt.done.addCallbacks(self._ended, self._stopped, callbackArgs=(held,), errbackArgs=(held,))
        if held.attempt.free:
            # Most often, for a handler that waits for nothing. The next claim waits for the end of this batch.
            self._release(held)
        else:
            held.attempt.freed.addBoth(self._freed, held)

    def drop(self, held: HeldTask) -> None:
        """It is not this worker's any more: stop it. Nothing that comes of it counts."""
        ack([held])
        before, held.state = held.state, HeldState.DROPPED
        self._close(held.buffer)
        if before is HeldState.WAITING:
            self.forget(held)
        elif held.attempt is not None:
            self._stop(held.attempt)

    async def release(self, claimed: Sequence[HeldTask]) -> None:
        """Give tasks back to the store, their attempts unspent. Never fails."""
        ours = [held for held in claimed if held.worker == self._identity.name and held.state is not HeldState.DROPPED]
        if not ours or await self.give_back([held.in_store for held in ours]):
            ack(claimed)

    async def give_back(self, held: Sequence[Held]) -> bool:
        """Release what stands in the store under this worker's name. False if the store failed. Never fails."""
        stopping = self._held.draining
        try:
            released = await self._store.release(self._identity.name, held, stopping)
        except Exception as e:
            text = "{count} tasks could not be given back, servers take them back when this worker has ended: {why}"
            self._log.warn(text, count=len(held), why=str(e) or type(e).__name__)
            return False
        self._log.info("{count} tasks given back", count=len(released))
        for task in released:
            if stopping and task.returns >= RETURNS_TOLD:
                text = "task {id} ({kind}) has been given back {returns} times by workers that were stopping"
                self._log.warn(text, id=task.id, kind=task.kind, returns=task.returns)
        if stopping:
            self._publisher.publish_returned(released)
        else:
            self._publisher.publish(released)
        return True

    async def stop_all(self) -> None:
        """Stop every attempt that has no outcome yet. Each goes back to the store when nothing of it runs any more."""
        for held in tuple(self._held.running.values()):
            if held.attempt is not None and held.state is HeldState.RUNNING:
                held.state = HeldState.RETURNING
                self._stop(held.attempt)

    async def release_stopped(self) -> None:
        """Give back the stopped attempts that have not ended in time."""
        await self._return([held for held in self._held.running.values() if held.state is HeldState.RETURNING])

    def _stop(self, attempt: Attempt) -> None:
        try:
            attempt.stop()
        except Exception:
            self._log.failure("task {id} ({kind}) could not be stopped", id=attempt.task.id, kind=attempt.task.kind)

    # -- the end of an attempt

    def _release(self, held: HeldTask) -> None:
        held.pool.release()
        if held.on_free is not None:
            held.on_free(held)

    def _freed(self, _: object, held: HeldTask) -> None:
        self._release(held)
        if held.pool.waiting or held.pool.ahead:
            held.pool.fill()

    def _ended(self, outcome: Outcome, held: HeldTask) -> None:
        if held.state is HeldState.DROPPED:
            self.forget(held)
            return
        held.state = HeldState.FINISHING
        held.outcome = outcome
        # its reports are stored before its outcome, after which no report counts
        reported = self._close(held.buffer)
        if reported is None:
            self._submit(held)
        else:
            reported.addCallback(self._reported, held)

    def _close(self, buffer: ReportBuffer | None) -> Deferred[None] | None:
        if buffer is None or buffer.silent or buffer.closed:
            return None
        return self._reports.close(buffer)

    def _reported(self, _: None, held: HeldTask) -> None:
        self._submit(held)

    def _stopped(self, failure: Failure, held: HeldTask) -> None:
        if not failure.check(AttemptStopped):
            self._log.failure("an attempt ended without an outcome", failure)
        if held.state is HeldState.RETURNING:
            self._returns.submit(held).addBoth(self._returned, held)
        else:
            self.forget(held)

    def _returned(self, _: object, held: HeldTask) -> None:
        self.forget(held)

    async def _return(self, batch: Sequence[HeldTask]) -> Sequence[None]:
        await self.release(batch)
        return [None] * len(batch)

    # -- the outcome

    def _submit(self, held: HeldTask) -> None:
        self._ends.submit(held).addCallbacks(
            self._finished, self._not_finished, callbackArgs=(held,), errbackArgs=(held,)
        )

    async def _finish(self, batch: list[HeldTask]) -> Sequence[Finished | None]:
        ends = [(held, held.task, held.outcome) for held in batch if held.task and held.outcome]
        counting = [outcome for held, _, outcome in ends if held.state is not HeldState.DROPPED]
        again = any(held.stored_before for held in batch)
        found = dict(await self._store.finish(self._identity.name, counting, again)) if counting else {}
        fenced = [held for held, task, _ in ends if task.id not in found]
        if fenced and (ours := await self._reclaim.reclaim(fenced)):
            outcomes = [outcome for held, _, outcome in ends if held in ours]
            found |= await self._store.finish(self._identity.name, outcomes, again)
            if any(held.claim.task_id not in found for held in ours):
                raise Unavailable("the database has crashed again and has lost outcomes: they are stored again")
        # of two attempts of a task the later one fences the earlier one: the answer is the later one's
        last: dict[int, tuple[int, int]] = {}
        for _, task, _ in ends:
            last[task.id] = max(last.get(task.id, (0, 0)), (task.dispatch, task.attempt))
        changed, answers = [], []
        for _, task, outcome in ends:
            finished = found.get(task.id) if last[task.id] == (task.dispatch, task.attempt) else None
            answers.append(finished)
            if finished is not None and finished.version:
                changed.append(_after(task, outcome, finished))
        self._publisher.publish(changed)
        ack(batch)
        return answers

    def _finished(self, finished: Finished | None, held: HeldTask) -> None:
        if finished is None:
            text = "task {id} attempt {attempt} was fenced: its outcome does not count"
            self._log.info(text, id=held.claim.task_id, attempt=held.outcome and held.outcome.attempt)
        self.forget(held)

    def _not_finished(self, failure: Failure, held: HeldTask) -> None:
        error, outcome = failure.value, held.outcome
        assert outcome is not None
        if isinstance(error, Unavailable):
            held.stored_before = True
            self._clock.callLater(AGAIN_AFTER, self._submit, held)
        elif not held.plain:
            held.plain = True
            held.outcome = _unstorable(outcome, error)
            self._log.failure("the outcome of task {id} cannot be stored: it fails", failure, id=outcome.task_id)
            self._submit(held)
        else:
            text = "task {id} cannot fail either, it goes back to the store"
            self._log.failure(text, failure, id=outcome.task_id)
            self.forget(held)

    def forget(self, held: HeldTask) -> None:
        """The worker holds this task no longer."""
        assert held.task is not None
        task = held.task
        if self._held.running.get(task.id) is held:
            del self._held.running[task.id]
        self._close(held.buffer)
        for other in self._held.claiming.get(task.id, ()):
            other.ended_claim = max(other.ended_claim, claim_number(task))
        held.on_end(held)


def _unstorable(outcome: Outcome, error: BaseException | None) -> Outcome:
    """A failure in plain text in place of an outcome that cannot be stored."""
    what = "result" if outcome.state is State.COMPLETED else "error"
    why = error.message if isinstance(error, TaskdError) else type(error).__name__
    text = f"the {what} cannot be stored: {why}"
    return Outcome(outcome.task_id, outcome.dispatch, outcome.attempt, State.FAILED, error=text)


def _after(task: Task, outcome: Outcome, finished: Finished) -> Task:
    """The task as the store has it after this outcome."""
    if outcome.state is State.WAITING:
        # the attempt keeps its own task object, which identifies it
        task = copy.copy(task)
        task.started_at = task.progress = task.note = None
        task.run_at = finished.run_at or task.run_at
    task.state, task.result, task.error = outcome.state, outcome.result, outcome.error
    task.version, task.finished_at = finished.version, finished.finished_at
    return task
