"""Publishes outbox batches whose publisher has died or could not reach the broker."""

from __future__ import annotations

from taskd.ports.broker import IBroker
from taskd.ports.store import IStore
from taskd.scheduling.outbox import Outbox

RELAY_AFTER = 5.0
"""Seconds after which a row counts as stale. Longer than publishing takes; publishing twice would be harmless."""

BATCHES = 20
"""Stale rows that one round adopts at most."""


class RelayOutbox:
    """Deletes the rows of published batches, and publishes stale batches again."""

    name = "relay the outbox"

    def __init__(self, store: IStore, broker: IBroker, outbox: Outbox) -> None:
        self._store = store
        self._broker = broker
        self._outbox = outbox

    async def run(self) -> None:
        """Raises Unavailable."""
        await self._outbox.mark_published()
        if not self._broker.ready:
            return
        for batch in await self._store.adopt_stale(RELAY_AFTER, BATCHES):
            # a batch that this server is still publishing is not stale: its broker is slow
            if batch.id not in self._outbox.publishing:
                await self._outbox.send(batch.id, batch.messages)
