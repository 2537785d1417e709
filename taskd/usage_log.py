"""What users create and store, gathered in a process and added to the store about once a second.

So no row of a user changes with each task. What a crash of the process loses, or an unknown outcome of a commit counts
twice, is what the users have done in a second. A stop while the store is away loses what was gathered since it left.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred, DeferredList, DeferredLock
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from taskd.model.errors import Unavailable
from taskd.ports.quotas import UsageDelta
from taskd.ports.store import IStore

INTERVAL = 1.0
"""Seconds from the first change to the statement that stores it, and from a failed statement to the next."""

MOST = 1000
"""Users in one statement."""

STOP_SECONDS = 3.0
"""Seconds that :meth:`UsageLog.stop` takes at most."""


class UsageLog:
    """Costs nothing while nothing happens: there is a timer only while something is gathered."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, store: IStore) -> None:
        self._clock = clock
        self._store = store
        self._gathered: dict[int, list[int]] = {}
        self._storing = DeferredLock()
        # what the statement under way stores, and those that follow it
        self._under_way: Sequence[UsageDelta] = ()
        self._has_failed = False
        self._timer: IDelayedCall | None = None
        self._stopped = self._is_over = False

    def add(self, user_id: int, tasks: int, size: int) -> None:
        """A user has created so many tasks, and has so many bytes more. Fewer bytes are negative."""
        counts = self._gathered.get(user_id)
        if counts is None:
            self._gathered[user_id] = [tasks, size]
            if self._timer is None and not self._stopped:
                self._timer = self._clock.callLater(INTERVAL, self._begin)
        else:
            counts[0] += tasks
            counts[1] += size

    def gathered(self, user_id: int) -> Sequence[int]:
        """Tasks and bytes of a user that no statement has taken yet."""
        return self._gathered.get(user_id, (0, 0))

    async def stop(self) -> None:
        """Store what is gathered, and start no statement after that. Takes at most STOP_SECONDS, and does not wait for
        a store that is away. Never fails."""
        self._stopped = True
        if self._timer is not None:
            if self._timer.active():
                self._timer.cancel()
            self._timer = None
        self._has_failed = False
        if self._store.ready:
            over: Deferred[None] = Deferred()
            limit = self._clock.callLater(STOP_SECONDS, over.callback, None)
            rest = self._storing.run(lambda: Deferred.fromCoroutine(self._store_rest()))
            # a statement is not cancelled: nobody would know whether it was committed
            await DeferredList([over, rest], fireOnOneCallback=True, consumeErrors=True)
            if limit.active():
                limit.cancel()
        self._is_over = True
        if left := len(self._gathered.keys() | {delta.user_id for delta in self._under_way}):
            self._log.warn("the use of {count} users could not be stored before the stop", count=left)

    async def _store_rest(self) -> None:
        """Store what is gathered, unless the statement that was under way has failed, or nobody waits any more."""
        if self._store.ready and not self._has_failed and not self._is_over:
            await self._store_all()

    def _begin(self) -> None:
        self._storing.run(lambda: Deferred.fromCoroutine(self._store_all())).addBoth(self._ended)

    def _ended(self, _: object) -> None:
        self._timer = None
        if self._gathered and not self._stopped:
            self._timer = self._clock.callLater(INTERVAL, self._begin)

    async def _store_all(self) -> None:
        """Never fails. What could not be stored is gathered again."""
        gathered, self._gathered = self._gathered, {}
        deltas = [UsageDelta(user_id, *counts) for user_id, counts in sorted(gathered.items()) if any(counts)]
        for start in range(0, len(deltas), MOST):
            if self._is_over:
                return
            self._under_way = deltas[start:]
            try:
                await self._store.add_usage(deltas[start : start + MOST])
            except Unavailable as e:
                self._log.debug("the use of {count} users waits: {why}", count=len(deltas) - start, why=e.message)
                for delta in deltas[start:]:
                    self._again(delta)
                self._under_way = ()
                self._has_failed = True
                return
            except Exception:
                # these would fail again, and nothing else would ever be stored
                self._log.failure("the use of users could not be stored")
        self._under_way = ()

    def _again(self, delta: UsageDelta) -> None:
        counts = self._gathered.setdefault(delta.user_id, [0, 0])
        counts[0] += delta.tasks
        counts[1] += delta.bytes
