"""The outbox: what the store says is queued gets to the broker, be it by another server.

Each batch of queued tasks is committed together with an outbox row that names it. The row goes once the broker has
confirmed every message. Whatever happens in between, the row outlives its publisher and any server publishes it again.
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
"""Seconds after which a row counts as orphaned. Publishing twice is harmless: this has to be longer than usual only."""

RELAY_BATCHES = 20


class Outbox:
    """Publishes batches and settles their rows."""

    _log = Logger()

    def __init__(self, store: IStore, broker: IBroker) -> None:
        self._store = store
        self._broker = broker
        self._settled: list[str] = []
        self._publishing: set[str] = set()

    def publish(self, batch: str, tasks: Sequence[Task]) -> Deferred[None]:
        """Publish those of a committed batch that are queued. Never fails; fires when there is nothing left to try."""
        messages: dict[Route, list[Dispatch]] = {}
        for task in tasks:
            if task.state is State.QUEUED:
                messages.setdefault(task.route, []).append(Dispatch(task.id, task.dispatch))
        return Deferred.fromCoroutine(self._publish(batch, messages))

    async def _publish(self, batch: str, messages: Mapping[Route, Sequence[Dispatch]]) -> None:
        self._publishing.add(batch)
        try:
            for route, those in messages.items():
                await self._broker.publish(route.name, those)
        except BrokerUnavailable as e:
            self._log.info("batch {batch} stays in the outbox: {why}", batch=batch, why=str(e))
        except Exception:
            self._log.failure("batch {batch} stays in the outbox", batch=batch)
        else:
            self._settled.append(batch)
        finally:
            self._publishing.discard(batch)

    def take_settled(self) -> list[str]:
        """Rows to delete with the next transaction, which saves one of their own. Give them back if it fails."""
        settled, self._settled = self._settled, []
        return settled

    def give_back(self, settled: Sequence[str]) -> None:
        """That transaction failed."""
        self._settled.extend(settled)

    async def mark_published(self) -> None:
        """Delete the settled rows now. Raises Unavailable."""
        settled = self.take_settled()
        if settled:
            try:
                await self._store.mark_published(settled)
            except BaseException:
                self.give_back(settled)
                raise

    async def relay(self) -> int:
        """Publish orphaned batches; how many. Raises Unavailable."""
        await self.mark_published()
        if not self._broker.ready:
            return 0
        orphans = await self._store.adopt_stale(RELAY_AFTER, RELAY_BATCHES)
        mine = [orphan for orphan in orphans if orphan.id not in self._publishing]  # a slow broker is none
        for orphan in mine:
            await self._publish(orphan.id, orphan.messages)
        return len(mine)
