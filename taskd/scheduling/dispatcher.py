"""Keeps the window of a route filled from the backlog, in fair order."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from taskd.events.publisher import Publisher
from taskd.model.errors import Unavailable
from taskd.model.tasks import Route
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore
from taskd.scheduling.outbox import Outbox
from taskd.scheduling.window import Window

BATCH = 500
"""Tasks in one statement at most."""


class Dispatcher:
    """Moves the backlog of one route from waiting to queued, round-robin over its users.

    It begins when :meth:`wake` is called and there is room for a worthwhile number of tasks, or when :meth:`tick` is
    called, which also finds what other servers left. It goes on as far as there is room, until a whole round over the
    users left nothing behind: no statement of that round returned as many tasks as its limit.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        broker: IBroker,
        outbox: Outbox,
        publisher: Publisher,
        new_id: Callable[[], str],
        route: Route,
        window: Window,
    ) -> None:
        self._clock = clock
        self._store = store
        self._broker = broker
        self._outbox = outbox
        self._publisher = publisher
        self._new_id = new_id
        self._route = route
        self._window = window
        self._last_user: int | None = None
        self._backlogged: frozenset[int] = frozenset()
        self._left_nothing = True
        self._running: Deferred[None] | None = None
        self._again = False
        self._soon: IDelayedCall | None = None
        self._stopped = False

    def wake(self) -> None:
        """There may be room, or something new to dispatch."""
        if self._window.has_backlog and self._soon is None and self._worthwhile():
            self._soon = self._clock.callLater(0, self.tick)

    def tick(self) -> None:
        """Dispatch what is due, as far as there is room."""
        if self._soon is not None:
            if self._soon.active():
                self._soon.cancel()
            self._soon = None
        if self._stopped:
            return
        if self._running is not None:
            self._again = True
            return
        self._running = Deferred.fromCoroutine(self._dispatch())
        self._running.addBoth(self._ended)

    def stop(self) -> Deferred[None]:
        """Start no more statements; fires when the present one has ended."""
        self._stopped = True
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self._running is None:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._running.addBoth(lambda _: done.callback(None))
        return done

    def _worthwhile(self) -> bool:
        # A small batch costs as much as a large one: while the broker has plenty, let room gather.
        return self._window.room >= min(BATCH, max(1, self._window.limit // 4))

    def _ended(self, _: object) -> None:
        self._running = None
        if self._again:
            self._again = False
            self.wake()

    async def _dispatch(self) -> None:
        try:
            while not self._stopped and self._broker.ready and self._window.room and await self._dispatch_batch():
                pass
        except Unavailable as e:
            self._log.info("route {route}: dispatch waits: {why}", route=self._route.name, why=e.message)
        except Exception:
            self._log.failure("route {route}: dispatch failed", route=self._route.name)

    async def _dispatch_batch(self) -> bool:
        """One statement. True if another one right away may find more."""
        window, batch = self._window, self._new_id()
        if self._last_user is None:
            self._backlogged, self._left_nothing = window.backlogged_users(), True
        limit = min(BATCH, window.room)
        found = await self._store.dispatch(batch, self._route, limit, self._last_user)
        self._last_user = found.last_user
        self._left_nothing = self._left_nothing and not found.more
        window.take(len(found.tasks))
        if found.tasks:
            self._publisher.publish(found.tasks)
            # Without tasks there is no outbox row. If a delayed first run of the batch stores one, the relay finds it.
            self._outbox.publish(batch, found.tasks)
        if found.last_user is None and self._left_nothing:
            window.clear_backlogged(self._backlogged)
            return False
        return True
