"""Tells the servers what this worker serves; they assign only that to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from twisted.logger import Logger

from taskd.events.publisher import Publisher
from taskd.model.errors import Unavailable
from taskd.ports.store import IStore
from taskd.ports.workers import KindInfo, WorkerInfo
from taskd.worker.held import HeldTasks
from taskd.worker.identity import Identity


class Registration:
    """The worker's row in the registry of workers. ``on_registered`` is called each time that the worker has been
    registered, under its present name."""

    _log = Logger()

    def __init__(
        self,
        store: IStore,
        publisher: Publisher,
        identity: Identity,
        held: HeldTasks,
        queues: Sequence[str],
        kinds: Sequence[KindInfo],
        slots: Mapping[str, int],
        on_registered: Callable[[], None],
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._identity = identity
        self._held = held
        self._queues = queues
        self._kinds = kinds
        self._slots = slots
        self._on_registered = on_registered
        self._may_stand = False
        """The store may have the row although its answer was lost."""
        self._told_draining = False
        self.registered = False

    async def renew(self) -> bool:
        """Register if that is to be done, or say that the worker drains. Returns whether the worker is registered.
        Raises Unavailable."""
        if not self.registered:
            # who drains takes nothing more, so it needs no new name
            if not self._held.draining:
                await self._register()
        elif self._held.draining and not self._told_draining:
            await self._store.worker_draining(self._identity.name)
            self._told_draining = True
            self._publisher.publish_worker_change()
        return self.registered

    async def _register(self) -> None:
        self._may_stand = True
        await self._store.register(WorkerInfo(self._identity.name, self._queues, self._kinds, self._slots))
        if self._held.draining:
            # it has begun to stop meanwhile: servers would assign tasks to its row
            await self._store.worker_gone(self._identity.name)
            return
        self.registered = True
        self._publisher.publish_worker_change()
        self._on_registered()

    def fenced(self) -> None:
        """The present name counts no more."""
        self.registered = self._may_stand = self._told_draining = False

    async def end(self) -> bool:
        """Deregister. False if the store could not be told. Never fails."""
        if not self._may_stand:
            return True
        try:
            await self._store.worker_gone(self._identity.name)
        except Unavailable as e:
            self._log.info("the worker stays registered until the servers miss it: {why}", why=str(e))
            return False
        except Exception:
            self._log.failure("the worker stays registered until the servers miss it")
            return False
        self.fenced()
        self._publisher.publish_worker_change()
        return True
