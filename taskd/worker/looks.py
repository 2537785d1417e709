"""Compares what the worker runs with what the store says that it runs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from taskd.events.records import decode_cancel_order
from taskd.model.errors import Unavailable
from taskd.model.tasks import Task
from taskd.ports.attempts import Held
from taskd.ports.store import IStore
from taskd.worker.held import HeldState, HeldTask, HeldTasks, ack
from taskd.worker.identity import Identity
from taskd.worker.outcomes import Outcomes
from taskd.worker.periodic import Periodic
from taskd.worker.reclaim import Reclaim
from taskd.worker.registration import Registration

INTERVAL = 10.0
"""Seconds between two looks, if nothing calls for one earlier."""

ACK_AFTER = 600.0
"""Seconds after which a running task is acked early: RabbitMQ closes a channel whose delivery stays unacked for its
consumer_timeout, 30 minutes by default. With a shorter timeout the channel is closed and opened again, which costs a
redelivery and no attempt. Not earlier, because only unacked deliveries keep the broker from sending more to a worker
whose slots are taken than to one that is idle."""


class Looks:
    """Looks every 10 seconds, and when asked to.

    What runs here and is not in the store is claimed again, if a crash of the database has undone its claim, or else
    stopped: it was cancelled or taken back. What stands in the store on two looks in a row and is not known here was
    claimed without an answer, or its outcome could not be stored: it goes back, its attempt unspent.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        held: HeldTasks,
        outcomes: Outcomes,
        reclaim: Reclaim,
        identity: Identity,
        registration: Registration,
    ) -> None:
        self._clock = clock
        self._store = store
        self._held = held
        self._outcomes = outcomes
        self._reclaim = reclaim
        self._identity = identity
        self._registration = registration
        self._unknown: frozenset[Held] = frozenset()
        self._looks = Periodic(clock, INTERVAL, self._look)

    def start(self) -> None:
        """Begin to look."""
        self._looks.start()

    def stop(self) -> None:
        """Look no more."""
        self._looks.stop()

    def soon(self) -> None:
        """Look at once: the store may have changed without this worker."""
        self._looks.soon()

    def cancel_ordered(self, body: bytes) -> None:
        """A server has cancelled tasks, perhaps of this worker. The order may be old: the store decides."""
        try:
            task_ids = decode_cancel_order(body).task_ids
        except (msgspec.MsgspecError, UnicodeDecodeError) as e:
            text = "a cancel order cannot be decoded, cancelling takes until the next look: {why}"
            self._log.warn(text, why=str(e))
            return
        if any(task_id in self._held.running for task_id in task_ids):
            self.soon()

    def report_fenced(self, task: Task) -> None:
        """The store has refused a report of this attempt."""
        held = self._held.running.get(task.id)
        if held is not None and held.task is task:
            self.soon()

    async def give_back_rest(self) -> None:
        """Nothing runs here any more: give back, unspent, all that still stands under this worker's name. It could not
        be given back before, or is a claim without an answer. Raises Unavailable."""
        if self._registration.registered and (stand := await self._store.held_by(self._identity.name)):
            await self._outcomes.give_back(stand)

    async def _look(self) -> None:
        now = self._clock.seconds()
        ack([held for held in self._held.running.values() if now - held.since >= ACK_AFTER])
        if not self._registration.registered:
            return
        name = self._identity.name
        running = [held for held in self._held.running.values() if held.worker == name]
        try:
            stand = frozenset(await self._store.held_by(name))
            await self._restore([held for held in running if held.in_store not in stand and self._is_held(held)])
        except Unavailable as e:
            self._log.warn("the worker cannot see what the store says that it runs: {why}", why=e.message)
            return
        await self._release_unknown(stand)

    def _is_held(self, held: HeldTask) -> bool:
        """Whether it still waits or runs. An outcome on its way finds out by itself that it does not count."""
        here = self._held.running.get(held.claim.task_id) is held
        return here and held.state in (HeldState.WAITING, HeldState.BEGINNING, HeldState.RUNNING)

    async def _restore(self, missing: Sequence[HeldTask]) -> None:
        reclaimed = await self._reclaim.reclaim(missing)
        for held in missing:
            if held not in reclaimed and self._is_held(held):
                self._log.info("task {id} is not this worker's any more: stopped", id=held.claim.task_id)
                self._outcomes.drop(held)

    async def _release_unknown(self, stand: frozenset[Held]) -> None:
        known = {held.in_store for held in self._held.running.values()}
        unknown = frozenset(held for held in stand - known if held.task_id not in self._held.claiming)
        before, self._unknown = self._unknown, unknown
        if twice := unknown & before:
            self._held.releasing |= twice
            try:
                await self._outcomes.give_back(sorted(twice))
            finally:
                self._held.releasing -= twice
