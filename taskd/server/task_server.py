"""One server, wired together. Everything comes in through the constructor, so all of it runs in memory too."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime

from taskd.api.accounts import Accounts
from taskd.api.actions.accounts import AccountActions
from taskd.api.actions.admin import AdminActions
from taskd.api.actions.live import LiveActions
from taskd.api.actions.logs import LogActions
from taskd.api.actions.overview import OverviewActions
from taskd.api.actions.quotas import QuotaActions
from taskd.api.actions.server import ServerActions
from taskd.api.actions.tasks import TaskActions
from taskd.api.core import Api
from taskd.api.owners import Owners
from taskd.api.rights import Rights
from taskd.api.states import StateReader
from taskd.config import DEFAULT_LIMITS, ConnectionLimits
from taskd.events.end_rates import EndRates
from taskd.events.publisher import Publisher
from taskd.events.subscriber import Subscriber
from taskd.events.watch_hub import Hub
from taskd.health import HealthCheck
from taskd.model.quotas import Limits
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore
from taskd.protocol.actions import Theme
from taskd.scheduling.explain import Explainer
from taskd.scheduling.scheduler import Scheduler
from taskd.server.line_connection import LineFactory

CLOSE_SECONDS = 10.0
"""How long connections may take to have their requests under way answered when the server stops."""


class TaskServer:
    """One task server above a store and a broker that the caller starts and stops.

    ``lines`` is the factory for connections. ``lease`` is after how many seconds of silence a worker is dead (None for
    an embedded server: its worker never is), ``node`` a name that no other process has. Finished tasks are deleted
    after ``keep`` seconds; 0 keeps them for ever. Rows of the audit are deleted after ``audit_days``. ``quotas`` are
    those of users who have none of their own. ``limits`` and ``max_connections`` are what clients are allowed.
    """

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        broker: IBroker,
        accounts: Accounts,
        *,
        queues: Sequence[str],
        lease: float | None,
        node: str,
        keep: float = 0.0,
        audit_days: float = 365.0,
        quotas: Limits | None = None,
        limits: ConnectionLimits = DEFAULT_LIMITS,
        max_connections: int | None = None,
    ) -> None:
        self._clock = clock
        self._store = store
        rates = EndRates(clock)
        self.hub = hub = Hub(rates.note)
        self.publisher = publisher = Publisher(clock, store, broker, node, hub)
        self.scheduler = scheduler = Scheduler(
            clock,
            store,
            broker,
            publisher,
            queues=queues,
            lease=lease,
            keep=keep,
            audit_days=audit_days,
            session_idle=accounts.idle,
            limits=quotas or Limits(),
        )
        self.rights = rights = Rights(clock, store, accounts.idle, accounts.role_of, accounts.admin_totp)
        self.subscriber = Subscriber(
            broker,
            hub,
            node,
            scheduler.follow,
            scheduler.liveness.on_event,
            scheduler.dispatcher.look_at,
            scheduler.dispatcher.gap,
            rights.changed,
        )
        states = StateReader(clock, store)
        owners = Owners(accounts, states, rights)
        self.api = Api(
            {
                Theme.SERVER: ServerActions(
                    scheduler.pools, scheduler.liveness, HealthCheck(clock, store, broker), node
                ),
                Theme.OVERVIEW: OverviewActions(clock, store, scheduler.pools, rates),
                Theme.ACCOUNTS: AccountActions(accounts, rights, publisher),
                Theme.ADMIN: AdminActions(accounts, rights, publisher),
                Theme.QUOTAS: QuotaActions(store, accounts, scheduler.quotas),
                Theme.TASKS: TaskActions(
                    store, broker, publisher, scheduler, Explainer(store, broker, scheduler, rates), owners
                ),
                Theme.LOGS: LogActions(clock, store, states, hub, owners),
                Theme.LIVE: LiveActions(clock, store, states, hub),
            },
            rights,
        )
        self.lines = LineFactory(self.api, clock, limits, max_connections)

    def start(self) -> None:
        """Receive events and begin the periodic work. The store and the broker have been started; connections may be
        accepted before."""
        self.subscriber.start(self._store.installation)
        self.scheduler.start()
        self.rights.start()

    async def drain(self) -> None:
        """Answer the requests under way, close the connections, finish what is scheduled. Never fails.

        The caller has stopped to accept connections.
        """
        self.api.drain()
        self.rights.stop()
        self.lines.drain()
        timer = self._clock.callLater(CLOSE_SECONDS, self.hurry)
        await self.lines.empty()
        if timer.active():
            timer.cancel()
        await self.scheduler.drain()

    def hurry(self) -> None:
        """Cut the connections that :meth:`drain` waits for."""
        self.lines.abort()
