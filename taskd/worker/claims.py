"""Claims tasks for free slots, in batches, and begins what was claimed."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import chain

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.batching import Batcher
from taskd.events.publisher import Publisher
from taskd.model.errors import Unavailable
from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.ports.attempts import Claim
from taskd.ports.store import IStore
from taskd.worker.held import NO_CLAIM, HeldTask, HeldTasks, ack, claim_number, requeue
from taskd.worker.outcomes import Outcomes
from taskd.worker.slots import SlotPool

AGAIN_AFTER = 1.0
"""Seconds until a claim is sent again if the store was away."""

MAX_USERNAMES = 10_000
"""Names of users to remember."""


class Claims:
    """``slots`` says for each of :data:`taskd.ports.handler.ISOLATIONS` how many tasks run at a time; ``pools`` has
    their slots. ``name`` is the worker's, ``lease`` is in seconds.

    ``last_attempts`` has what would be the last attempt of a task whose attempt before was lost with its worker. Such a
    task may kill its worker, so no two of them run here at the same time.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        publisher: Publisher,
        held: HeldTasks,
        outcomes: Outcomes,
        slots: Mapping[str, int],
        name: str,
        lease: float,
    ) -> None:
        self._clock = clock
        self._store = store
        self._publisher = publisher
        self._held = held
        self._outcomes = outcomes
        self._name = name
        self._lease = lease
        self.pools: dict[str, SlotPool[HeldTask]] = {
            isolation: SlotPool(count, self.claim) for isolation, count in slots.items()
        }
        self.last_attempts: deque[HeldTask] = deque()
        self._usernames: dict[int, str] = {}
        self._batcher: Batcher[HeldTask, Task | None] = Batcher(clock, self._claim)

    def claim(self, held: HeldTask) -> None:
        """It has a slot: claim its task with the next batch."""
        self._held.claims += 1
        self._held.claiming.setdefault(held.claim.task_id, []).append(held)
        self._batcher.submit(held).addCallbacks(
            self._claimed, self._not_claimed, callbackArgs=(held,), errbackArgs=(held,)
        )

    async def _claim(self, batch: list[HeldTask]) -> Sequence[Task | None]:
        claimed = await self._store.claim(self._name, self._lease, [held.claim for held in batch])
        found = {(task.id, task.dispatch): task for task in claimed}
        self._publisher.publish(claimed)
        await self._learn_usernames({task.user_id for task in claimed})
        # None for a message that is late, or whose task was cancelled or runs elsewhere
        tasks = [found.get((held.claim.task_id, held.claim.dispatch)) for held in batch]
        if without := [held for held, task in zip(batch, tasks, strict=True) if task is None]:
            await self._sort_out(without)
        return tasks

    async def _learn_usernames(self, users: set[int]) -> None:
        if unknown := users - self._usernames.keys():
            if len(self._usernames) > MAX_USERNAMES:
                self._usernames.clear()
                unknown = users
            self._usernames |= await self._store.usernames(list(unknown))

    async def _sort_out(self, without: Sequence[HeldTask]) -> None:
        """Ack messages that claimed nothing, except those of a last attempt."""
        tasks = await self._store.find_tasks([held.claim.task_id for held in without])
        found = {task.id: task for task in tasks}
        # the former holder may have died after it stored the outcome and before it published it
        again = [held.claim.task_id for held in without if held.claim.redelivered]
        self._publisher.publish([found[n] for n in dict.fromkeys(again) if n in found])
        for held in without:
            held.last_attempt = _is_last_attempt(found.get(held.claim.task_id), held.claim)
        ack(held for held in without if not held.last_attempt)

    def _claimed(self, task: Task | None, held: HeldTask) -> None:
        if task is not None and self._held.stopped:
            released = Deferred.fromCoroutine(self._outcomes.release([(held, task)]))
            released.addBoth(self._claim_ended, held)
            return
        if task is not None and not self._is_duplicate_claim(task, held):
            self._outcomes.begin(held, task, self._usernames.get(task.user_id, ""), self._slot_free)
        else:
            held.pool.release()
            if task is None and held.last_attempt and held.delivery is not None:
                self.last_attempts.append(held)
        self._claim_ended(None, held)

    def _is_duplicate_claim(self, task: Task, held: HeldTask) -> bool:
        """Whether the attempt is not a new one: the message came twice, or the answer comes after a later one's."""
        before = self._held.running.get(task.id)
        if before is None and held.ended_claim is NO_CLAIM:
            return False
        claimed = claim_number(task)
        if before is not None and before.attempt is not None:
            # same numbers: what runs here stands for both
            if claim_number(before.attempt.task)[:2] < claimed[:2]:
                _keep_one_delivery(held, before)
                before.attempt.stop()
                return False
            _keep_one_delivery(before, held)
            return True
        if held.ended_claim < claimed:
            return False
        ack([held])
        return True

    def _claim_ended(self, _: object, held: HeldTask) -> None:
        self._forget_claim(held)
        self._held.claims -= 1
        self._slot_free(held)

    def _forget_claim(self, held: HeldTask) -> None:
        claiming = self._held.claiming[held.claim.task_id]
        claiming.remove(held)
        if not claiming:
            del self._held.claiming[held.claim.task_id]

    def _not_claimed(self, failure: Failure, held: HeldTask) -> None:
        if not failure.check(Unavailable):
            self._log.failure("a claim failed", failure)
        if self._held.draining:
            requeue([held])
            self._forget_claim(held)
        else:
            # Not given back: every other worker has the same store. If the claim was committed although the answer was
            # lost, the next claim returns the task as this worker's.
            self._clock.callLater(AGAIN_AFTER, self._claim_again, held)
        self._held.claims -= 1
        held.pool.release()
        self._slot_free(held)

    def _claim_again(self, held: HeldTask) -> None:
        self._forget_claim(held)
        if held.delivery is None:
            return
        if self._held.draining:
            requeue([held])
        else:
            held.pool.add([held])

    def _slot_free(self, held: HeldTask) -> None:
        """A task is done: start what waits."""
        if self._held.draining:
            self._held.check_idle()
            return
        if self.last_attempts:
            self._start_last_attempt()
        if held.pool.waiting:
            held.pool.fill()

    def _start_last_attempt(self) -> None:
        """Claim the next last attempt if none runs here. If it kills this worker, it takes no other one with it."""
        backlogs = (pool.waiting for pool in self.pools.values())
        held_here = chain(self._held.running.values(), *backlogs, *self._held.claiming.values())
        if any(held.claim.alone for held in held_here):
            return
        held = self.last_attempts.popleft()
        held.claim = held.claim._replace(alone=True)
        held.pool.add_first(held)


def _is_last_attempt(task: Task | None, claim: Claim) -> bool:
    """Whether this would be the last attempt of a task whose attempt before was lost with its worker: an attempt that
    failed leaves an error."""
    if task is None or claim.alone or task.dispatch != claim.dispatch or task.error is not None:
        return False
    claimable = task.state is State.QUEUED or (task.state is State.RUNNING and claim.redelivered)
    return claimable and 0 < task.attempt == task.max_attempts - 1


def _keep_one_delivery(stays: HeldTask, goes: HeldTask) -> None:
    """Of two deliveries of a task, ack one now. The attempt that stays acks the other in the end, also if its own
    delivery was lost and this one is the redelivery."""
    if stays.delivery is None and stays.claim.dispatch == goes.claim.dispatch:
        stays.delivery, stays.consumer, goes.delivery = goes.delivery, goes.consumer, None
    ack([goes])
