"""One clock for all, and a view of it for each process, which can be stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import Clock
from zope.interface import implementer

START = 1_700_000_000.0
"""When every game begins, in seconds since 1970."""

Timers = list[tuple[float, int, "Timer"]]


class Owner:
    """Whose turn a timer is. A dead owner's timers never run; a paused one's wait for it."""

    def __init__(self) -> None:
        self.dead = False
        self.paused = False
        self.held: list[Timer] = []


@implementer(IDelayedCall)
class Timer:
    """A call to come. Timers of the same moment run in the order in which they were set."""

    __slots__ = ("_clock", "call", "number", "owner", "state", "time")

    def __init__(self, clock: SimClock, owner: Owner | None, time: float, call: Callable[[], object]) -> None:
        self._clock = clock
        self.owner = owner
        self.time = time
        self.call: Callable[[], object] | None = call
        self.state = "active"
        self.number = 0

    def getTime(self) -> float:
        return self.time

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
    """Twisted's Clock on a heap, which thousands of timers ask for, and advanced from one event to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.rightNow = START
        self._timers: Timers = []
        self._numbers = 0

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> IDelayedCall:
        return self.call(None, delay, callable, *args, **kw)

    def call(self, owner: Owner | None, delay: float, what: Callable[..., object], *args: Any, **kw: Any) -> Timer:
        """As callLater, on behalf of a process or, None, of the world around."""
        if not delay >= 0:
            raise ValueError(f"a delay of {delay} seconds")
        call = (lambda: what(*args, **kw)) if args or kw else what
        timer = Timer(self, owner, 0.0, call)
        self.schedule(timer, self.rightNow + delay)
        return timer

    def schedule(self, timer: Timer, time: float) -> None:
        """Run a timer at this time, and at no other."""
        self._numbers += 1
        timer.time, timer.number = time, self._numbers
        heappush(self._timers, (time, timer.number, timer))

    def step(self) -> bool:
        """Advance to the next timer and run it. False when there is none."""
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
                owner.held.append(timer)
                continue
            timer.state = "called"
            call, timer.call = timer.call, None
            assert call is not None
            call()
            return True
        return False

    def go_on(self, owner: Owner) -> None:
        """An owner is not paused any more: what came due meanwhile runs now."""
        held, owner.held = owner.held, []
        for timer in held:
            if timer.state == "active":
                self.schedule(timer, self.rightNow)


@implementer(IReactorTime)
class OwnClock:
    """A process's view of the clock. Its time is some seconds off, as on any machine."""

    def __init__(self, clock: SimClock, owner: Owner, off: float) -> None:
        self._clock = clock
        self._owner = owner
        self._off = off

    def seconds(self) -> float:
        return self._clock.rightNow + self._off

    def callLater(self, delay: float, callable: Callable[..., Any], *args: object, **kwargs: object) -> IDelayedCall:
        return self._clock.call(self._owner, delay, callable, *args, **kwargs)

    def getDelayedCalls(self) -> Sequence[IDelayedCall]:
        return []
