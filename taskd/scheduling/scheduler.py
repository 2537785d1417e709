"""Everything that schedules tasks in one server, wired together."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime

from taskd.events.publisher import Publisher
from taskd.events.records import TaskChange
from taskd.model.quotas import Limits
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore
from taskd.scheduling.dispatcher import Dispatcher
from taskd.scheduling.fast_path import FastPath
from taskd.scheduling.liveness import Liveness
from taskd.scheduling.maintenance.delete_finished import DeleteFinished
from taskd.scheduling.maintenance.fold_usage import FoldUsage
from taskd.scheduling.maintenance.promote_due import PromoteDue
from taskd.scheduling.maintenance.purge_deleted import PurgeDeleted
from taskd.scheduling.maintenance.rounds import MaintenanceRounds
from taskd.scheduling.maintenance.sweep_accounts import SweepAccounts
from taskd.scheduling.pools import Pools
from taskd.scheduling.quotas import Quotas
from taskd.scheduling.submission import Submitter
from taskd.scheduling.take_back import TakeBack
from taskd.usage_log import UsageLog


class Scheduler:
    """``queues`` are those whose tasks this server assigns. ``lease`` is after how many seconds of silence a worker is
    dead (None: never, for an embedded server), ``keep`` after how many seconds finished tasks are deleted (0: never).
    Rows of the audit are deleted after ``audit_days``, and logins end after ``session_idle`` seconds without use.
    ``limits`` are the quotas of users who have none of their own.
    """

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        broker: IBroker,
        publisher: Publisher,
        *,
        queues: Sequence[str],
        lease: float | None,
        keep: float,
        limits: Limits,
        audit_days: float = 365.0,
        session_idle: float = 7 * 86_400.0,
    ) -> None:
        self._usage = usage = UsageLog(clock, store)
        self.quotas = quotas = Quotas(clock, store, usage, limits)
        self.pools = pools = Pools(queues)
        self.dispatcher = dispatcher = Dispatcher(clock, store, broker, publisher, pools)
        self.submitter = Submitter(clock, store, broker, publisher, dispatcher, FastPath(dispatcher, pools), quotas)
        self.liveness = Liveness(clock, store, dispatcher, TakeBack(publisher, dispatcher), lease)
        self.maintenance = MaintenanceRounds(
            clock,
            store,
            [
                PromoteDue(store, publisher, dispatcher),
                DeleteFinished(clock, store, keep),
                PurgeDeleted(clock, store, broker, publisher, dispatcher),
                SweepAccounts(clock, store, audit_days, session_idle),
                FoldUsage(clock, store),
            ],
        )

    def start(self) -> None:
        """Begin to follow the workers, and the rounds of maintenance."""
        self.liveness.start()
        self.dispatcher.start()
        self.maintenance.start()

    def follow(self, changes: Sequence[TaskChange]) -> None:
        """Other processes have changed these tasks."""
        self.dispatcher.follow(changes)
        self.submitter.ids.seen(max(change.task_id for change in changes))

    async def drain(self) -> None:
        """Finish what is under way and start nothing more. Never fails."""
        self.liveness.stop()
        self.maintenance.stop()
        await self.submitter.drained()
        await self._usage.stop()
        await self.dispatcher.stop()
