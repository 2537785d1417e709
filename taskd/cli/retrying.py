"""Trying again when a connection is lost or the server is away for a while."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable

from taskd.cli.context import Context, explain
from taskd.client.errors import ClientError, Refused

FIRST_RETRY = 0.5
LAST_RETRY = 10.0


class Pauses:
    """The pauses between attempts, of which the user is told once: when they begin and when they are over.

    They double, with jitter, so that many clients do not come back at once.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._pause = FIRST_RETRY
        self._told = False

    def next(self) -> float:
        """How long the next one is, in seconds."""
        pause, self._pause = self._pause, min(self._pause * 2, LAST_RETRY)
        return random.uniform(pause / 2, pause)

    async def wait(self, why: ClientError, left: float) -> None:
        """Wait for the next attempt, which the server may have asked to be later, but no longer than what is left."""
        if not self._told:
            self._told = True
            texts = self._ctx.texts
            again = texts("retrying", why=explain(why, texts)) if isinstance(why, Refused) else texts("reconnecting")
            self._ctx.out.note(again)
        await self._ctx.sleep(min(max(self.next(), why.retry_after), left))

    def over(self) -> None:
        """The server is there again."""
        self._pause = FIRST_RETRY
        if self._told:
            self._told = False
            self._ctx.out.note(self._ctx.texts("reconnected"))


class Reconnector:
    """Makes an attempt anew when its connection is lost. ``deadline`` is in seconds of the clock.

    The first connection has to work: until :meth:`connected` is called, every error is raised.
    """

    def __init__(self, ctx: Context, deadline: float = math.inf) -> None:
        self._ctx = ctx
        self._deadline = deadline
        self._pauses = Pauses(ctx)
        self._was_connected = False

    def connected(self) -> None:
        """The attempt has got through to the server."""
        self._was_connected = True
        self._pauses.over()

    async def run(self, attempt: Callable[[], Awaitable[int]]) -> int | None:
        """What the attempt returns in the end, None past the deadline.

        Raises ClientError when trying again would not help.
        """
        while True:
            try:
                return await attempt()
            except ClientError as e:
                if not (self._was_connected and e.transient):
                    raise
                why = e
            left = self._deadline - self._ctx.clock.seconds()
            if left <= 0:
                return None
            await self._pauses.wait(why, left)
