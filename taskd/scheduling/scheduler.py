"""Everything that schedules tasks in one server, wired together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from taskd.events.publisher import Publisher
from taskd.model.errors import Unavailable
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore
from taskd.scheduling.dispatcher import Dispatcher
from taskd.scheduling.liveness import Liveness
from taskd.scheduling.maintenance.delete_finished import DeleteFinished
from taskd.scheduling.maintenance.dispatch_backlog import DispatchBacklog
from taskd.scheduling.maintenance.promote_due import PromoteDue
from taskd.scheduling.maintenance.relay_outbox import RelayOutbox
from taskd.scheduling.maintenance.requeue_lost import RequeueLost
from taskd.scheduling.maintenance.rounds import MaintenanceRounds
from taskd.scheduling.outbox import Outbox
from taskd.scheduling.routes import Routes
from taskd.scheduling.submission import Submitter
from taskd.scheduling.take_back import TakeBack


class Scheduler:
    """``window`` is how many tasks of a route may be in the broker, ``lease`` after how many seconds
    of silence a worker is dead (None: never, for an embedded server), ``keep`` after how many seconds finished tasks
    are deleted (0: never). ``new_id`` makes the ids of batches, UUIDs."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        broker: IBroker,
        publisher: Publisher,
        *,
        queues: Sequence[str],
        window: int,
        lease: float | None,
        keep: float,
        new_id: Callable[[], str],
    ) -> None:
        self.outbox = outbox = Outbox(store, broker)
        make_dispatcher = partial(Dispatcher, clock, store, broker, outbox, publisher, new_id)
        self.routes = routes = Routes(window, queues, make_dispatcher)
        self.windows = windows = routes.windows
        self.submitter = Submitter(clock, store, broker, outbox, windows, publisher, new_id, routes.wake)
        take_back = TakeBack(publisher, routes)
        self.liveness = liveness = Liveness(clock, store, routes, take_back, lease)
        self.maintenance = MaintenanceRounds(
            clock,
            store,
            [
                RelayOutbox(store, broker, outbox),
                PromoteDue(store, routes),
                DispatchBacklog(store, windows, routes),
                RequeueLost(store, broker, windows, take_back, liveness, (lease or 0.0) / 2),
                DeleteFinished(clock, store, keep),
            ],
        )

    def start(self) -> None:
        """Begin to follow the workers, and the rounds of maintenance."""
        self.liveness.start()
        self.maintenance.start()

    async def drain(self) -> None:
        """Finish what is under way and start nothing more. Never fails."""
        self.liveness.stop()
        self.maintenance.stop()
        await self.submitter.drained()
        await self.routes.stop()
        try:
            await self.outbox.mark_published()
        except Unavailable as e:
            self._log.info("some outbox rows stay for other servers: {why}", why=e.message)
