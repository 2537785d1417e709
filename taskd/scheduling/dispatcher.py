"""The dispatcher: keeps the window filled from the backlog, in fair order."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from taskd.events.publisher import Publisher
from taskd.model.errors import Unavailable
from taskd.model.tasks import Route
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore
from taskd.scheduling.outbox import Outbox
from taskd.scheduling.window import Window

TURN = 500
"""Tasks in one statement at most."""


class Dispatcher:
    """Moves the backlog of one route from waiting to queued, round-robin over its users.

    Turns begin when :meth:`wake` is called and there is room for a worthwhile number, or when :meth:`tick` is: that is
    for what was left by other servers. They go on round after round, as far as there is room, until a round was
    clean: none of its turns was full, so it left nothing behind.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        route: Route,
        window: Window,
        store: IStore,
        broker: IBroker,
        outbox: Outbox,
        publisher: Publisher,
        new_id: Callable[[], str],
    ) -> None:
        self._clock = clock
        self._route = route
        self._window = window
        self._store = store
        self._broker = broker
        self._outbox = outbox
        self._publisher = publisher
        self._new_id = new_id
        self._last_user: int | None = None
        self._round: frozenset[int] = frozenset()
        self._clean = True
        self._running: Deferred[None] | None = None
        self._again = False
        self._soon: IDelayedCall | None = None
        self._stopped = False

    def wake(self) -> None:
        """There may be room, or something new to hand over."""
        if self._window.has_backlog and self._soon is None and self._worthwhile():
            self._soon = self._clock.callLater(0, self.tick)

    def tick(self) -> None:
        """Hand over what is due, as far as there is room."""
        if self._soon is not None:
            if self._soon.active():
                self._soon.cancel()
            self._soon = None
        if self._stopped:
            return
        if self._running is not None:
            self._again = True
            return
        self._running = Deferred.fromCoroutine(self._turns())
        self._running.addBoth(self._ended)

    def stop(self) -> Deferred[None]:
        """No more turns; fires when the present one has ended."""
        self._stopped = True
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        done: Deferred[None] = Deferred()
        if self._running is None:
            done.callback(None)
        else:
            self._running.addBoth(lambda _: done.callback(None))
        return done

    def _worthwhile(self) -> bool:
        # Small turns cost as much as large ones: while the broker has plenty, let room gather.
        return self._window.room >= min(TURN, max(1, self._window.limit // 4))

    def _ended(self, _: object) -> None:
        self._running = None
        if self._again:
            self._again = False
            self.wake()

    async def _turns(self) -> None:
        try:
            while not self._stopped and self._broker.ready and self._window.room and await self._turn():
                pass
        except Unavailable as e:
            self._log.info("route {route}: dispatch waits: {why}", route=self._route.name, why=e.message)
        except Exception:
            self._log.failure("route {route}: a turn of the dispatcher failed", route=self._route.name)

    async def _turn(self) -> bool:
        """One statement; whether another one right away may find more."""
        window, batch = self._window, self._new_id()
        if self._last_user is None:
            self._round, self._clean = window.backlogged_users(), True
        limit = min(TURN, window.room)
        found = await self._store.dispatch(batch, self._route, limit, self._last_user)
        self._last_user = found.last_user
        self._clean = self._clean and not found.more
        window.take(len(found.tasks))
        if found.tasks:
            self._publisher.announce(found.tasks)
            # an empty turn has no row to settle; one that a straggling first run stores later is for the relay
            self._outbox.publish(batch, found.tasks)
        if found.last_user is None and self._clean:
            window.clear_backlogged(self._round)
            return False
        return True
