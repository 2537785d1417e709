"""What the suites of the PostgreSQL store share: hooks, and a proxy that cuts connections."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from taskd.store.postgres.store import PostgresStore
from tests import services
from tests.conformance.store.case import StoreCase

END_OF_ANSWER = b"Z\0\0\0\5I"
"""ReadyForQuery, outside of a transaction: what was asked for is committed."""


async def until(predicate: Callable[[], object], seconds: float = 20) -> None:
    """Let the reactor run until ``predicate()`` is true."""
    deadline = reactor.seconds() + seconds
    while not predicate():
        if reactor.seconds() > deadline:
            raise AssertionError(f"not within {seconds} s: {predicate}")
        await deferLater(reactor, 0.01)


def together(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> Deferred[list[Any]]:
    """Run them all at once; their results, in order."""
    return gatherResults([Deferred.fromCoroutine(c) for c in coroutines], consumeErrors=True)


class Leg(Protocol):
    """One side of a connection through a proxy."""

    transport: Any

    def __init__(self, proxy: Proxy, client: Leg | None = None) -> None:
        self.proxy = proxy
        self.is_client = client is None
        self.other = client

    def connectionMade(self) -> None:
        """The store's side waits until the server's is there."""
        self.proxy.legs.add(self)
        if self.is_client:
            self.transport.pauseProducing()
            server = TCP4ClientEndpoint(reactor, self.proxy.server.host, self.proxy.server.port)
            connectProtocol(server, Leg(self.proxy, self)).addErrback(lambda failure: self.cut())
        elif self.other is not None:
            self.other.other = self
            self.other.transport.resumeProducing()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """What one side does, the other does."""
        self.proxy.legs.discard(self)
        if self.other is not None:
            self.other.cut()

    def cut(self) -> None:
        """Hang up at once."""
        self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        """Part of a request or of an answer."""
        assert self.other is not None
        if self.is_client:
            self.proxy.before()
            self.other.transport.write(data)
        else:
            self.proxy.answered(self.other, data)


class Proxy:
    """Stands between a store and its server and does to the next answer what ``fate`` says: once.

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
        """Pass on a part of an answer, but not its end if a fate awaits it."""
        if self.fate is not None and data.endswith(END_OF_ANSWER):
            fate, self.fate = self.fate, None
            fate(client)
        else:
            client.transport.write(data)

    def cut_after_commit(self) -> None:
        """The next request is done; then the connection is gone, and with it the answer."""
        self.fate = lambda client: client.cut()

    def swallow_answer(self) -> None:
        """The next request is done; its answer never comes, and the connection stays."""
        self.fate = lambda client: None

    async def close(self) -> None:
        """Cut everything."""
        await self._port.stopListening()
        for leg in list(self.legs):
            leg.cut()
        await until(lambda: not self.legs)


class Hooks(StoreCase):
    """The hooks on PostgreSQL, over connections of their own."""

    database: str | None = None

    async def make(self) -> Any:
        if self.database is None:
            services.require("postgres")
            self.server = services.postgres()
            self.new_database()
        store = self.build()
        await store.start()
        return store

    def new_database(self) -> None:
        """What is built from now on is built over an empty database."""
        self.database = self.server.create_database()
        self.addCleanup(self.server.drop_database, self.database)

    def build(self, **options: Any) -> PostgresStore:
        """A store that is not started."""
        dsn = {**self.server.dsn(self.database), **options.pop("dsn", {})}
        store = PostgresStore(dsn, reactor, **{"size": 2, **options})
        self.addCleanup(store.stop)
        return store

    async def through_proxy(self, **options: Any) -> tuple[PostgresStore, Proxy]:
        """One more started store, with one connection that leads through a proxy."""
        proxy = Proxy(self.server)
        self.addCleanup(proxy.close)
        store = self.build(dsn={"host": "127.0.0.1", "port": proxy.port}, size=1, **options)
        await store.start()
        return store, proxy

    def sql(self, text: str, *parameters: Any) -> list[Any]:
        return self.server.query(text, parameters, self.database)

    def transaction(self, text: str, *parameters: Any) -> Any:
        """A connection that has done this and not committed it; what it has locked stays so until rollback()."""
        connection = self.server.connect(self.database)
        self.addCleanup(connection.close)
        connection.autocommit = False
        connection.cursor().execute(text, parameters or None)
        return connection

    def backends(self) -> set[int]:
        """The server's processes that serve this test's stores."""
        text = "SELECT pid FROM pg_stat_activity WHERE datname = %s AND application_name = 'taskd'"
        return {pid for (pid,) in self.sql(text, self.database)}

    def kill(self) -> int:
        """End those processes; how many."""
        text = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND application_name = 'taskd'"
        )
        return len(self.sql(text, self.database))

    def blocked(self) -> int:
        """How many of them wait for somebody's lock."""
        text = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
        return int(self.sql(text, self.database)[0][0])

    async def postpone(self, task_id: int, seconds: int = 3600) -> None:
        text = "UPDATE tasks SET due = false, run_at = created_at + make_interval(secs => %s) WHERE id = %s"
        self.sql(text, seconds, task_id)

    async def age_outbox(self) -> None:
        self.sql("UPDATE outbox SET created_at = created_at - interval '1 hour'")

    async def count_outbox(self) -> int:
        [(count,)] = self.sql("SELECT count(*) FROM outbox")
        return int(count)

    async def backdate(self, task_id: int, created: int, finished: int | None = None) -> None:
        text = """
            UPDATE tasks SET created_at = now() - make_interval(secs => %s),
                finished_at = coalesce(now() - make_interval(secs => %s), finished_at) WHERE id = %s
        """
        self.sql(text, created, finished, task_id)

    async def age_workers(self, seconds: int) -> None:
        self.sql("UPDATE workers SET seen_at = seen_at - make_interval(secs => %s)", seconds)

    async def count_rows(self) -> tuple[int, int, int]:
        [counts] = self.sql("""
            SELECT (SELECT count(*) FROM tasks), (SELECT count(*) FROM task_log), (SELECT count(*) FROM task_attempts)
        """)
        return cast("tuple[int, int, int]", counts)
