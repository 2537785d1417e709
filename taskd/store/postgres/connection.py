"""One connection to PostgreSQL: opened in bounded time, quiet when it dies, its statements prepared."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import psycopg2
from psycopg2 import extensions
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionClosed, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, IHostResolution
from twisted.python.failure import Failure
from txpostgres import txpostgres

CONNECT_SECONDS = 5.0
STATEMENT_SECONDS = 10
GRACE_SECONDS = 2.0
"""How much later than by the server's timeout a statement is given up: a stopped backend keeps no time."""

SESSION = {
    "timezone": "UTC",
    "synchronous_commit": "on",
    # The statements lean on rows being looked at again after a wait for their lock
    "default_transaction_isolation": "read\\ committed",
    # Every statement has its index, and the statistics of a table that is a queue are always out of date: a
    # plan made once for any parameters, that never scans the table, is the one that does not surprise.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    # A bitmap scan does not mark the index entries that it found dead, so the next one steps over them again
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

# json comes back as it went in, not decoded
_JSON = extensions.new_type((114,), "JSON", extensions.UNICODE)


def _timestamp(value: Any, cursor: Any) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value)


# Twice as fast as psycopg2's own; before 3.11 fromisoformat did not read what PostgreSQL writes
_TIMESTAMP = extensions.new_type((1184,), "TIMESTAMPTZ", _timestamp) if sys.version_info >= (3, 11) else None


class _Watched:
    """What the reactor watches a socket of libpq for.

    Any step of libpq may close its socket, and epoll can be told nothing of one that is closed: what still watched it
    then would stay, and make the reactor deaf to the next socket of that number. So nothing is watched during a step.
    """

    reactor: Any

    def unwatch(self) -> None:
        """Before a step."""
        self.reactor.removeReader(self)
        self.reactor.removeWriter(self)

    def doWrite(self) -> None:
        """The reactor can write."""
        self.unwatch()
        super().doWrite()  # type: ignore[misc]


class _Cursor(_Watched, txpostgres.Cursor):
    """Tells a statement that ran into its timeout from one that its caller has cancelled: nobody here cancels."""

    def _handleCancellation(self, failure: Failure) -> Failure:
        return failure

    def doRead(self) -> None:
        """The reactor has something to read, of a statement."""
        self.unwatch()
        super().doRead()

    def _doit(self, name: str, *args: Any, **kwargs: Any) -> Deferred[Any]:
        # it sends, while it is still the connection that is watched
        self._connection.unwatch()
        answer: Deferred[Any] = super()._doit(name, *args, **kwargs)
        if self not in self._connection.cursors:
            self._connection.listen()
        return answer


class _Connection(_Watched, txpostgres.Connection):
    """Tells ``on_lost`` when it dies while idle, instead of raising into the reactor. It hears no notifications."""

    cursorFactory = _Cursor
    on_lost: Callable[[BaseException], None] = staticmethod(lambda e: None)

    @property
    def cursors(self) -> set[_Cursor]:
        """Those whose statement is under way."""
        return self._cursors

    def doRead(self) -> None:
        """The reactor has something to read, of a handshake or while no statement is under way."""
        self.unwatch()
        if not self.pollable().closed:
            try:
                self.continuePolling()
            except psycopg2.Error as e:
                self.on_lost(e)
            else:
                self.listen()

    def close(self) -> None:
        """Close the socket, under a statement too."""
        for each in (self, *self.cursors):
            each.unwatch()
        super().close()

    def cursorFinished(self, cursor: _Cursor) -> None:
        """The reactor is the connection's again."""
        self._cursors.remove(cursor)
        self.listen()

    def listen(self) -> None:
        """No step is under way and no statement."""
        # txpostgres would go on listening to a socket that libpq has closed without marking the connection closed
        if not self.pollable().closed:
            if self.fileno() >= 0:
                self.reactor.addReader(self)
            else:
                self.on_lost(ConnectionLost())

    def connectionLost(self, reason: Failure) -> None:
        """The socket is gone."""
        super().connectionLost(reason)
        self.on_lost(reason.value or ConnectionLost())


class PostgresConnection:
    """A connection for one statement at a time.

    ``prepared`` maps names to statements with ``$n`` parameters; ``patience`` is how many seconds one may
    take.
    """

    def __init__(
        self,
        dsn: Mapping[str, str | int],
        reactor: Any,
        prepared: Mapping[str, str],
        patience: int = STATEMENT_SECONDS,
    ) -> None:
        self._dsn = dict(dsn)
        self._patience = patience
        self._reactor = reactor
        self._prepared = prepared
        self._connection = _Connection(reactor)
        self._lookup: Deferred[list[str]] | None = None
        self._closed = False

    async def open(self, on_lost: Callable[[BaseException], None]) -> None:
        """Connect and prepare."""
        timer = self._reactor.callLater(CONNECT_SECONDS, self.close)
        try:
            dsn = await self._addressed()
            session = {**SESSION, "statement_timeout": f"{self._patience}s"}
            options = " ".join(f"-c {name}={value}" for name, value in session.items())
            await self._connection.connect(
                **dsn,
                **NETWORK,
                options=options,
                client_encoding="UTF8",
                application_name="taskd",
            )
            raw = self._connection.pollable()
            extensions.register_type(_JSON, raw)
            if _TIMESTAMP is not None:
                extensions.register_type(_TIMESTAMP, raw)
            if self._prepared:
                await self._execute(";".join(f"PREPARE {n} AS {text}" for n, text in self._prepared.items()))
        except ConnectionDone as e:
            # by our own hand
            raise psycopg2.OperationalError("took too long to connect") from e
        finally:
            if timer.active():
                timer.cancel()
        self._connection.on_lost = on_lost

    def close(self) -> None:
        """Disconnect; a statement under way fails with ConnectionDone."""
        self._closed = True
        self._connection.on_lost = lambda e: None
        if self._lookup is not None:
            self._lookup.cancel()
        if self._connection.pollable() is not None:
            self._connection.close()

    def call(self, name: str, *args: Any) -> Awaitable[list[tuple[Any, ...]]]:
        """Execute a prepared statement."""
        values = f" ({', '.join(['%s'] * len(args))})" if args else ""
        return self.query(f"EXECUTE {name}{values}", args)

    async def query(self, text: str, args: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a statement with ``%s`` parameters."""
        cursor = await self._execute(text, args)
        rows: list[tuple[Any, ...]] = cursor.fetchall() if cursor.description else []
        cursor.close()
        return rows

    def _execute(self, text: str, args: Sequence[Any] = ()) -> Deferred[Any]:
        # The caller may cancel what it gets; txpostgres must never see that.
        answer: Deferred[Any] = Deferred()
        if self._closed:
            answer.errback(psycopg2.InterfaceError("the connection is closed"))
            return answer
        try:
            cursor = self._connection.cursor()
        except psycopg2.Error:
            # it died a moment ago
            answer.errback()
            return answer
        timer = self._reactor.callLater(self._patience + GRACE_SECONDS, self.close)

        def done(result: Any) -> None:
            if timer.active():
                timer.cancel()
            if not answer.called:
                answer.callback(result)

        cursor.execute(text, args or None).addBoth(done)
        return answer

    async def _addressed(self) -> dict[str, str | int]:
        # libpq would look the name up itself, blocking the reactor
        host = str(self._dsn.get("host") or "")
        if not host or host.startswith(("/", "@")) or isIPAddress(host) or isIPv6Address(host):
            return self._dsn
        self._lookup = _lookup(self._reactor, host)
        try:
            addresses = await self._lookup
        except CancelledError:
            if not self._closed:
                raise
            raise psycopg2.OperationalError(f"looking up host {host} took too long") from None
        finally:
            self._lookup = None
        if not addresses:
            raise psycopg2.OperationalError(f"no address found for host {host}")
        return {**self._dsn, "host": ",".join([host] * len(addresses)), "hostaddr": ",".join(addresses)}


class _Addresses:
    """Gathers what the resolver finds."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.done: Deferred[list[str]] = Deferred()

    def resolutionBegan(self, resolution: IHostResolution) -> None:
        """The lookup is under way."""

    def addressResolved(self, address: IAddress) -> None:
        """One address."""
        if address.host not in self.found:  # type: ignore[attr-defined]
            self.found.append(address.host)  # type: ignore[attr-defined]

    def resolutionComplete(self) -> None:
        """No more to come; nobody may be waiting any more."""
        if not self.done.called:
            self.done.callback(self.found)


def _lookup(reactor: Any, host: str) -> Deferred[list[str]]:
    addresses = _Addresses()
    reactor.nameResolver.resolveHostName(addresses, host)
    return addresses.done


def is_dead(e: BaseException) -> bool:
    """Whether the connection that raised this can serve no more.

    Deadlocks (40P01) and statement timeouts (57014) are answers of a living server.
    """
    if isinstance(e, ConnectionClosed | txpostgres.UnexpectedPollResult | txpostgres.AlreadyPolling):
        return True
    if not isinstance(e, psycopg2.Error):
        return False
    if e.pgcode is None:
        # Raised without a server's answer: the connection is gone, but for an argument that cannot be sent
        return not isinstance(e, psycopg2.ProgrammingError) or "underway" in str(e)
    # connection exceptions, shutdowns, and a standby where a primary was
    return e.pgcode.startswith(("08", "57P")) or e.pgcode == "25006"
