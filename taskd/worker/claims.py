"""Claims tasks for free slots, in batches, and begins what was claimed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.batching import Batcher
from taskd.events.publisher import Publisher
from taskd.model.errors import Unavailable
from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.ports.attempts import Held
from taskd.ports.store import IStore
from taskd.worker.held import NO_CLAIM, HeldState, HeldTask, HeldTasks, ack, claim_number, keep_one_delivery, requeue
from taskd.worker.identity import Identity
from taskd.worker.outcomes import Outcomes
from taskd.worker.registration import Registration
from taskd.worker.slots import SlotPool
from taskd.worker.suspects import Suspects

AGAIN_AFTER = 1.0
"""Seconds until a claim is sent again if the store was away."""

MAX_USERNAMES = 10_000
"""Names of users to remember."""


class Claims:
    """``slots`` says for each of :data:`taskd.ports.handler.ISOLATIONS` how many tasks run at a time; ``pools`` has
    their slots. ``on_refused`` is called when the store has claimed nothing although the task was free: then this
    worker is fenced."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        publisher: Publisher,
        held: HeldTasks,
        outcomes: Outcomes,
        slots: Mapping[str, int],
        identity: Identity,
        registration: Registration,
        on_refused: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._store = store
        self._publisher = publisher
        self._held = held
        self._outcomes = outcomes
        self._identity = identity
        self._registration = registration
        self._on_refused = on_refused
        self._suspects = Suspects(clock, self._begin)
        self.pools: dict[str, SlotPool[HeldTask]] = {
            isolation: SlotPool(count, self.claim, self._suspects.start_waiting, self._suspects.waiting)
            for isolation, count in slots.items()
        }
        self._usernames: dict[int, str] = {}
        self._batcher: Batcher[HeldTask, Task | None] = Batcher(clock, self._claim)
        self._begins: Batcher[HeldTask, bool] = Batcher(clock, self._store_begins)

    def claim(self, held: HeldTask) -> None:
        """It has a slot: claim its task with the next batch."""
        self._held.claims += 1
        self._held.claiming.setdefault(held.claim.task_id, []).append(held)
        self._batcher.submit(held).addCallbacks(
            self._claimed, self._not_claimed, callbackArgs=(held,), errbackArgs=(held,)
        )

    async def give_back_waiting(self) -> None:
        """Give back, unspent, what is claimed and waits for a place. Nothing waits any more. Never fails."""
        waiting = self._suspects.close()
        for held in waiting:
            held.state = HeldState.RETURNING
        await self._outcomes.release(waiting)
        for held in waiting:
            self._outcomes.forget(held)

    async def _claim(self, batch: list[HeldTask]) -> Sequence[Task | None]:
        if not self._registration.registered or self._registration.doubted:
            raise Unavailable("the worker is not registered")
        name = self._identity.name
        for held in batch:
            held.worker = name
        claimed = await self._store.claim(name, [held.claim for held in batch])
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
        """Ack messages that claimed nothing. If their task is free all the same, this worker is fenced: others get
        them."""
        tasks = await self._store.find_tasks([held.claim.task_id for held in without])
        found = {task.id: task for task in tasks}
        # the former holder may have died after it stored the outcome and before it published it
        again = [held.claim.task_id for held in without if held.delivery is not None and held.delivery.redelivered]
        self._publisher.publish([found[n] for n in dict.fromkeys(again) if n in found])
        free = {held for held in without if _is_free(found.get(held.claim.task_id), held)}
        ack(held for held in without if held not in free)
        if free:
            requeue(free)
            self._registration.doubted = True
            self._on_refused()

    def _claimed(self, task: Task | None, held: HeldTask) -> None:
        if task is None or self._is_late(task, held) or self._is_duplicate_claim(task, held):
            held.pool.release()
            self._claim_ended(None, held)
            return
        held.task, held.user = task, self._usernames.get(task.user_id, "")
        held.on_end = self._slot_free
        if task.losses:
            held.on_free = self._suspects.ended
        if not self._held.stopped and (not task.losses or self._suspects.admit(held)):
            self._begin(held)
        elif not self._held.draining:
            held.pool.release()
            self._held.running[task.id] = held
            self._suspects.wait(held)
        else:
            released = Deferred.fromCoroutine(self._outcomes.release([held]))
            released.addBoth(self._claim_ended, held)
            return
        self._claim_ended(None, held)

    # -- the begin of suspects

    def _begin(self, held: HeldTask) -> None:
        """It has a slot, and a place if it is a suspect. The store must know of a suspect's begin before its handler
        runs: what has only waited here is no suspect of the worker's death."""
        task = held.task
        assert task is not None
        if not task.losses:
            self._outcomes.begin(held)
            return
        held.state = HeldState.BEGINNING
        self._held.running[task.id] = held
        self._begins.submit(held).addCallbacks(self._begun, self._not_begun, callbackArgs=(held,), errbackArgs=(held,))

    async def _store_begins(self, batch: list[HeldTask]) -> Sequence[bool]:
        name = self._identity.name
        ours = [held.in_store for held in batch if held.worker == name and held.state is HeldState.BEGINNING]
        begun = set(await self._store.begin(name, ours))
        return [held.in_store in begun for held in batch]

    def _begun(self, ours: bool, held: HeldTask) -> None:
        if held.state is not HeldState.DROPPED and ours and not self._held.stopped:
            self._outcomes.begin(held)
        elif held.state is HeldState.DROPPED or self._held.draining:
            self._give_up(held)
        else:
            # a crash of the database may have undone the claim: the next look claims it again, or drops it
            self._clock.callLater(AGAIN_AFTER, self._begin_again, held)

    def _not_begun(self, failure: Failure, held: HeldTask) -> None:
        if not failure.check(Unavailable):
            self._log.failure("the begin of a task could not be stored", failure)
        self._clock.callLater(AGAIN_AFTER, self._begin_again, held)

    def _begin_again(self, held: HeldTask) -> None:
        if held.state is HeldState.DROPPED or self._held.draining:
            self._give_up(held)
        else:
            self._begin(held)

    def _give_up(self, held: HeldTask) -> None:
        """It does not begin: give it back if it is still this worker's."""
        released = Deferred.fromCoroutine(self._outcomes.release([held]))
        released.addBoth(self._given_up, held)

    def _given_up(self, _: object, held: HeldTask) -> None:
        held.pool.release()
        self._suspects.ended(held)
        self._outcomes.forget(held)

    # -- the answer to a claim

    def _is_late(self, task: Task, held: HeldTask) -> bool:
        """Whether the name under which it was claimed is fenced: servers have taken it back. Or whether the worker just
        gives it back."""
        releasing = self._held.releasing
        if held.worker == self._identity.name and not (
            releasing and Held(task.id, task.dispatch, task.attempt) in releasing
        ):
            return False
        ack([held])
        return True

    def _is_duplicate_claim(self, task: Task, held: HeldTask) -> bool:
        """Whether the attempt is not a new one: the message came twice, or the answer comes after a later one's."""
        before = self._held.running.get(task.id)
        if before is None and held.ended_claim is NO_CLAIM:
            return False
        claimed = claim_number(task)
        if before is not None and before.task is not None:
            # same numbers: what runs here stands for both
            if claim_number(before.task)[:2] < claimed[:2]:
                keep_one_delivery(held, before)
                self._outcomes.drop(before)
                return False
            keep_one_delivery(before, held)
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
        elif held.pool.waiting or held.pool.ahead:
            held.pool.fill()


def _is_free(task: Task | None, held: HeldTask) -> bool:
    return task is not None and task.state is State.QUEUED and task.dispatch == held.claim.dispatch
