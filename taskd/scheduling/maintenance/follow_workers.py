"""Opens and closes routes as workers come and go."""

from __future__ import annotations

from taskd.scheduling.routes import Routes


class FollowWorkers:
    """Reads the registry of workers, in case an event about a worker was lost."""

    name = "follow workers"

    def __init__(self, routes: Routes) -> None:
        self._routes = routes

    async def run(self, store_up: float) -> None:
        """Raises Unavailable."""
        await self._routes.refresh()
