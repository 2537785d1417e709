"""Publishes outbox batches whose publisher has died or could not reach the broker."""

from __future__ import annotations

from taskd.scheduling.outbox import Outbox


class RelayOutbox:
    """Deletes the rows of published batches, and publishes stale batches again."""

    name = "relay the outbox"

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    async def run(self, store_up: float) -> None:
        """Raises Unavailable."""
        await self._outbox.relay()
