"""The sweeper's round: once a second every server puts right what a crash or a lost message left behind.

All servers do it at once; the store's row locks keep them from doing anything twice, so there is no leader to lose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from taskd.events.publisher import Publisher
from taskd.model.errors import BrokerUnavailable, Unavailable
from taskd.model.states import State
from taskd.model.tasks import Route, Task
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore
from taskd.scheduling.outbox import Outbox
from taskd.scheduling.routes import Routes
from taskd.scheduling.window import Windows

ROUND = 1.0
"""Seconds between rounds."""

SWEEP = 500
"""Rows that one repair changes at most; the next round goes on."""

SWEEPS = 40
"""How often delayed tasks that have come due are looked for in one round, while there are more."""

LOST_AFTER = 10.0
"""Seconds after which a queued task is missed when the broker's queue is empty."""

DELETE = 200
"""Finished tasks that one round looks at, to delete those that are old enough."""

DELETE_REST = 10.0
"""Seconds of rest once all of them have been looked at."""


class Maintenance:
    """Relays the outbox, follows the workers that come and go, promotes what has come due, corrects the windows,
    dispatches, expires leases, finds lost messages and deletes what ended more than ``keep`` seconds ago (0: never).

    ``lease`` is the workers' lease in seconds: after the store has been away, leases are given the time of a renewal
    before any of them counts as expired, since no worker could renew it meanwhile.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        broker: IBroker,
        outbox: Outbox,
        windows: Windows,
        routes: Routes,
        publisher: Publisher,
        lease: float,
        keep: float = 0.0,
    ) -> None:
        self._clock = clock
        self._store = store
        self._broker = broker
        self._outbox = outbox
        self._windows = windows
        self._routes = routes
        self._publisher = publisher
        self._grace = lease / 2
        self._ready_since: float | None = None
        self._keep = keep
        self._looked_at = 0
        self._delete_at = clock.seconds()
        self._counts: Mapping[Route, int] = {}
        self._loop = LoopingCall(lambda: Deferred.fromCoroutine(self.round()))
        self._loop.clock = clock

    def start(self) -> None:
        """Begin the rounds."""
        self._loop.start(ROUND)

    def stop(self) -> None:
        """End the rounds."""
        if self._loop.running:
            self._loop.stop()

    async def round(self) -> None:
        """One round. Never fails."""
        now = self._clock.seconds()
        if not self._store.ready:
            self._ready_since = None
            return
        if self._ready_since is None:
            self._ready_since = now
        steps = (
            *(self._outbox.relay, self._routes.refresh, self._promote, self._dispatch, self._expire),
            *(self._find_lost, self._delete),
        )
        for step in steps:
            try:
                await step()
            except (Unavailable, BrokerUnavailable) as e:
                self._log.debug("the round was cut short: {why}", why=str(e))
                return
            except Exception:
                # a defect in one repair must not keep the others from being done
                self._log.failure("maintenance: {step} failed", step=step.__name__)

    async def _promote(self) -> None:
        """Delayed tasks whose time has come join the backlog."""
        for _ in range(SWEEPS):
            due = await self._store.promote(SWEEP)
            if not due:
                return
            for route, user_id in due:
                self._windows.mark_backlogged(route, user_id)
            for route in {route for route, _ in due}:
                self._routes.wake(route)

    async def _dispatch(self) -> None:
        self._counts = await self._store.count_queued()
        self._windows.correct(self._counts)
        self._routes.tick()

    async def _expire(self) -> None:
        if self._ready_since is not None and self._clock.seconds() - self._ready_since >= self._grace:
            self._changed(await self._store.expire_leases(SWEEP), "their lease has expired")

    async def _find_lost(self) -> None:
        for route, count in self._counts.items():  # be they open or not: RabbitMQ keeps what nobody serves
            if count and self._broker.ready and await self._broker.depth(route.name) == 0:
                lost = await self._store.requeue_lost(route, LOST_AFTER, SWEEP)
                window = self._windows.by_route.get(route)
                if window is not None:
                    window.take(-len(lost))
                self._changed(lost, "their messages were lost")

    async def _delete(self) -> None:
        if not self._keep or self._clock.seconds() < self._delete_at:
            return
        count, last = await self._store.delete_finished(self._keep, self._looked_at, DELETE)
        if count:
            self._log.debug("{count} finished tasks were deleted", count=count)
        if last is None:
            self._looked_at = 0
            self._delete_at = self._clock.seconds() + DELETE_REST
        else:
            self._looked_at = last

    def _changed(self, tasks: Sequence[Task], why: str) -> None:
        if not tasks:
            return
        self._log.info(
            "{count} tasks taken back, {why}: {ids}",
            count=len(tasks),
            why=why,
            ids=[t.id for t in tasks[:20]],
        )
        for task in tasks:
            if task.state is State.WAITING:
                self._windows.mark_backlogged(task.route, task.user_id)
        self._publisher.announce(tasks)
        for route in {task.route for task in tasks}:
            self._routes.wake(route)
