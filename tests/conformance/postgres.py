"""What the suites of the PostgreSQL store share: hooks, and a proxy that cuts connections."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from taskd.ports.workers import Culprit
from taskd.store.postgres.beats import BeatConnection
from taskd.store.postgres.store import PostgresStore
from tests import services
from tests.conformance.store.case import AGING, StoreCase

POOL_SIZE = 2
"""Connections of a store, if a test does not say otherwise."""

END_OF_ANSWER = b"Z\0\0\0\5I"
"""ReadyForQuery outside of a transaction: the statement is committed."""


async def until(predicate: Callable[[], object], seconds: float = 20) -> None:
    """Let the reactor run until ``predicate()`` is true."""
    deadline = reactor.seconds() + seconds
    while not predicate():
        if reactor.seconds() > deadline:
            raise AssertionError(f"not within {seconds} s: {predicate}")
        await deferLater(reactor, 0.01)


def together(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> Deferred[list[Any]]:
    """Run all of them at the same time; their results, in order."""
    return gatherResults([Deferred.fromCoroutine(c) for c in coroutines], consumeErrors=True)


class Leg(Protocol):
    """One side of a connection through a proxy."""

    transport: Any

    def __init__(self, proxy: Proxy, client: Leg | None = None) -> None:
        self.proxy = proxy
        self.is_client = client is None
        self.other = client

    def connectionMade(self) -> None:
        """The store's side waits until the server's side is connected."""
        self.proxy.legs.add(self)
        if self.is_client:
            self.transport.pauseProducing()
            server = TCP4ClientEndpoint(reactor, self.proxy.server.host, self.proxy.server.port)
            connectProtocol(server, Leg(self.proxy, self)).addErrback(lambda failure: self.cut())
        elif self.other is not None:
            self.other.other = self
            self.other.transport.resumeProducing()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """When one side closes, the other closes too."""
        self.proxy.legs.discard(self)
        if self.other is not None:
            self.other.cut()

    def cut(self) -> None:
        """Abort the connection."""
        self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        """Forward a part of a request or of an answer."""
        assert self.other is not None
        if self.is_client:
            self.proxy.before()
            self.other.transport.write(data)
        else:
            self.proxy.answered(self.other, data)


class Proxy:
    """Stands between a store and its server. If ``fate`` is set, it is called once, instead of passing on the end of
    the next answer.

    ``before`` is called before each request is passed on.
    """

    def __init__(self, server: services.Postgres) -> None:
        self.server = server
        self.legs: set[Leg] = set()
        self.fate: Callable[[Leg], None] | None = None
        self.before: Callable[[], None] = lambda: None
        factory = cast(Any, Factory.forProtocol(lambda: Leg(self)))
        self._port = cast(Any, reactor.listenTCP(0, factory, interface="127.0.0.1"))
        self.port: int = self._port.getHost().port

    def answered(self, client: Leg, data: bytes) -> None:
        """Pass on a part of an answer, or call ``fate`` at its end."""
        if self.fate is not None and data.endswith(END_OF_ANSWER):
            fate, self.fate = self.fate, None
            fate(client)
        else:
            client.transport.write(data)

    def cut_after_commit(self) -> None:
        """The server commits the next request; then the connection is cut before the answer arrives."""
        self.fate = lambda client: client.cut()

    def swallow_answer(self) -> None:
        """The server commits the next request; its answer never arrives, and the connection stays open."""
        self.fate = lambda client: None

    async def close(self) -> None:
        """Cut all connections."""
        await self._port.stopListening()
        for leg in list(self.legs):
            leg.cut()
        await until(lambda: not self.legs)


class Hooks(StoreCase):
    """The hooks on PostgreSQL, over separate connections."""

    database: str | None = None

    async def make(self) -> Any:
        if self.database is None:
            services.require("postgres")
            self.server = services.postgres()
            self.new_database()
        store = self.build()
        await store.start()
        # the other connections are opened in the background, and tests count connections and lock tables
        await until(lambda: store._pool.live == POOL_SIZE)
        return store

    def new_database(self) -> None:
        """Use an empty database for the stores that are built from now on."""
        self.database = self.server.create_database()
        self.addCleanup(self.server.drop_database, self.database)

    def build(self, **options: Any) -> PostgresStore:
        """A store that is not started."""
        dsn = {**self.server.dsn(self.database), **options.pop("dsn", {})}
        store = PostgresStore(dsn, reactor, **{"size": POOL_SIZE, **options})
        self.addCleanup(store.stop)
        return store

    async def through_proxy(self, **options: Any) -> tuple[PostgresStore, Proxy]:
        """One more started store, with one connection, through a proxy."""
        proxy = Proxy(self.server)
        self.addCleanup(proxy.close)
        store = self.build(dsn={"host": "127.0.0.1", "port": proxy.port}, size=1, **options)
        await store.start()
        return store, proxy

    def sql(self, text: str, *parameters: Any) -> list[Any]:
        return self.server.query(text, parameters, self.database)

    def transaction(self, text: str, *parameters: Any) -> Any:
        """A connection that has executed this without committing it; it holds its locks until rollback()."""
        connection = self.server.connect(self.database)
        self.addCleanup(connection.close)
        connection.autocommit = False
        connection.cursor().execute(text, parameters or None)
        return connection

    def backends(self) -> set[int]:
        """The process ids of the backends of this test's stores."""
        text = "SELECT pid FROM pg_stat_activity WHERE datname = %s AND application_name = 'taskd'"
        return {pid for (pid,) in self.sql(text, self.database)}

    def kill(self) -> int:
        """Terminate these backends; their number."""
        text = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND application_name = 'taskd'"
        )
        return len(self.sql(text, self.database))

    def blocked(self) -> int:
        """The number of backends that wait for a lock."""
        text = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
        return int(self.sql(text, self.database)[0][0])

    async def postpone(self, task_id: int, seconds: int = 3600) -> None:
        text = "UPDATE tasks SET due = false, run_at = created_at + make_interval(secs => %s) WHERE id = %s"
        self.sql(text, seconds, task_id)

    async def backdate(self, task_id: int, created: int, finished: int | None = None) -> None:
        text = """
            UPDATE tasks SET created_at = now() - make_interval(secs => %s),
                finished_at = coalesce(now() - make_interval(secs => %s), finished_at) WHERE id = %s
        """
        self.sql(text, created, finished, task_id)

    async def age_accounts(self, seconds: float) -> None:
        for table, columns in AGING.items():
            changes = ", ".join(f"{column} = {column} - make_interval(secs => {seconds})" for column in columns)
            self.sql(f"UPDATE {table} SET {changes}")

    async def age_workers(self, seconds: int) -> None:
        self.sql("UPDATE workers SET seen_at = seen_at - make_interval(secs => %s)", seconds)

    async def age_usage(self, hours: int) -> None:
        for (hour,) in self.sql("SELECT DISTINCT hour FROM user_usage WHERE hour > '1971-01-01' ORDER BY hour"):
            self.sql("UPDATE user_usage SET hour = hour - make_interval(hours => %s) WHERE hour = %s", hours, hour)

    async def count_usage(self) -> int:
        [(count,)] = self.sql("SELECT count(*) FROM user_usage")
        return int(count)

    async def die(
        self, worker: str, culprit: Culprit | None = None, among: Sequence[tuple[int, int]] | None = None
    ) -> None:
        watchdog = BeatConnection(self.server.dsn(self.database))
        try:
            watchdog.gone(worker, (culprit.task_id, culprit.dispatch, culprit.reason) if culprit else None, among)
        finally:
            watchdog.close()

    async def stall(self, worker: str, text: str) -> None:
        watchdog = BeatConnection(self.server.dsn(self.database))
        try:
            watchdog.vouch(worker, text)
        finally:
            watchdog.close()

    async def forget(self, worker: str) -> None:
        self.sql("DELETE FROM workers WHERE name = %s", worker)

    async def set_losses(self, task_id: int, losses: int) -> None:
        self.sql("UPDATE tasks SET losses = %s WHERE id = %s", losses, task_id)

    async def count_rows(self) -> tuple[int, int, int]:
        [counts] = self.sql("""
            SELECT (SELECT count(*) FROM tasks), (SELECT count(*) FROM task_log), (SELECT count(*) FROM task_attempts)
        """)
        return cast("tuple[int, int, int]", counts)
