"""One connection to PostgreSQL: it opens in bounded time, prepares its statements, and calls back when it dies."""

from __future__ import annotations

import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import psycopg2
from psycopg2 import extensions
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionClosed, ConnectionDone, ConnectionLost
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from txpostgres import txpostgres

CONNECT_SECONDS = 5.0
STATEMENT_SECONDS = 10
BRIEF_SECONDS = 3
"""The same for a statement that a daemon needs every few seconds to go on. If its answer is lost, the daemon soon asks
again over another connection."""

GRACE_SECONDS = 2.0
"""How long after the server's own timeout a statement is given up. A stopped backend does not enforce its timeout."""

SESSION = {
    "timezone": "UTC",
    "synchronous_commit": "on",
    # a backend whose client is cut off while an answer is on its way gives up its locks after so many milliseconds
    "tcp_user_timeout": "8000",
    # The statements rely on this: after a wait for a lock, the row is read again
    "default_transaction_isolation": "read\\ committed",
    # Every statement has its index, and the statistics of a table that serves as a queue are always out of date. One
    # plan for all parameters that never scans the table gives predictable times.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    # A bitmap scan does not mark dead index entries, so every later scan would step over them again
    "enable_bitmapscan": "off",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
}
NETWORK = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 8000,
}

Rows = list[tuple[Any, ...]]

# json columns return the text as it was stored, not decoded
_TYPES = [extensions.new_type((114,), "JSON", extensions.UNICODE)]


def _timestamp(value: Any, cursor: Any) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value)


# Twice as fast as psycopg2's own parser; before Python 3.11 fromisoformat could not read PostgreSQL's format
if sys.version_info >= (3, 11):
    _TYPES.append(extensions.new_type((1184,), "TIMESTAMPTZ", _timestamp))


class _UnwatchedDuringSteps:
    """A reader and writer of libpq's socket that the reactor does not watch during a step of libpq.

    Any step may close the socket, and a closed socket cannot be removed from epoll. The reactor would keep the entry
    and then ignore the next socket that gets the same number.
    """

    reactor: Any

    def unwatch(self) -> None:
        """Stop watching; to be called before a step."""
        self.reactor.removeReader(self)
        self.reactor.removeWriter(self)

    def doWrite(self) -> None:
        """The reactor can write."""
        self.unwatch()
        super().doWrite()  # type: ignore[misc]


class _Cursor(_UnwatchedDuringSteps, txpostgres.Cursor):
    """Leaves a statement timeout as it is; txpostgres would report it as a cancellation by the caller."""

    def _handleCancellation(self, failure: Failure) -> Failure:
        return failure

    def doRead(self) -> None:
        """The reactor has data of a statement."""
        self.unwatch()
        super().doRead()

    def _doit(self, name: str, *args: Any, **kwargs: Any) -> Deferred[Any]:
        # this sends while the reactor still watches the connection, not the cursor
        self._connection.unwatch()
        answer: Deferred[Any] = super()._doit(name, *args, **kwargs)
        if self not in self._connection._cursors:
            self._connection.listen()
        return answer


class PostgresConnection(_UnwatchedDuringSteps, txpostgres.Connection):
    """A connection for one statement at a time. It calls back when it dies while idle, instead of raising into the
    reactor. It ignores notifications.

    ``prepared`` maps names to statements with ``$n`` parameters; a statement may take ``statement_timeout`` seconds.
    """

    cursorFactory = _Cursor

    def __init__(
        self,
        dsn: Mapping[str, str | int],
        reactor: Any,
        prepared: Mapping[str, str],
        statement_timeout: int = STATEMENT_SECONDS,
    ) -> None:
        super().__init__(reactor)
        self._dsn = dsn
        self._prepared = prepared
        self._statement_timeout = statement_timeout
        self._brief = min(BRIEF_SECONDS, statement_timeout)
        self._on_lost: Callable[[BaseException], None] = _ignore
        self._lookup: Deferred[Any] | None = None

    async def open(self, on_lost: Callable[[BaseException], None]) -> None:
        """Connect and prepare. ``on_lost`` is called when the connection dies while idle."""
        timer = self.reactor.callLater(CONNECT_SECONDS, self.close)
        try:
            dsn = {**self._dsn, **await self._addresses()}
            session = {**SESSION, "statement_timeout": f"{self._statement_timeout}s"}
            await self.connect(
                **dsn,
                **NETWORK,
                options=" ".join(f"-c {name}={value}" for name, value in session.items()),
                client_encoding="UTF8",
                application_name="taskd",
            )
            for each in _TYPES:
                extensions.register_type(each, self.pollable())
            if self._prepared:
                await self.query(";".join(f"PREPARE {n} AS {text}" for n, text in self._prepared.items()))
        except (CancelledError, ConnectionDone) as e:
            # the timer above closed it
            raise psycopg2.OperationalError("took too long to connect") from e
        finally:
            if timer.active():
                timer.cancel()
        self._on_lost = on_lost

    def close(self) -> None:
        """Disconnect, even while a statement runs: it fails with ConnectionDone."""
        self._on_lost = _ignore
        if self._lookup is not None:
            self._lookup.cancel()
        if self.pollable() is not None:
            for each in (self, *self._cursors):
                each.unwatch()
            super().close()

    def call(self, name: str, *args: Any, brief: bool = False, lock_timeout: str | None = None) -> Awaitable[Rows]:
        """The rows of a prepared statement. With ``brief`` it may take BRIEF_SECONDS at most, and ``lock_timeout`` is
        how long it may wait for a lock."""
        values = f" ({', '.join(['%s'] * len(args))})" if args else ""
        text = f"EXECUTE {name}{values}"
        if lock_timeout is not None:
            text = f"SET LOCAL lock_timeout = '{lock_timeout}'; {text}"
        if brief:
            text = f"SET LOCAL statement_timeout = '{self._brief}s'; {text}"
        return self.query(text, args, brief)

    def call_locked(self, locks: Sequence[tuple[str, Any]], name: str, *args: Any) -> Awaitable[Rows]:
        """The same after other prepared statements, each with its argument, that lock something: all in one transaction
        and one round trip. Each statement has a snapshot of its own, so this one sees what the former holders of the
        locks have committed."""
        texts = [f"EXECUTE {lock} (%s)" for lock, _ in locks]
        texts.append(f"EXECUTE {name} ({', '.join(['%s'] * len(args))})")
        return self.query("; ".join(texts), (*(arg for _, arg in locks), *args))

    async def query(self, text: str, args: Sequence[Any] = (), brief: bool = False) -> Rows:
        """The rows of a statement with ``%s`` parameters. Raises psycopg2.Error. A ``brief`` one sets its own timeout,
        BRIEF_SECONDS at most."""
        cursor = self.cursor()
        seconds = self._brief if brief else self._statement_timeout
        timer = self.reactor.callLater(seconds + GRACE_SECONDS, self.close)
        # The caller may cancel this; txpostgres must not see a cancellation.
        answer: Deferred[None] = Deferred()
        cursor.execute(text, args or None).addBoth(answer.callback)
        try:
            await answer
        finally:
            if timer.active():
                timer.cancel()
        rows: Rows = cursor.fetchall() if cursor.description else []
        return rows

    async def _addresses(self) -> dict[str, str]:
        """``host`` and ``hostaddr`` of a host that has a name. libpq would look it up itself and block the reactor."""
        host = str(self._dsn.get("host") or "")
        if not host or host.startswith(("/", "@")) or isIPAddress(host) or isIPv6Address(host):
            return {}
        self._lookup = deferToThreadPool(self.reactor, self.reactor.getThreadPool(), socket.getaddrinfo, host, None)
        try:
            found = dict.fromkeys(address[0] for *_, address in await self._lookup)
        except OSError as e:
            raise psycopg2.OperationalError(f"no address found for host {host}") from e
        return {"host": ",".join([host] * len(found)), "hostaddr": ",".join(found)}

    def doRead(self) -> None:
        """The reactor has data of a handshake, or while no statement runs."""
        self.unwatch()
        if not self.pollable().closed:
            try:
                self.continuePolling()
            except psycopg2.Error as e:
                self._on_lost(e)
            else:
                self.listen()

    def cursorFinished(self, cursor: _Cursor) -> None:
        """From now on the reactor watches the connection again."""
        self._cursors.remove(cursor)
        self.listen()

    def listen(self) -> None:
        """Watch the socket while no step and no statement runs."""
        # libpq can close the socket without marking the connection closed; txpostgres would still watch it
        if not self.pollable().closed:
            if self.fileno() >= 0:
                self.reactor.addReader(self)
            else:
                self._on_lost(ConnectionLost())

    def connectionLost(self, reason: Failure) -> None:
        """The socket was closed."""
        super().connectionLost(reason)
        self._on_lost(reason.value or ConnectionLost())


def _ignore(error: BaseException) -> None:
    pass


def is_dead(e: BaseException) -> bool:
    """Whether the connection that raised this is unusable from now on.

    Deadlocks (40P01) and statement timeouts (57014) are answers of a server that is alive.
    """
    if isinstance(e, ConnectionClosed | txpostgres.UnexpectedPollResult | txpostgres.AlreadyPolling):
        return True
    if not isinstance(e, psycopg2.Error):
        return False
    if e.pgcode is None:
        # No answer from the server: the connection is dead, unless psycopg2 refused an argument
        return not isinstance(e, psycopg2.ProgrammingError) or "underway" in str(e)
    # connection exceptions, shutdowns, and a server that is a standby now
    return e.pgcode.startswith(("08", "57P")) or e.pgcode == "25006"
