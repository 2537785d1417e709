"""Growing delays between attempts to reach a database."""

from __future__ import annotations

import random

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from taskd.model.backoff import Backoff
from taskd.store.refusals import closed

MIN_DELAY = 0.1
MAX_DELAY = 5.0

BACKOFF = Backoff(first=MIN_DELAY, longest=MAX_DELAY)
"""Seconds between attempts to reach the database."""


class ReconnectDelay:
    """The delays of one store that starts; stop() ends them."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._failures = 0
        self._waiting: Deferred[None] | None = None
        self.stopped = False

    async def wait(self) -> None:
        """Wait before the next attempt. Raises Unavailable once stopped."""
        if not self.stopped:
            self._failures += 1
            self._waiting = deferLater(self._clock, BACKOFF.delay(self._failures, random.random()))
            try:
                await self._waiting
            except CancelledError:
                if not self.stopped:
                    raise
        if self.stopped:
            raise closed()

    def stop(self) -> None:
        """End the delay; every wait() from now on raises Unavailable."""
        self.stopped = True
        if self._waiting is not None:
            self._waiting.cancel()
