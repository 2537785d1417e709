"""Takes deliveries from the broker, lets them wait for a slot, and gives back what waits too long."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import chain

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from taskd.model.tasks import Route
from taskd.ports.attempts import Claim
from taskd.ports.broker import Delivery, IBroker, IConsumer
from taskd.ports.workers import KindInfo
from taskd.worker.claims import Claims
from taskd.worker.held import HeldState, HeldTask, HeldTasks, requeue
from taskd.worker.periodic import Periodic

AHEAD_FROM = 50
"""Slots from which on as many more deliveries are prefetched, MAX_AHEAD at most. While some tasks are being claimed and
others stored, the next are here already, so batches get twice as large. A worker of few slots has long tasks and gains
nothing."""

MAX_AHEAD = 100

GIVE_BACK_AFTER = 1.0
"""Seconds that a delivery may wait here for a slot; then other workers get it."""


class Intake:
    """One consumer for each queue and kind."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, broker: IBroker, held: HeldTasks, claims: Claims) -> None:
        self._clock = clock
        self._broker = broker
        self._held = held
        self._claims = claims
        self._consumers: list[IConsumer] = []
        self._giving_back = Periodic(clock, GIVE_BACK_AFTER, self._give_back_old)

    @property
    def consuming(self) -> bool:
        """Whether every queue can deliver now."""
        return bool(self._consumers) and all(consumer.ready for consumer in self._consumers)

    def start(self, queues: Sequence[str], kinds: Sequence[KindInfo]) -> None:
        """Begin to take deliveries of these kinds from these queues."""
        self._consumers = [self._consume(queue, kind) for queue in queues for kind in kinds]
        self._giving_back.start()

    async def stop(self) -> None:
        """Take nothing more, and give back what has no slot yet."""
        self._giving_back.stop()
        for consumer in self._consumers:
            try:
                await consumer.stop()
            except Exception:
                self._log.failure("a consumer did not stop")
        for pool in self._claims.pools.values():
            requeue(pool.close())

    def _consume(self, queue: str, kind: KindInfo) -> IConsumer:
        pool = self._claims.pools[kind.isolation]

        def taken(deliveries: Sequence[Delivery]) -> None:
            if self._held.draining:
                consumer.requeue(deliveries)
                return
            now, most = self._clock.seconds(), kind.max_attempts
            new = [d for d in deliveries if not self._is_held(d, consumer)]
            pool.add(
                [HeldTask(Claim(d.task_id, d.dispatch, most), d, consumer, pool, kind.isolation, now) for d in new]
            )

        def lost() -> None:
            self._lost(consumer)

        ahead = min(pool.slots, MAX_AHEAD) if pool.slots >= AHEAD_FROM else 0
        consumer: IConsumer = self._broker.consume(Route(queue, kind.kind).name, pool.slots + ahead, taken, lost)
        return consumer

    def _is_held(self, delivery: Delivery, consumer: IConsumer) -> bool:
        """Whether it is the message of a task that runs here: it needs no slot, and is acked at the end of the task."""
        held = self._held.running.get(delivery.task_id)
        if held is None or held.claim.dispatch != delivery.dispatch or held.state is HeldState.DROPPED:
            return False
        if held.delivery is None:
            held.delivery, held.consumer = delivery, consumer
        else:
            consumer.ack([delivery])
        return True

    def _lost(self, consumer: IConsumer) -> None:
        """The channel is lost: the broker delivers its messages again, here or elsewhere."""
        for waiting in self._waiting():
            kept = [held for held in waiting if held.consumer is not consumer]
            waiting.clear()
            waiting.extend(kept)
        for held in chain(self._held.running.values(), *self._held.claiming.values()):
            if held.consumer is consumer:
                held.delivery = None

    async def _give_back_old(self) -> None:
        latest = self._clock.seconds() - GIVE_BACK_AFTER
        for waiting in self._waiting():
            old = [held for held in waiting if held.since <= latest]
            for held in old:
                waiting.remove(held)
            requeue(old)

    def _waiting(self) -> list[deque[HeldTask]]:
        return [pool.waiting for pool in self._claims.pools.values()]
