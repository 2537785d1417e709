"""When a client tries again: the pauses between attempts, and the loop for one that lost its connection."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from taskd.client.errors import ClientError

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0


class RetryListener(Protocol):
    """Is called when the client begins to wait for the server, and when the server works again."""

    def waiting(self, error: ClientError) -> None:
        """The first pause begins, because of this error."""

    def reconnected(self) -> None:
        """An attempt has succeeded. Comes only after :meth:`waiting`."""


class Backoff:
    """Exponential backoff with jitter, so that many clients do not come back at the same moment.

    Each pause is a random part of a limit that doubles: between half of it and all of it ("equal jitter", Brooker,
    Exponential Backoff And Jitter, AWS 2015).
    """

    def __init__(self, clock: IReactorTime, listener: RetryListener) -> None:
        self._clock = clock
        self._listener = listener
        self._limit = FIRST_PAUSE
        self._waiting = False

    def next_pause(self) -> float:
        """The length of the next pause, in seconds."""
        limit, self._limit = self._limit, min(self._limit * 2, LONGEST_PAUSE)
        return random.uniform(limit / 2, limit)

    async def wait(self, error: ClientError, most: float) -> None:
        """Pause for at least ``error.retry_after`` and at most ``most`` seconds."""
        if not self._waiting:
            self._waiting = True
            self._listener.waiting(error)
        await deferLater(self._clock, min(max(self.next_pause(), error.retry_after), most))

    def reset(self) -> None:
        """An attempt has succeeded: the next pause is a short one."""
        self._limit = FIRST_PAUSE
        if self._waiting:
            self._waiting = False
            self._listener.reconnected()


class Reconnector:
    """Repeats an attempt when its connection is lost. ``deadline`` is in seconds of the clock.

    The first connection must work: until :meth:`connected` is called, :meth:`run` raises every error.
    """

    def __init__(self, clock: IReactorTime, listener: RetryListener, deadline: float = math.inf) -> None:
        self._clock = clock
        self._deadline = deadline
        self._backoff = Backoff(clock, listener)
        self._was_connected = False

    def connected(self) -> None:
        """The attempt has reached the server."""
        self._was_connected = True
        self._backoff.reset()

    async def run(self, attempt: Callable[[], Awaitable[int]]) -> int | None:
        """The result of the attempt that succeeds, None after the deadline.

        Raises ClientError if it is not transient.
        """
        while True:
            try:
                return await attempt()
            except ClientError as e:
                if not (self._was_connected and e.transient):
                    raise
                error = e
            left = self._deadline - self._clock.seconds()
            if left <= 0:
                return None
            await self._backoff.wait(error, left)
