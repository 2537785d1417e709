"""Turns at making a large reply, so that a peer that asks faster than it reads does not fill our memory."""

from __future__ import annotations

from collections import deque
from types import TracebackType

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from taskd.model.errors import Draining

MAX_REPLIES = 4
"""Large replies of one connection in the making."""


class ReplyLimiter:
    """``async with turns:`` around the making of a reply: at most ``limit`` at a time, and none while it is on hold."""

    def __init__(self, clock: IReactorTime, limit: int = MAX_REPLIES) -> None:
        self._clock = clock
        self._free = limit
        self._held = False
        self._over = False
        self._waiting: deque[Deferred[None]] = deque()

    def hold(self, yes: bool) -> None:
        """Whether the peer has still to read what was made for it."""
        self._held = yes
        self._go_on()

    def close(self) -> None:
        """The peer is gone: nobody who waits gets a turn any more."""
        self._over = True
        waiting, self._waiting = self._waiting, deque()
        for turn in waiting:
            turn.errback(_gone())

    async def __aenter__(self) -> None:
        if self._over:
            raise _gone()
        turn: Deferred[None] = Deferred()
        self._waiting.append(turn)
        self._go_on()
        await turn

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Not at once: the reply is only written behind the block, and then the peer may have to read first.
        self._clock.callLater(0, self._ended)

    def _ended(self) -> None:
        self._free += 1
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and self._free and not self._held:
            self._free -= 1
            self._waiting.popleft().callback(None)


def _gone() -> Draining:
    return Draining("this connection is closed; connect again")
