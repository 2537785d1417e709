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


class Outbox:
    """Publishes batches and marks their rows as published."""

    _log = Logger()

    def __init__(self, store: IStore, broker: IBroker) -> None:
        self._store = store
        self._broker = broker
        self.published: list[str] = []
        """Batches whose rows the next transaction deletes, which saves one of their own. Who takes them out puts them
        back if the transaction fails."""
        self.publishing: set[str] = set()
        """Batches that this server is publishing now."""

    def publish(self, batch: str, tasks: Sequence[Task]) -> Deferred[None]:
        """Publish the queued tasks of a committed batch. Never fails; fires when there is nothing left to try."""
        messages: dict[Route, list[Dispatch]] = {}
        for task in tasks:
            if task.state is State.QUEUED:
                messages.setdefault(Route(task.queue, task.kind), []).append(Dispatch(task.id, task.dispatch))
        return Deferred.fromCoroutine(self.send(batch, messages))

    async def send(self, batch: str, messages: Mapping[Route, Sequence[Dispatch]]) -> None:
        """Publish the messages of a batch. Never fails."""
        self.publishing.add(batch)
        try:
            for route, dispatches in messages.items():
                await self._broker.publish(route.name, dispatches)
        except BrokerUnavailable as e:
            self._log.info("batch {batch} stays in the outbox: {why}", batch=batch, why=str(e))
        except Exception:
            self._log.failure("batch {batch} stays in the outbox", batch=batch)
        else:
            self.published.append(batch)
        finally:
            self.publishing.discard(batch)

    async def mark_published(self) -> None:
        """Delete the rows of published batches now. Raises Unavailable."""
        published, self.published = self.published, []
        if published:
            try:
                await self._store.mark_published(published)
            except BaseException:
                self.published += published
                raise
