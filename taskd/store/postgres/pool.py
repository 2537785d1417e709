"""A pool of connections that replaces those that die.

Each connection has one borrower at a time, and is never lent again after an error that makes it suspect.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import NoReturn

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from taskd.model.errors import Unavailable
from taskd.store.opening import BACKOFF, MAX_DELAY
from taskd.store.postgres.connection import PostgresConnection, is_dead
from taskd.store.refusals import closed


class OutcomeUnknown(Exception):
    """The connection died while a statement ran. Nobody knows whether the statement was committed."""


class Pool:
    """Keeps ``size`` connections open and lends them out.

    ``make`` makes an unopened connection. A caller waits up to ``wait`` seconds for a connection.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        make: Callable[[], PostgresConnection],
        *,
        name: str,
        size: int,
        wait: float,
    ) -> None:
        self._clock = clock
        self._make = make
        self._name = name
        self._size = size
        self._wait = wait
        self._live: set[PostgresConnection] = set()
        # opened, but no statement has succeeded yet: when such a connection dies, the next one waits for the backoff
        self._unproven: set[PostgresConnection] = set()
        self._idle: list[PostgresConnection] = []
        self._waiting: deque[Deferred[PostgresConnection]] = deque()
        self._opening: list[PostgresConnection] = []
        self._retry: IDelayedCall | None = None
        self._failures = 0
        self._warned = False
        self.outages = 0
        """How often the last open connection was lost."""
        self.running = False
        self._stopped = False

    @property
    def live(self) -> int:
        """How many connections are open."""
        return len(self._live)

    def start(self) -> None:
        """Begin to connect. After stop() it does nothing."""
        self.running = not self._stopped
        self._fill()

    def stop(self) -> None:
        """Close all connections; running statements fail, and waiting callers get Unavailable."""
        self.running, self._stopped = False, True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        connections = [*self._live, *self._opening]
        self._live.clear()
        for connection in connections:
            connection.close()
        while self._waiting:
            self._waiting.popleft().errback(closed())

    # -- lending

    def acquire(self) -> Deferred[PostgresConnection]:
        """A connection to use alone, until release() or release_failed(). Raises Unavailable."""
        if self._stopped:
            return fail(closed())
        if self._idle:
            # the one used last: its caches are warm
            return succeed(self._idle.pop())
        if not self.running:
            return fail(self._unavailable("cannot be reached yet"))
        waiting: Deferred[PostgresConnection] = Deferred(self._waiting.remove)
        self._waiting.append(waiting)
        return waiting.addTimeout(self._wait, self._clock, self._give_up)

    def release(self, connection: PostgresConnection) -> None:
        """Take back a connection that has worked."""
        self._unproven.discard(connection)
        self._failures = 0
        self._lend(connection)

    def release_failed(self, connection: PostgresConnection, error: BaseException) -> None:
        """Take back a connection whose use raised ``error``. Raises OutcomeUnknown when it is dead."""
        if isinstance(error, CancelledError) or not isinstance(error, Exception):
            # the borrower stopped waiting, and the answer is still to come: the database is not at fault
            self._unproven.discard(connection)
            self._discard(connection, error)
        elif is_dead(error):
            self._discard(connection, error)
            raise OutcomeUnknown(reason(error)) from error
        else:
            self.release(connection)

    def _give_up(self, cancelled: object, seconds: float) -> NoReturn:
        raise self._unavailable("has no connection free" if self._live else "cannot be reached now")

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable(f"the database {why}; try again", retry_after=MAX_DELAY, detail=self._name)

    def _lend(self, connection: PostgresConnection) -> None:
        if connection not in self._live:
            return
        if self._waiting:
            self._waiting.popleft().callback(connection)
        else:
            self._idle.append(connection)

    # -- connecting

    def _fill(self) -> None:
        # One at a time, so that a database that starts up is not flooded with connections.
        if self.running and len(self._live) < self._size and not self._opening and self._retry is None:
            opened = Deferred.fromCoroutine(self._open(self._make()))
            opened.addErrback(lambda f: self.log.failure("opening a connection", f))

    async def _open(self, connection: PostgresConnection) -> None:
        self._opening.append(connection)
        try:
            await connection.open(lambda e: self._discard(connection, e))
        except Exception as e:
            connection.close()
            if self.running:
                self._warn("{name}: cannot connect, retrying: {reason}", e)
                self._back_off()
            return
        finally:
            self._opening.clear()
        if not self.running:
            connection.close()
            return
        self._live.add(connection)
        self._unproven.add(connection)
        if self._warned and len(self._live) == self._size:
            self._warned = False
            self.log.info("{name}: all {size} connections are open again", name=self._name, size=self._size)
        self._lend(connection)
        self._fill()

    def _discard(self, connection: PostgresConnection, e: BaseException) -> None:
        if connection not in self._live:
            return
        self._live.remove(connection)
        self.outages += not self._live
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
            self._retry = self._clock.callLater(BACKOFF.delay(self._failures, random.random()), self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._fill()

    def _warn(self, text: str, e: BaseException) -> None:
        # one line for an outage, not one for each connection
        if not self._warned:
            self._warned = True
            self.log.warn(text, name=self._name, reason=reason(e))


def reason(e: BaseException) -> str:
    """The first line of an exception's message, for the log."""
    return (str(e).strip() or type(e).__name__).splitlines()[0]
