"""Limits how many large replies are built at a time: for one connection, and on the whole server.

A client that asks faster than it reads must not fill the server's memory. Many clients that ask at the same time must
not take all connections to the database from those that create tasks.
"""

from __future__ import annotations

from collections import deque
from types import TracebackType

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from taskd.model.errors import Draining

MAX_REPLIES = 2
"""Large replies of one connection that are built at a time."""

MAX_SERVER_REPLIES = 3
"""Large replies of all connections that are built at a time: half as many as there are connections to the database."""


class ReplySlots:
    """The large replies of a whole server: connections take slots in turn, one each."""

    def __init__(self, free: int = MAX_SERVER_REPLIES) -> None:
        self._free = free
        self._waiting: dict[ReplyLimiter, None] = {}

    def take(self, limiter: ReplyLimiter) -> bool:
        """Take a slot. If none is free, the limiter's ``let_in`` is called when one is."""
        if self._free:
            self._free -= 1
            return True
        self._waiting[limiter] = None
        return False

    def give_back(self) -> None:
        """A reply is built."""
        self._free += 1
        while self._free and self._waiting:
            limiter = next(iter(self._waiting))
            del self._waiting[limiter]
            limiter.let_in()

    def forget(self, limiter: ReplyLimiter) -> None:
        """This limiter wants no slot any more."""
        self._waiting.pop(limiter, None)


class ReplyLimiter:
    """``async with limiter:`` around the building of a reply: at most ``limit`` at a time, and none while paused."""

    def __init__(self, clock: IReactorTime, slots: ReplySlots, limit: int = MAX_REPLIES) -> None:
        self._clock = clock
        self._slots = slots
        self._free = limit
        self._paused = False
        self._closed = False
        self._waiting: deque[Deferred[None]] = deque()

    def pause(self, yes: bool) -> None:
        """Pause while the client has replies to read."""
        self._paused = yes
        self.let_in()

    def close(self) -> None:
        """The connection is closed: whoever waits gets Draining."""
        self._closed = True
        self._slots.forget(self)
        waiting, self._waiting = self._waiting, deque()
        for turn in waiting:
            turn.errback(_connection_closed())

    async def __aenter__(self) -> None:
        if self._closed:
            raise _connection_closed()
        turn: Deferred[None] = Deferred()
        self._waiting.append(turn)
        self.let_in()
        await turn

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Not at once: the reply is written after the block, and then the client may have to read first.
        self._clock.callLater(0, self._ended)

    def _ended(self) -> None:
        self._free += 1
        self._slots.give_back()
        self.let_in()

    def let_in(self) -> None:
        """Let in those that may build now."""
        while self._waiting and self._free and not self._paused and self._slots.take(self):
            self._free -= 1
            self._waiting.popleft().callback(None)


def _connection_closed() -> Draining:
    return Draining("this connection is closed; connect again")
