"""The name under which the worker holds its tasks, and until when it may begin any."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from twisted.internet.interfaces import IReactorTime

ALIVE_SECONDS = 2.5
"""A task begins only if a beat that was sent no longer ago than this was accepted. Servers take a worker for dead no
earlier than three of their polls later."""

_WITH_SUSPENSION = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _suspended() -> float:
    """For how many seconds the machine was suspended since its start: the monotonic clock stands still then."""
    return time.clock_gettime(_WITH_SUSPENSION) - time.clock_gettime(time.CLOCK_MONOTONIC)


class Moment(NamedTuple):
    """A time of the clock, and for how many seconds the machine had been suspended by then."""

    seconds: float
    suspended: float


_NEVER = Moment(float("-inf"), 0.0)


class Identity:
    """The worker's present name. ``new_name`` makes names that nobody has or had: a name that was fenced never counts
    again, so the worker goes on under another one."""

    def __init__(self, clock: IReactorTime, new_name: Callable[[], str]) -> None:
        self._clock = clock
        self._new_name = new_name
        self._heard = _NEVER
        self.name = new_name()

    @property
    def is_alive(self) -> bool:
        """Whether the store counts this name as alive, as far as the worker knows."""
        slept = _suspended() - self._heard.suspended
        return self._clock.seconds() + (slept if slept > 0.1 else 0.0) < self._heard.seconds + ALIVE_SECONDS

    def now(self) -> Moment:
        """The time at which a beat is sent."""
        return Moment(self._clock.seconds(), _suspended())

    def heard(self, sent: Moment) -> None:
        """The store has accepted a beat that was sent then."""
        self._heard = sent

    def rename(self) -> None:
        """Take a new name."""
        self.name = self._new_name()
        self._heard = _NEVER
