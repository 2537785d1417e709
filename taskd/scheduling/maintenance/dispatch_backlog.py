"""Corrects the windows from the store and dispatches what other servers left waiting."""

from __future__ import annotations

from taskd.ports.store import IStore
from taskd.scheduling.routes import Routes
from taskd.scheduling.window import Windows


class DispatchBacklog:
    """Counts the queued tasks once for all routes, then lets every dispatcher look into the store."""

    name = "dispatch the backlog"

    def __init__(self, store: IStore, windows: Windows, routes: Routes) -> None:
        self._store = store
        self._windows = windows
        self._routes = routes

    async def run(self) -> None:
        """Raises Unavailable."""
        self._windows.correct(await self._store.count_queued())
        self._routes.tick()
