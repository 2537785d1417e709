"""The outbox: whatever the store says is queued gets to the broker, if need be through another server.

The transaction that queues tasks also stores an outbox row that names them. The row goes once the broker has confirmed
every message. If the publisher dies in between, the row stays and any server publishes it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from taskd.model.errors import BrokerUnavailable
from taskd.model.states import State
from taskd.model.tasks import Route, Task
from taskd.ports.broker import IBroker
from taskd.ports.scheduling import Dispatch
from taskd.ports.store import IStore

RELAY_AFTER = 5.0
"""Seconds after which a row counts as stale. Longer than publishing takes; publishing twice would be harmless."""

RELAY_BATCHES = 20
"""Stale rows that one relay adopts at most."""


class Outbox:
    """Publishes batches and marks their rows as published."""

    _log = Logger()

    def __init__(self, store: IStore, broker: IBroker) -> None:
        self._store = store
        self._broker = broker
        self._published: list[str] = []
        self._publishing: set[str] = set()

    def publish(self, batch: str, tasks: Sequence[Task]) -> Deferred[None]:
        """Publish the queued tasks of a committed batch. Never fails; fires when there is nothing left to try."""
        messages: dict[Route, list[Dispatch]] = {}
        for task in tasks:
            if task.state is State.QUEUED:
                messages.setdefault(Route(task.queue, task.kind), []).append(Dispatch(task.id, task.dispatch))
        return Deferred.fromCoroutine(self._publish(batch, messages))

    async def _publish(self, batch: str, messages: Mapping[Route, Sequence[Dispatch]]) -> None:
        self._publishing.add(batch)
        try:
            for route, dispatches in messages.items():
                await self._broker.publish(route.name, dispatches)
        except BrokerUnavailable as e:
            self._log.info("batch {batch} stays in the outbox: {why}", batch=batch, why=str(e))
        except Exception:
            self._log.failure("batch {batch} stays in the outbox", batch=batch)
        else:
            self._published.append(batch)
        finally:
            self._publishing.discard(batch)

    def take_published(self) -> list[str]:
        """Rows to delete with the next transaction, which saves one of their own. Give them back if it fails."""
        published, self._published = self._published, []
        return published

    def give_back(self, published: Sequence[str]) -> None:
        """The transaction failed that was to delete these rows."""
        self._published.extend(published)

    async def mark_published(self) -> None:
        """Delete the rows of published batches now. Raises Unavailable."""
        published = self.take_published()
        if published:
            try:
                await self._store.mark_published(published)
            except BaseException:
                self.give_back(published)
                raise

    async def relay(self) -> int:
        """Publish stale batches; returns how many. Raises Unavailable."""
        await self.mark_published()
        if not self._broker.ready:
            return 0
        stale = await self._store.adopt_stale(RELAY_AFTER, RELAY_BATCHES)
        # a batch that this server is still publishing is not stale: its broker is slow
        adopted = [batch for batch in stale if batch.id not in self._publishing]
        for batch in adopted:
            await self._publish(batch.id, batch.messages)
        return len(adopted)
