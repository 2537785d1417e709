"""The server's rooms, wired together. Everything comes in through the constructor, so all of it runs in memory too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from taskd.api.accounts import Accounts
from taskd.api.actions import Actions
from taskd.events.hub import Hub
from taskd.events.publisher import Publisher
from taskd.model.errors import Unavailable
from taskd.model.tasks import Route
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore
from taskd.scheduling.dispatcher import Dispatcher
from taskd.scheduling.maintenance import Maintenance
from taskd.scheduling.outbox import Outbox
from taskd.scheduling.routes import Routes
from taskd.scheduling.submission import Submitter
from taskd.scheduling.window import Window, Windows
from taskd.server.lines import LineFactory

CLOSE_SECONDS = 10.0
"""What connections get to have their requests under way answered."""


class TaskServer:
    """One task server above a store and a broker that somebody else starts and stops.

    ``lines`` is the factory for connections. ``window`` is how many tasks of a route may be in the broker, ``lease``
    the workers' in seconds, ``node`` a name that no other process has, ``new_id`` makes the names of batches. Finished
    tasks are deleted after ``keep`` seconds, 0 keeps them for ever.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        broker: IBroker,
        accounts: Accounts,
        *,
        queues: Sequence[str],
        window: int,
        lease: float,
        node: str,
        new_id: Callable[[], str],
        keep: float = 0.0,
    ) -> None:
        self._clock = clock
        hub, windows = Hub(), Windows(window)
        publisher = self._publisher = Publisher(
            clock, broker, hub, node, lambda changes: routes.changed(changes), lambda: routes.look()
        )
        outbox = self._outbox = Outbox(store, broker)

        def dispatcher(route: Route, its_window: Window) -> Dispatcher:
            return Dispatcher(clock, route, its_window, store, broker, outbox, publisher, new_id)

        routes = self._routes = Routes(store, windows, queues, lease, dispatcher)
        self._submitter = Submitter(clock, store, broker, outbox, windows, publisher, new_id, routes.wake)
        self._maintenance = Maintenance(clock, store, broker, outbox, windows, routes, publisher, lease, keep)
        actions = Actions(clock, store, broker, accounts, self._submitter, hub, publisher, windows, routes, node)
        self.lines = LineFactory(actions, clock)

    def start(self) -> None:
        """Hear the others' news and begin the rounds. Connections may be accepted before."""
        self._publisher.start()
        self._maintenance.start()

    async def drain(self) -> None:
        """Answer what is under way, tell watchers, close connections, leave nothing half done. Never fails.

        The caller has stopped to accept connections.
        """
        self.lines.drain()
        timer = self._clock.callLater(CLOSE_SECONDS, self.hurry)
        await self.lines.empty()
        if timer.active():
            timer.cancel()
        self._maintenance.stop()
        await self._submitter.drained()
        await self._routes.stop()
        try:
            await self._outbox.mark_published()
        except Unavailable as e:
            self._log.info("some outbox rows stay for other servers: {why}", why=e.message)

    def hurry(self) -> None:
        """Cut the connections that :meth:`drain` waits for."""
        self.lines.abort()
