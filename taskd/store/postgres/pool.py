"""A pool of connections that replaces those that die.

It knows nothing about PostgreSQL: a connection is anything that opens, closes, and calls back when it dies while idle.
Each connection has one borrower at a time, and is never lent again after an error that makes it suspect.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.model.errors import Unavailable
from taskd.store.reconnect import BACKOFF, MAX_DELAY
from taskd.store.refusals import closed


class OutcomeUnknown(Exception):
    """The connection died while a statement ran. Nobody knows whether the statement was committed."""


class IPooled(Protocol):
    """What the pool needs from a connection."""

    def open(self, on_lost: Callable[[BaseException], None]) -> Awaitable[None]:
        """Connect, in bounded time. ``on_lost`` is called when the connection dies later, but not for close()."""

    def close(self) -> None:
        """Close at once; open() or a statement that runs fails."""


C = TypeVar("C", bound=IPooled)


class Pool(Generic[C]):
    """Keeps ``size`` connections open and lends them out.

    ``make`` makes an unopened connection; ``is_dead`` tells whether an exception means that its connection is dead. A
    caller waits up to ``wait`` seconds for a connection. ``jitter`` gives numbers from 0 to 1.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        make: Callable[[], C],
        is_dead: Callable[[BaseException], bool],
        *,
        name: str,
        size: int = 6,
        wait: float = 5.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._make = make
        self._is_dead = is_dead
        self._name = name
        self._size = size
        self._wait = wait
        self._jitter = jitter
        self._live: set[C] = set()
        # opened, but no statement has succeeded yet: when such a connection dies, the next one waits for the backoff
        self._unproven: set[C] = set()
        self._idle: list[C] = []
        self._waiting: deque[Deferred[C]] = deque()
        self._opening: C | None = None
        self._retry: IDelayedCall | None = None
        self._failures = 0
        self._warned = False
        self._running = False
        self._stopped = False

    @property
    def live(self) -> int:
        """How many connections are open."""
        return len(self._live)

    def start(self) -> None:
        """Begin to connect. After stop() it does nothing."""
        self._running = not self._stopped
        self._fill()

    def stop(self) -> None:
        """Close all connections; running statements fail, and waiting callers get Unavailable."""
        self._running, self._stopped = False, True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        connections = [*self._live, *([self._opening] if self._opening else [])]
        self._live.clear()
        self._unproven.clear()
        self._idle.clear()
        for connection in connections:
            connection.close()
        while self._waiting:
            self._waiting.popleft().errback(closed())

    # -- lending

    def acquire(self) -> Deferred[C]:
        """A connection to use alone, until release() or release_failed(). Raises Unavailable."""
        done: Deferred[C] = Deferred(self._stop_waiting)
        if self._idle:
            # the one used last: its caches are warm
            done.callback(self._idle.pop())
        elif self._stopped:
            done.errback(closed())
        elif not self._running:
            done.errback(self._unavailable("cannot be reached yet"))
        else:
            self._waiting.append(done)
            timer = self._clock.callLater(self._wait, self._give_up, done)
            done.addBoth(_cancel_timer, timer)
        return done

    def release(self, connection: C) -> None:
        """Take back a connection that has worked."""
        self._unproven.discard(connection)
        self._failures = 0
        self._lend(connection)

    def release_failed(self, connection: C, error: BaseException) -> None:
        """Take back a connection whose use raised ``error``. Raises OutcomeUnknown when it is dead."""
        if isinstance(error, CancelledError) or not isinstance(error, Exception):
            # the borrower stopped waiting, and the answer is still to come: the database is not at fault
            self._unproven.discard(connection)
            self._discard(connection, error)
        elif self._is_dead(error):
            self._discard(connection, error)
            raise OutcomeUnknown(reason(error)) from error
        else:
            self.release(connection)

    def _give_up(self, done: Deferred[C]) -> None:
        self._stop_waiting(done)
        done.errback(self._unavailable("has no connection free" if self._live else "cannot be reached now"))

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable(f"{self._name} {why}; try again", retry_after=MAX_DELAY)

    def _stop_waiting(self, done: Deferred[C]) -> None:
        if done in self._waiting:
            self._waiting.remove(done)

    def _lend(self, connection: C) -> None:
        if connection not in self._live:
            return
        if self._waiting:
            self._waiting.popleft().callback(connection)
        else:
            self._idle.append(connection)

    # -- connecting

    def _fill(self) -> None:
        # One at a time, so that a database that starts up is not flooded with connections.
        wanted = self._running and len(self._live) < self._size
        if wanted and self._opening is None and self._retry is None:
            connection = self._opening = self._make()
            opened = Deferred.fromCoroutine(self._open(connection))
            opened.addErrback(lambda f: self.log.failure("opening a connection", f))

    async def _open(self, connection: C) -> None:
        try:
            await connection.open(lambda e: self._discard(connection, e))
        except Exception as e:
            connection.close()
            self._opening = None
            if self._running:
                self._warn("{name}: cannot connect, retrying: {reason}", e)
                self._back_off()
            return
        self._opening = None
        if not self._running:
            connection.close()
            return
        self._live.add(connection)
        self._unproven.add(connection)
        if self._warned and len(self._live) == self._size:
            self._warned = False
            self.log.info("{name}: all {size} connections are open again", name=self._name, size=self._size)
        self._lend(connection)
        self._fill()

    def _discard(self, connection: C, e: BaseException) -> None:
        if connection not in self._live:
            return
        self._live.remove(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if isinstance(e, Exception) and not isinstance(e, CancelledError):
            self._warn("{name}: connection lost, reconnecting: {reason}", e)
        connection.close()
        if connection in self._unproven:
            self._unproven.remove(connection)
            self._back_off()
        else:
            self._fill()

    def _back_off(self) -> None:
        if self._retry is None:
            self._failures += 1
            self._retry = self._clock.callLater(BACKOFF.delay(self._failures, self._jitter()), self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._fill()

    def _warn(self, text: str, e: BaseException) -> None:
        # one line for an outage, not one for each connection
        if not self._warned:
            self._warned = True
            self.log.warn(text, name=self._name, reason=reason(e))


def _cancel_timer(result: C | Failure, timer: IDelayedCall) -> C | Failure:
    if timer.active():
        timer.cancel()
    return result


def reason(e: BaseException) -> str:
    """The first line of an exception's message, for the log."""
    return (str(e).strip() or type(e).__name__).splitlines()[0]
