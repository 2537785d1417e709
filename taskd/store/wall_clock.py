"""The time of a store that has no database server to ask: one clock, which a change of the system's clock does not
move."""

from __future__ import annotations

import time
from collections.abc import Callable

from twisted.logger import Logger

TOLERANCE = 60.0
"""Seconds by which the system's clock may differ before the log says so."""

WARN_EVERY = 3600.0


def elapsed() -> float:
    """Seconds since some moment in the past. The time that the machine was suspended counts where the system can tell:
    tasks that are due in the morning are due although the machine slept at night."""
    return time.clock_gettime(_ELAPSED)


_ELAPSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class WallClock:
    """Seconds since the epoch: ``system`` as it was at first, and ``passed`` since then.

    So a change of the system's clock makes no task due, and keeps none from being due. The log warns of the difference.
    """

    _log = Logger()

    def __init__(self, system: Callable[[], float] = time.time, passed: Callable[[], float] = elapsed) -> None:
        self._system = system
        self._passed = passed
        self._start = system() - passed()
        self._warned = float("-inf")

    def __call__(self) -> float:
        passed = self._passed()
        now = self._start + passed
        ahead = self._system() - now
        if abs(ahead) > TOLERANCE and passed >= self._warned + WARN_EVERY:
            self._warned = passed
            self._log.warn(
                "the system's clock has been set {direction} by {seconds} seconds: tasks keep the time from before"
                " until the next start",
                direction="forward" if ahead > 0 else "back",
                seconds=round(abs(ahead)),
            )
        return now
