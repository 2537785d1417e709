"""Growing pauses between attempts to reach a database."""

from __future__ import annotations

import random
from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from taskd.model.errors import Unavailable

MIN_DELAY = 0.1

MAX_DELAY = 5.0
"""Seconds between attempts to reach the database: doubled from first to last, less a random part of up to a half."""


def delay(failures: int, jitter: Callable[[], float] = random.random) -> float:
    """Seconds to wait after this many failures in a row, the last one not counted."""
    return min(MAX_DELAY, MIN_DELAY * 2.0 ** min(failures, 10)) * (1 - jitter() / 2)


def closed() -> Unavailable:
    """What a call gets once its store has been stopped."""
    return Unavailable("the store is closed")


class Pauses:
    """Growing pauses between attempts, which stop() ends."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._failures = 0
        self._pause: Deferred[None] | None = None
        self.stopped = False

    async def pause(self) -> None:
        """Wait before the next attempt. Raises Unavailable once stopped."""
        if not self.stopped:
            self._pause = deferLater(self._clock, delay(self._failures))
            self._failures += 1
            try:
                await self._pause
            except CancelledError:
                if not self.stopped:
                    raise
        if self.stopped:
            raise closed()

    def stop(self) -> None:
        """Whoever pauses gets Unavailable, now and later."""
        self.stopped = True
        if self._pause is not None:
            self._pause.cancel()
