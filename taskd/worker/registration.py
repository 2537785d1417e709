"""Tells the servers what this worker serves; they dispatch only what some worker serves."""

from __future__ import annotations

from twisted.logger import Logger

from taskd.events.publisher import Publisher
from taskd.model.errors import Unavailable
from taskd.ports.store import IStore
from taskd.ports.workers import WorkerInfo


class Registration:
    """The worker's row in the registry of workers."""

    _log = Logger()

    def __init__(self, store: IStore, publisher: Publisher, info: WorkerInfo) -> None:
        self._store = store
        self._publisher = publisher
        self._info = info
        self._registered = False

    async def renew(self) -> None:
        """Register, or stay registered. Never fails."""
        try:
            await self._store.worker_seen(self._info)
        except Unavailable as e:
            self._log.warn("the worker is not registered: {why}", why=e.message)
            return
        except Exception:
            self._log.failure("the worker is not registered")
            return
        if not self._registered:
            self._registered = True
            self._publisher.publish_worker_change()

    async def end(self) -> None:
        """Deregister, if the worker is registered. Never fails."""
        if not self._registered:
            return
        try:
            await self._store.worker_gone(self._info.name)
        except Unavailable as e:
            self._log.info("the worker stays registered until its registration expires: {why}", why=e.message)
            return
        self._publisher.publish_worker_change()
