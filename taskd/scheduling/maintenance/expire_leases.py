"""Takes running tasks back from workers that have not renewed their leases."""

from __future__ import annotations

from taskd.ports.store import IStore
from taskd.scheduling.take_back import TakeBack

BATCH = 500
"""Tasks in one round at most."""


class ExpireLeases:
    """``lease`` is in seconds. After the store was away, no lease expires for half a lease, because no worker could
    renew its leases meanwhile."""

    name = "expire leases"

    def __init__(self, store: IStore, take_back: TakeBack, lease: float) -> None:
        self._store = store
        self._take_back = take_back
        self._grace = lease / 2

    async def run(self, store_up: float) -> None:
        """Raises Unavailable."""
        if store_up >= self._grace:
            self._take_back.taken(await self._store.expire_leases(BATCH), "their lease has expired")
