"""Limits how many large replies are built for one connection at a time.

A client that asks faster than it reads must not fill the server's memory.
"""

from __future__ import annotations

from collections import deque
from types import TracebackType

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from taskd.model.errors import Draining

MAX_REPLIES = 4
"""Large replies of one connection that are built at a time."""


class ReplyLimiter:
    """``async with limiter:`` around the building of a reply: at most ``limit`` at a time, and none while paused."""

    def __init__(self, clock: IReactorTime, limit: int = MAX_REPLIES) -> None:
        self._clock = clock
        self._free = limit
        self._paused = False
        self._closed = False
        self._waiting: deque[Deferred[None]] = deque()

    def pause(self, yes: bool) -> None:
        """Pause while the client has replies to read."""
        self._paused = yes
        self._let_in()

    def close(self) -> None:
        """The connection is closed: whoever waits gets Draining."""
        self._closed = True
        waiting, self._waiting = self._waiting, deque()
        for turn in waiting:
            turn.errback(_connection_closed())

    async def __aenter__(self) -> None:
        if self._closed:
            raise _connection_closed()
        turn: Deferred[None] = Deferred()
        self._waiting.append(turn)
        self._let_in()
        await turn

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Not at once: the reply is written after the block, and then the client may have to read first.
        self._clock.callLater(0, self._ended)

    def _ended(self) -> None:
        self._free += 1
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._free and not self._paused:
            self._free -= 1
            self._waiting.popleft().callback(None)


def _connection_closed() -> Draining:
    return Draining("this connection is closed; connect again")
