"""Gives tasks back to the store, their attempts unspent, and stops what of them runs."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.batching import Batcher
from taskd.events.publisher import RETURNS_TOLD, Publisher
from taskd.model.errors import Unavailable
from taskd.model.tasks import Task
from taskd.ports.attempts import Held
from taskd.ports.store import IStore
from taskd.worker.attempt import CANCEL_SECONDS
from taskd.worker.held import HeldState, HeldTask, HeldTasks
from taskd.worker.identity import Identity
from taskd.worker.reports import Reports

AGAIN_AFTER = 1.0
"""Seconds until a task is given back again if the store was away."""


class Returns:
    """A task that goes back is held until the store has answered. Whatever the answer, that assignment never begins
    here."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        publisher: Publisher,
        reports: Reports,
        held: HeldTasks,
        identity: Identity,
    ) -> None:
        self._clock = clock
        self._store = store
        self._publisher = publisher
        self._reports = reports
        self._held = held
        self._identity = identity
        self._batcher: Batcher[HeldTask, None] = Batcher(clock, self._release)

    def give_back(self, held: HeldTask) -> None:
        """Give it back as soon as nothing of it runs here. What has its outcome is left alone: the store decides
        whether that counts."""
        before = held.state
        if before is HeldState.WAITING:
            held.pool.remove(held)
            self.send(held)
        elif before is HeldState.BEGINNING:
            # sent by whoever waits for the store's answer
            held.state = HeldState.RETURNING
        elif before is HeldState.RUNNING:
            held.state = HeldState.RETURNING
            self._stop(held)
            if not held.sent:
                self._clock.callLater(CANCEL_SECONDS, self._send_hung, held)

    def drop(self, held: HeldTask) -> None:
        """The task was taken back: stop its attempt and forget it. Its outcome and reports do not count, so the worker
        does not send them."""
        before, held.state = held.state, HeldState.DROPPED
        if before is HeldState.WAITING:
            held.pool.remove(held)
        attempt = held.attempt
        if attempt is not None and not attempt.done.called:
            self._held.leaving.add(held)
            self._reports.end(held.buffer)
            self._stop(held)
        self._held.forget(held)

    def send(self, held: HeldTask) -> None:
        """Give it back now."""
        if held.sent or held.state is HeldState.DROPPED:
            return
        held.state = HeldState.RETURNING
        held.sent = True
        # what it has said while it was stopped is stored first: afterwards no report counts
        reported = self._reports.end(held.buffer)
        if reported is None:
            self._submit(held)
        else:
            reported.addCallback(lambda _: self._submit(held))

    def give_back_all(self) -> None:
        """Stop all that runs, and give everything back."""
        for held in tuple(self._held.tasks.values()):
            self.give_back(held)

    def send_all(self) -> None:
        """Give back what should have ended by now, although something of it may still run."""
        for held in tuple(self._held.tasks.values()):
            if held.state is HeldState.RETURNING:
                self.send(held)

    async def release(self, unknown: Sequence[Held]) -> None:
        """Give back what stands under the worker's name and is not known here. Raises Unavailable."""
        for task_id, dispatch in unknown:
            self._held.settle(task_id, dispatch)
        await self._give_back(unknown)

    def _stop(self, held: HeldTask) -> None:
        assert held.attempt is not None
        try:
            held.attempt.stop()
        except Exception:
            self._log.failure("task {id} ({kind}) could not be stopped", id=held.task.id, kind=held.task.kind)

    def _send_hung(self, held: HeldTask) -> None:
        """A handler that ignores its end must not keep the task from running again elsewhere."""
        if held.state is HeldState.RETURNING and not held.sent:
            if held.attempt is not None and held.attempt.hung:
                self.send(held)
            else:
                self._clock.callLater(AGAIN_AFTER, self._send_hung, held)

    def _submit(self, held: HeldTask) -> None:
        if held.state is not HeldState.DROPPED:
            self._batcher.submit(held).addCallbacks(
                self._released, self._not_released, callbackArgs=(held,), errbackArgs=(held,)
            )

    async def _release(self, batch: Sequence[HeldTask]) -> Sequence[None]:
        ours = [held for held in batch if held.state is not HeldState.DROPPED]
        if ours:
            await self._give_back([held.in_store for held in ours])
        # servers heard of the cancellation, but not that the handler has stopped
        if routes := [held.task.route for held in ours if held.unwanted]:
            self._publisher.publish_routes(routes)
        return [None] * len(batch)

    async def _give_back(self, held: Sequence[Held]) -> None:
        stopping = self._held.draining
        released = await self._store.release(self._identity.name, held, stopping)
        if not released:
            return
        self._log.info("{count} tasks given back", count=len(released))
        if not stopping:
            self._publisher.publish(released)
            return
        # what had not begun here is no return: a server may have assigned it before it knew that this worker stops
        returned = [task for task in released if self._is_return(task)]
        for task in returned:
            if task.returns >= RETURNS_TOLD:
                text = "task {id} ({kind}) has been given back {returns} times by workers that were stopping"
                self._log.warn(text, id=task.id, kind=task.kind, returns=task.returns)
        self._publisher.publish([task for task in released if not self._is_return(task)])
        self._publisher.publish_returned(returned)

    def _is_return(self, task: Task) -> bool:
        held = self._held.tasks.get(task.id)
        return held is None or held.task.returns < task.returns

    def _released(self, _: None, held: HeldTask) -> None:
        self._held.forget(held)

    def _not_released(self, failure: Failure, held: HeldTask) -> None:
        if failure.check(Unavailable):
            self._clock.callLater(AGAIN_AFTER, self._submit, held)
        else:
            # it stands there and is not known here: the next comparisons give it back
            self._log.failure("task {id} could not be given back", failure, id=held.task.id)
            self._held.forget(held)
