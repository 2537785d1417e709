"""One clock for the game, and a view of it for each process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import Clock
from zope.interface import implementer

START = 1_700_000_000.0
"""The time at which every game begins, in seconds since 1970."""

Timers = list[tuple[float, int, "Timer"]]


class Owner:
    """The process that timers belong to. Timers of a dead owner never run; those of a paused owner wait. ``offset`` is
    by how much its clock is off."""

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset
        self.dead = False
        self.paused = False
        self.deferred: list[Timer] = []


@implementer(IDelayedCall)
class Timer:
    """A scheduled call. Timers for the same time run in the order in which they were set."""

    __slots__ = ("_clock", "call", "number", "owner", "state", "time")

    def __init__(self, clock: SimClock, owner: Owner | None, time: float, call: Callable[[], object]) -> None:
        self._clock = clock
        self.owner = owner
        self.time = time
        self.call: Callable[[], object] | None = call
        self.state = "active"
        self.number = 0

    def getTime(self) -> float:
        """By the clock of its owner."""
        return self.time if self.owner is None else self.time + self.owner.offset

    def active(self) -> bool:
        return self.state == "active"

    def cancel(self) -> None:
        self._check()
        self.state = "cancelled"
        self.call = None

    def delay(self, secondsLater: float) -> None:
        self._check()
        self._clock.schedule(self, self.time + secondsLater)

    def reset(self, secondsFromNow: float) -> None:
        self._check()
        self._clock.schedule(self, self._clock.rightNow + secondsFromNow)

    def _check(self) -> None:
        if self.state == "called":
            raise AlreadyCalled()
        if self.state == "cancelled":
            raise AlreadyCancelled()


class SimClock(Clock):
    """Twisted's Clock on a heap, for thousands of timers. It advances from one timer to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.rightNow = START
        self._timers: Timers = []
        self._numbers = 0

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> IDelayedCall:
        return self.call(None, delay, callable, *args, **kw)

    def call(self, owner: Owner | None, delay: float, what: Callable[..., object], *args: Any, **kw: Any) -> Timer:
        """As callLater, for a process, or for the world if ``owner`` is None."""
        if not delay >= 0:
            raise ValueError(f"a delay of {delay} seconds")
        call = (lambda: what(*args, **kw)) if args or kw else what
        timer = Timer(self, owner, 0.0, call)
        self.schedule(timer, self.rightNow + delay)
        return timer

    def schedule(self, timer: Timer, time: float) -> None:
        """Run a timer at this time instead of an earlier choice."""
        self._numbers += 1
        timer.time, timer.number = time, self._numbers
        heappush(self._timers, (time, timer.number, timer))

    def step(self) -> bool:
        """Advance to the next timer and run it. Returns False if there is none."""
        timers = self._timers
        while timers:
            time, number, timer = heappop(timers)
            if timer.number != number or timer.state != "active":
                continue
            owner = timer.owner
            if owner is not None and owner.dead:
                continue
            self.rightNow = max(self.rightNow, time)
            if owner is not None and owner.paused:
                owner.deferred.append(timer)
                continue
            timer.state = "called"
            call, timer.call = timer.call, None
            assert call is not None
            call()
            return True
        return False

    def resume(self, owner: Owner) -> None:
        """An owner is no longer paused: run now the timers that were due meanwhile."""
        deferred, owner.deferred = owner.deferred, []
        for timer in deferred:
            if timer.state == "active":
                self.schedule(timer, self.rightNow)


@implementer(IReactorTime)
class OwnClock:
    """A process's view of the clock. Its time is off by some seconds, as on real machines."""

    def __init__(self, clock: SimClock, owner: Owner) -> None:
        self._clock = clock
        self._owner = owner

    def seconds(self) -> float:
        return self._clock.rightNow + self._owner.offset

    def callLater(self, delay: float, callable: Callable[..., Any], *args: object, **kwargs: object) -> IDelayedCall:
        return self._clock.call(self._owner, delay, callable, *args, **kwargs)

    def getDelayedCalls(self) -> Sequence[IDelayedCall]:
        return []
