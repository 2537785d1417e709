"""When a server takes its turns in a pool: one at a time, and none without a wish."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from taskd.model.errors import Unavailable

GATHER = 0.05
"""Seconds from the beginning of a turn to that of the next, so that some room gathers: a turn for one task costs as
much as a turn for many. About twice as much work is on its way to the slots."""

PAUSE = 0.2
"""Seconds until the next turn if the store was away, or another server took long over its turn."""

DEFECT_PAUSE = 1.0


class Turns:
    """Calls ``take_turn``, which returns the seconds until it wants another turn, None if it wants none.

    A wish stays until a turn has begun after it, so a turn that fails is taken again. ``name`` is for the log.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, name: str, take_turn: Callable[[], Awaitable[float | None]]) -> None:
        self._clock = clock
        self._name = name
        self._take_turn = take_turn
        self._due = math.inf
        self._not_before = -math.inf
        self._timer: IDelayedCall | None = None
        self._running = False
        self._stopped = False
        self._stopping: list[Deferred[None]] = []
        self._trouble = ""
        self.began = -math.inf
        """When the last turn began."""

    @property
    def wished(self) -> bool:
        """Whether a turn is under way, or will be taken."""
        return self._running or self._due < math.inf

    def wish(self, within: float = 0.0, gather: bool = True) -> None:
        """Take a turn that begins after this call, within so many seconds; at once even if the last one has just begun,
        without ``gather``."""
        at = self._clock.seconds() + within
        if gather:
            at = max(at, self.began + GATHER)
        self._due = min(self._due, max(at, self._not_before))
        self._set_timer()

    def stop(self) -> Deferred[None]:
        """Begin no more turns; fires when the one under way has ended."""
        self._stopped = True
        self._cancel_timer()
        if not self._running:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._stopping.append(done)
        return done

    def _set_timer(self) -> None:
        if self._running or self._stopped or self._due == math.inf:
            return
        if self._timer is None or self._timer.getTime() > self._due:
            self._cancel_timer()
            self._timer = self._clock.callLater(max(0.0, self._due - self._clock.seconds()), self._begin)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self) -> None:
        self._timer = None
        self._due = math.inf
        self.began = self._clock.seconds()
        self._running = True
        Deferred.fromCoroutine(self._run())

    async def _run(self) -> None:
        """One turn. Never fails."""
        try:
            again = await self._take_turn()
        except Unavailable as e:
            self._failed(PAUSE, str(e))
        except Exception as e:
            if self._trouble != repr(e):
                self._log.failure("{name}: a turn failed", name=self._name)
            self._trouble = repr(e)
            self._failed(DEFECT_PAUSE, self._trouble)
        else:
            self._trouble = ""
            if again is not None:
                self.wish(again, gather=again > 0)
        self._running = False
        self._set_timer()
        for done in self._stopping:
            done.callback(None)
        self._stopping.clear()

    def _failed(self, pause: float, why: str) -> None:
        if self._trouble != why:
            self._log.info("{name}: the next turn waits: {why}", name=self._name, why=why)
        self._trouble = why
        self._not_before = self._clock.seconds() + pause
        self._due = self._not_before
