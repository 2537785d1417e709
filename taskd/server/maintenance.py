"""The sweeper's round: once a second every server puts right what a crash or a lost message left behind.

All servers do it at once; the store's row locks keep them from doing anything twice, so there is no leader to lose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from taskd.errors import BrokerUnavailable, Unavailable
from taskd.model import State, Task
from taskd.ports import IBroker, ITaskStore
from taskd.server.announcer import Announcer
from taskd.server.dispatcher import Dispatcher
from taskd.server.outbox import Outbox
from taskd.server.window import Windows

ROUND = 1.0
"""Seconds between rounds."""

SWEEP = 500
"""Rows that one repair changes at most; the next round goes on."""

SWEEPS = 10
"""How often delayed tasks that have come due are looked for in one round, while there are more."""

LOST_AFTER = 10.0
"""Seconds after which a queued task is missed when the broker's queue is empty."""


class Maintenance:
    """Relays the outbox, promotes what has come due, corrects the windows, dispatches, expires leases and finds lost
    messages.

    ``lease`` is the workers' lease in seconds: after the store has been away, leases are given the time of a renewal
    before any of them counts as expired, since no worker could renew it meanwhile.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: ITaskStore,
        broker: IBroker,
        outbox: Outbox,
        windows: Windows,
        dispatchers: Mapping[str, Dispatcher],
        announcer: Announcer,
        lease: float,
    ) -> None:
        self._clock = clock
        self._store = store
        self._broker = broker
        self._outbox = outbox
        self._windows = windows
        self._dispatchers = dispatchers
        self._announcer = announcer
        self._grace = lease / 2
        self._ready_since: float | None = None
        self._counts: Mapping[str, int] = {}
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
        for step in (self._outbox.relay, self._promote, self._dispatch, self._expire, self._find_lost):
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
            for queue, user_id in due:
                window = self._windows.by_queue.get(queue)
                if window is not None:
                    window.suspect(user_id)
            for queue in {queue for queue, _ in due} & self._dispatchers.keys():
                self._dispatchers[queue].wake()

    async def _dispatch(self) -> None:
        self._counts = await self._store.count_queued()
        self._windows.correct(self._counts)
        for dispatcher in self._dispatchers.values():
            dispatcher.tick()

    async def _expire(self) -> None:
        if self._ready_since is not None and self._clock.seconds() - self._ready_since >= self._grace:
            self._changed(await self._store.expire_leases(SWEEP), "their lease has expired")

    async def _find_lost(self) -> None:
        for queue, count in self._counts.items():
            if count and self._broker.ready and await self._broker.depth(queue) == 0:
                lost = await self._store.requeue_lost(queue, LOST_AFTER, SWEEP)
                if queue in self._windows.by_queue:
                    self._windows.by_queue[queue].take(-len(lost))
                self._changed(lost, "their messages were lost")

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
            window = self._windows.by_queue.get(task.queue)
            if window is not None and task.state is State.WAITING:
                window.suspect(task.user_id)
        self._announcer.announce(tasks)
        for dispatcher in self._dispatchers.values():
            dispatcher.wake()
