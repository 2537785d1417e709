"""Finds queued tasks whose messages the broker has lost, and sends them back to the backlog."""

from __future__ import annotations

from taskd.ports.broker import IBroker
from taskd.ports.store import IStore
from taskd.scheduling.liveness import Liveness
from taskd.scheduling.take_back import TakeBack
from taskd.scheduling.window import Windows

BATCH = 500
"""Tasks of one route in one round at most."""

LOST_AFTER = 10.0
"""Seconds after which a queued task counts as lost if the broker's queue is empty."""


class RequeueLost:
    """Looks at every route with queued tasks, also at closed routes: RabbitMQ keeps the messages of a kind that no
    worker serves.

    It begins when this server has seen its database up for ``grace`` seconds: a claim is not flushed to disk, so a
    crash of the database may have made a task queued again that a living worker runs and soon claims again."""

    name = "requeue lost messages"

    def __init__(
        self, store: IStore, broker: IBroker, windows: Windows, take_back: TakeBack, liveness: Liveness, grace: float
    ) -> None:
        self._store = store
        self._broker = broker
        self._windows = windows
        self._take_back = take_back
        self._liveness = liveness
        self._grace = grace

    async def run(self) -> None:
        """Raises Unavailable, BrokerUnavailable."""
        for route, count in self._windows.counted.items():
            if not count or not self._broker.ready or await self._broker.depth(route.name):
                continue
            if await self._liveness.is_steady(self._grace):
                lost = await self._store.requeue_lost(route, LOST_AFTER, BATCH)
                self._windows.release(route, len(lost))
                self._take_back.taken(lost, "their messages were lost")
