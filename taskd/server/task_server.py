"""One server, wired together. Everything comes in through the constructor, so all of it runs in memory too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.interfaces import IReactorTime

from taskd.api.accounts import Accounts
from taskd.api.actions.accounts import AccountActions
from taskd.api.actions.live import LiveActions
from taskd.api.actions.logs import LogActions
from taskd.api.actions.server import ServerActions
from taskd.api.actions.tasks import TaskActions
from taskd.api.core import Api
from taskd.events.publisher import Publisher
from taskd.events.subscriber import Subscriber
from taskd.events.watch_hub import Hub
from taskd.health import HealthCheck
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore
from taskd.protocol.actions import Theme
from taskd.scheduling.scheduler import Scheduler
from taskd.server.line_connection import LineFactory

CLOSE_SECONDS = 10.0
"""How long connections may take to have their requests under way answered when the server stops."""


class TaskServer:
    """One task server above a store and a broker that the caller starts and stops.

    ``lines`` is the factory for connections. ``window`` is how many tasks of a route may be in the broker, ``lease``
    after how many seconds of silence a worker is dead (None for an embedded server: its worker never is), ``node`` a
    name that no other process has. ``new_id`` makes the ids of batches.
    Finished tasks are deleted after ``keep`` seconds; 0 keeps them for ever.
    """

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        broker: IBroker,
        accounts: Accounts,
        *,
        queues: Sequence[str],
        window: int,
        lease: float | None,
        node: str,
        new_id: Callable[[], str],
        keep: float = 0.0,
    ) -> None:
        self._clock = clock
        self.hub = hub = Hub()
        self.publisher = publisher = Publisher(clock, store, broker, node, hub)
        self.scheduler = scheduler = Scheduler(
            clock,
            store,
            broker,
            publisher,
            queues=queues,
            window=window,
            lease=lease,
            keep=keep,
            new_id=new_id,
        )
        self.subscriber = Subscriber(broker, hub, node, scheduler.windows.apply, scheduler.liveness.on_event)
        self.api = Api(
            {
                Theme.SERVER: ServerActions(
                    scheduler.routes, scheduler.liveness, HealthCheck(clock, store, broker), node
                ),
                Theme.ACCOUNTS: AccountActions(accounts),
                Theme.TASKS: TaskActions(store, broker, publisher, scheduler),
                Theme.LOGS: LogActions(clock, store, hub),
                Theme.LIVE: LiveActions(clock, store, hub),
            }
        )
        self.lines = LineFactory(self.api, clock)

    def start(self) -> None:
        """Receive events and begin the periodic work. Connections may be accepted before."""
        self.subscriber.start()
        self.scheduler.start()

    async def drain(self) -> None:
        """Answer the requests under way, close the connections, finish what is scheduled. Never fails.

        The caller has stopped to accept connections.
        """
        self.api.drain()
        self.lines.drain()
        timer = self._clock.callLater(CLOSE_SECONDS, self.hurry)
        await self.lines.empty()
        if timer.active():
            timer.cancel()
        await self.scheduler.drain()

    def hurry(self) -> None:
        """Cut the connections that :meth:`drain` waits for."""
        self.lines.abort()
