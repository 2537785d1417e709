"""Reads the registry of workers, and has routes opened and closed as workers come and go."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from taskd.model.errors import Unavailable
from taskd.ports.store import IStore
from taskd.scheduling.routes import Routes


class FollowWorkers:
    """Reads at once after an event about a worker, and in every round in case such an event was lost. A worker that has
    not renewed its registration for ``lease`` seconds is dead. While the store is away, the last known workers count.
    """

    name = "follow workers"
    _log = Logger()

    def __init__(self, store: IStore, routes: Routes, lease: float) -> None:
        self._store = store
        self._routes = routes
        self._lease = lease
        self._asked = self._answered = 0
        self._stale = self._reading = False

    async def run(self, store_up: float = 0.0) -> None:
        """Raises Unavailable."""
        self._asked += 1
        asked = self._asked
        workers = await self._store.list_workers(self._lease)
        if asked > self._answered:  # else a later request has been answered already
            self._answered = asked
            self._routes.serve(workers)

    def on_event(self) -> None:
        """A worker has started, stopped, or serves other kinds than before: read soon."""
        self._stale = True
        if not self._reading:
            self._reading = True
            Deferred.fromCoroutine(self._read_while_stale())

    async def _read_while_stale(self) -> None:
        try:
            while self._stale:
                self._stale = False
                await self.run()
        except Unavailable as e:
            self._log.debug("the next round reads the registry of workers again: {why}", why=e.message)
        except Exception:
            self._log.failure("the registry of workers cannot be read")
        finally:
            self._reading = False
