"""Moves delayed tasks whose time has come into the backlog."""

from __future__ import annotations

from taskd.ports.store import IStore
from taskd.scheduling.routes import Routes

BATCH = 500
"""Tasks in one statement at most."""

BATCHES = 40
"""Statements in one round at most."""


class PromoteDue:
    """The longest overdue tasks go first."""

    name = "promote due tasks"

    def __init__(self, store: IStore, routes: Routes) -> None:
        self._store = store
        self._routes = routes

    async def run(self) -> None:
        """Raises Unavailable."""
        for _ in range(BATCHES):
            due = await self._store.promote(BATCH)
            if not due:
                return
            self._routes.add_backlog(due)
