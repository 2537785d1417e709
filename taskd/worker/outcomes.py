"""Runs claimed tasks, and stores how their attempts ended, in batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.batching import Batcher
from taskd.events.publisher import Publisher
from taskd.model.errors import TaskdError, Unavailable
from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.ports.attempts import Claim, Finished, Outcome
from taskd.ports.store import IStore
from taskd.worker.attempt import AttemptStopped
from taskd.worker.held import HeldState, HeldTask, HeldTasks, ack, claim_number
from taskd.worker.reclaim import Reclaim
from taskd.worker.reports import ReportBuffer, Reports
from taskd.worker.runner import Runner

AGAIN_AFTER = 1.0
"""Seconds until an outcome is stored again if the store was away."""


class Outcomes:
    """From the claim of a task to its stored outcome and the ack of its delivery. ``name`` is the worker's."""

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
        name: str,
    ) -> None:
        self._clock = clock
        self._store = store
        self._publisher = publisher
        self._runner = runner
        self._reports = reports
        self._held = held
        self._reclaim = reclaim
        self._name = name
        self._ends: Batcher[HeldTask, Finished | None] = Batcher(clock, self._finish)
        self._returns: Batcher[HeldTask, None] = Batcher(clock, self._return)

    def begin(self, held: HeldTask, task: Task, username: str, on_end: Callable[[HeldTask], None]) -> None:
        """Run a claimed task. ``on_end`` is called when the worker holds it no longer; its slot may be free earlier, or
        later if the handler hangs."""
        held.since = self._clock.seconds()
        held.state = HeldState.RUNNING
        held.on_end = on_end
        self._held.running[task.id] = held
        held.buffer = self._reports.buffer(task)
        held.attempt = self._runner.run(task, username, held.buffer)
        held.attempt.done.addCallbacks(self._ended, self._stopped, callbackArgs=(held,), errbackArgs=(held,))
        if held.attempt.free:
            # Most often, for a handler that waits for nothing. The next claim waits for the end of this batch.
            held.pool.release()
        else:
            held.attempt.freed.addBoth(self._freed, held)

    async def release(self, claimed: Sequence[tuple[HeldTask, Task]]) -> None:
        """Give tasks back to the store, their attempts unspent. Never fails."""
        if not claimed:
            return
        try:
            released = await self._store.release(self._name, [Claim(t.id, t.dispatch, False) for _, t in claimed])
        except TaskdError as e:
            text = "{count} tasks could not be given back, their leases will expire: {why}"
            self._log.warn(text, count=len(claimed), why=e.message)
            return
        self._log.info("{count} tasks given back", count=len(released))
        self._publisher.publish(released)
        ack(held for held, _ in claimed)

    def stop_all(self) -> None:
        """Stop every attempt that has no outcome yet. Each goes back to the store when nothing of it runs any more."""
        for held in tuple(self._held.running.values()):
            if held.attempt is not None and held.state is HeldState.RUNNING:
                held.state = HeldState.RETURNING
                held.attempt.stop()

    async def release_stopped(self) -> None:
        """Give back the stopped attempts that have not ended in time."""
        await self._return([held for held in self._held.running.values() if held.state is HeldState.RETURNING])

    # -- the end of an attempt

    def _freed(self, _: object, held: HeldTask) -> None:
        held.pool.release()
        if held.pool.waiting:
            held.pool.fill()

    def _ended(self, outcome: Outcome, held: HeldTask) -> None:
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
            self._forget(held)

    def _returned(self, _: object, held: HeldTask) -> None:
        self._forget(held)

    async def _return(self, batch: Sequence[HeldTask]) -> Sequence[None]:
        await self.release([(held, held.attempt.task) for held in batch if held.attempt is not None])
        return [None] * len(batch)

    # -- the outcome

    def _submit(self, held: HeldTask) -> None:
        self._ends.submit(held).addCallbacks(
            self._finished, self._not_finished, callbackArgs=(held,), errbackArgs=(held,)
        )

    async def _finish(self, batch: list[HeldTask]) -> Sequence[Finished | None]:
        ends = [(held, held.attempt.task, held.outcome) for held in batch if held.attempt and held.outcome]
        again = any(held.stored_before for held in batch)
        found = dict(await self._store.finish(self._name, [outcome for _, _, outcome in ends], again))
        fenced = [held for held, task, _ in ends if task.id not in found]
        if fenced and (ours := await self._reclaim.reclaim(fenced)):
            outcomes = [outcome for held, _, outcome in ends if held in ours]
            found |= await self._store.finish(self._name, outcomes, again)
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
        self._forget(held)

    def _not_finished(self, failure: Failure, held: HeldTask) -> None:
        error, outcome = failure.value, held.outcome
        assert outcome is not None
        if isinstance(error, Unavailable):
            held.stored_before = True
            self._clock.callLater(AGAIN_AFTER, self._submit, held)
        elif isinstance(error, TaskdError) and outcome.state is State.COMPLETED:
            why = f"the result cannot be stored: {error.message}"
            held.outcome = Outcome(outcome.task_id, outcome.dispatch, outcome.attempt, State.FAILED, error=why)
            self._submit(held)
        else:
            text = "the outcome of task {id} cannot be stored, its lease will expire"
            self._log.failure(text, failure, id=outcome.task_id)
            self._forget(held)

    def _forget(self, held: HeldTask) -> None:
        assert held.attempt is not None
        task = held.attempt.task
        if self._held.running.get(task.id) is held:
            del self._held.running[task.id]
        self._close(held.buffer)
        for other in self._held.claiming.get(task.id, ()):
            other.ended_claim = max(other.ended_claim, claim_number(task))
        held.on_end(held)


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
