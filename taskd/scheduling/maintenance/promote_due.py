"""Moves delayed tasks whose time has come into the backlog."""

from __future__ import annotations

from taskd.events.publisher import Publisher
from taskd.model.errors import Unavailable
from taskd.ports.store import IStore
from taskd.scheduling.dispatcher import Dispatcher

BATCH = 500
"""Tasks in one statement at most."""

BATCHES = 40
"""Statements in one round at most."""


class PromoteDue:
    """The longest overdue tasks go first."""

    name = "promote due tasks"

    def __init__(self, store: IStore, publisher: Publisher, dispatcher: Dispatcher) -> None:
        self._store = store
        self._publisher = publisher
        self._dispatcher = dispatcher

    async def run(self) -> None:
        """Raises Unavailable."""
        for _ in range(BATCHES):
            try:
                due = await self._store.promote(BATCH)
            except Unavailable:
                # it may have been committed
                self._dispatcher.gap()
                raise
            if not due:
                return
            routes = {route for route, _ in due}
            for route in routes:
                self._dispatcher.came(route)
            # another server may assign the tasks of these queues, or take over when this one stops
            self._publisher.publish_routes(routes)
