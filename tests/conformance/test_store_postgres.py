"""The suite of IStore on PostgreSQL, and what only a server can do to it: die, hang, be slow, be shared."""

from __future__ import annotations

import re
import sqlite3
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from taskd.model.errors import BadRequest, Conflict, SchemaTooNew, Unavailable, UsernameInUse
from taskd.model.states import State
from taskd.model.tasks import NewTask, Task
from taskd.ports.attempts import Claim, Outcome
from taskd.ports.logs import Report
from taskd.ports.tasks import TaskQuery
from taskd.store import migrations
from taskd.store.limits import SCANNED_ROWS
from taskd.store.postgres.store import PREPARED, PostgresStore
from tests import services
from tests.conformance.store import OTHER, Q, StoreCase, StoreTests, new_batch
from tests.conformance.store_reports import ReportTests

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


class Suite(Hooks, StoreTests, ReportTests):
    """The suite itself."""


class Schema(Hooks):
    """How a database comes to its tables."""

    async def test_servers_that_start_at_once_on_an_empty_database(self) -> None:
        self.new_database()
        stores = [self.build() for _ in range(4)]
        await together(store.start() for store in stores)
        for i, store in enumerate(stores):
            self.assertTrue(store.ready)
            await store.create_user(f"u{i}", f"u{i}", "x")
        applied = self.sql("SELECT version, name FROM schema_migrations ORDER BY version")
        self.assertEqual(applied, [m[:2] for m in migrations.load("postgres")])

    async def test_newer_database_is_refused_and_left_alone(self) -> None:
        self.sql("INSERT INTO schema_migrations VALUES (9999, 'later', 'then')")
        store = self.build()
        with self.assertRaisesRegex(SchemaTooNew, "schema version 9999"):
            await store.start()
        self.assertFalse(store.ready)
        with self.assertRaises(Unavailable):
            await store.find_user("ana")

    async def test_from_every_earlier_version(self) -> None:
        expected = self.described()
        for applied in range(1, len(migrations.load("postgres"))):
            self.new_database()
            self.sql(migrations.CREATE_TABLE)
            for migration in migrations.load("postgres")[:applied]:
                self.sql(migration.sql)
                self.sql("INSERT INTO schema_migrations VALUES (%s, %s, 'then')", *migration[:2])
            await self.build().start()
            self.assertEqual(self.described(), expected)

    def described(self) -> list[Any]:
        columns = """
            SELECT table_name, column_name, data_type, column_default, is_nullable
            FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, ordinal_position
        """
        indexes = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
        return self.sql(columns) + self.sql(indexes)

    async def test_every_table_and_column_says_what_it_is_for(self) -> None:
        silent = self.sql("""
            SELECT c.relname, a.attname FROM pg_class c
            JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum >= 0 AND NOT a.attisdropped
            WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND c.relname <> 'schema_migrations'
                AND (col_description(c.oid, a.attnum) IS NULL OR obj_description(c.oid) IS NULL)
        """)
        self.assertEqual(silent, [])

    async def test_both_dialects_have_the_same_tables_and_indexes(self) -> None:
        theirs = sqlite3.connect(":memory:")
        self.addCleanup(theirs.close)
        theirs.execute(migrations.CREATE_TABLE)
        for migration in migrations.load("sqlite"):
            theirs.executescript(migration.sql)
        columns = [row[:2] for row in self.described() if len(row) > 1]
        for table in {table for table, _ in columns}:
            ours = {column for name, column in columns if name == table}
            self.assertEqual(ours, {row[1] for row in theirs.execute(f"PRAGMA table_xinfo({table})")}, table)
        names = "SELECT name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"
        ours = {name for (name,) in self.sql("SELECT indexname FROM pg_indexes WHERE schemaname = 'public'")}
        self.assertEqual({name for (name,) in theirs.execute(names)} - ours, set())

    async def test_statements_find_their_index_without_statistics(self) -> None:
        # A table that is a queue has statistics of another hour: here those of the empty table
        self.sql("ANALYZE tasks")
        self.sql("""
            INSERT INTO tasks (user_id, task, queue, state, dispatched_at, finished_at)
            SELECT 1 + g % 50, 'x', 'q', (ARRAY['completed', 'waiting'])[1 + g % 2],
                (ARRAY[now(), NULL])[1 + g % 2], (ARRAY[now(), NULL])[1 + g % 2]
            FROM generate_series(1, 20000) AS g
        """)
        by_key, in_flight = {"tasks_pkey"}, {"tasks_in_flight", "tasks_pkey"}
        expected = {
            "batch": by_key,
            "find_keys": {"tasks_key"},
            "dispatch": {"tasks_backlog", "tasks_pkey"},
            "promote": {"tasks_delayed", "tasks_pkey"},
            "adopt_stale": by_key,
            "claim": by_key,
            "claim_redelivered": by_key,
            "complete": by_key,
            "fail": by_key,
            "find_recorded_end": by_key,
            "find_recorded_retry": {"task_attempts_pkey", "tasks_pkey"},
            "release": by_key,
            "renew": by_key,
            "report": {"task_log_pkey", "tasks_pkey"},
            "read_log": {"task_log_pkey"},
            "log_bytes": {"task_log_pkey"},
            "failed_attempts": {"task_attempts_pkey"},
            "cancel": by_key,
            "retry": by_key,
            "expire_leases": in_flight,
            "requeue_lost": in_flight,
            "reset_in_flight": in_flight,
            "delete_finished": {"task_attempts_pkey", "task_log_pkey", "tasks_pkey"},
            "count_queued": {"tasks_in_flight"},
            "find_tasks": by_key,
            "get_tasks": by_key,
        }
        for statistics in ("old", "new"):
            for name, text in PREPARED.items():
                count = max((int(n) for n in re.findall(r"\$(\d+)", text)), default=0)
                nulls = f"({', '.join(['NULL'] * count)})" if count else ""
                plan = await self.explain(f"EXECUTE {name} {nulls}")
                what = f"{name}, {statistics} statistics:\n{plan}"
                self.assertNotRegex(plan, r"Seq Scan on task|Bitmap|Hash Join|Merge Join", what)
                # every column of the route is a condition of the index, and not a filter behind it
                self.assertNotRegex(plan, r"queue = \$\d\)(?! AND \(kind = )", what)
                used = set(re.findall(r"using (tasks?_\w+) on task", plan))
                self.assertEqual(used, expected.get(name, set()), what)
            self.sql("ANALYZE tasks")

    async def explain(self, text: str) -> str:
        connection = await self.store._pool.acquire()
        rows = await connection.query(f"EXPLAIN (COSTS OFF) {text}")
        self.store._pool.release(connection)
        return "\n".join(line for (line,) in rows)


class Shared(Hooks):
    """Several servers and workers on one database."""

    async def test_dispatchers_at_once_dispatch_everything_once(self) -> None:
        users = await self.users(5)
        for i, user in enumerate(users):
            await self.create(20 + 60 * i, State.WAITING, user)
        stores = [self.store, *[await self.make() for _ in range(2)]]

        async def dispatcher(store: Any) -> list[Task]:
            found: list[Task] = []
            after, idle = None, 0
            while idle < 3:
                turn = await store.dispatch(new_batch(), Q, 17, after)
                found += turn.tasks
                after = turn.last_user
                idle = 0 if turn.tasks else idle + 1
            return found

        found = [t for tasks in await together(dispatcher(store) for store in stores) for t in tasks]
        # what one had in hand when another came by is left to the next round
        found += await dispatcher(self.store)
        self.assertEqual(len({t.id for t in found}), len(found))
        self.assertEqual({t.dispatch for t in found}, {1})
        self.assertEqual(len(found), sum(20 + 60 * i for i in range(5)))
        # by the batch that created it, and by one that dispatched it
        times = "SELECT count(*) FROM outbox, unnest(task_ids) AS i GROUP BY i"
        self.assertEqual({times for (times,) in self.sql(times)}, {2})

    async def test_promoted_once_however_many_promote(self) -> None:
        users = await self.users(40)
        for user in users:
            [task] = await self.create(1, State.WAITING, user)
            await self.postpone(task.id, -1)
        stores = [self.store, *[await self.make() for _ in range(2)]]

        async def promoter(store: Any) -> list[Any]:
            found: list[Any] = []
            while due := await store.promote(3):
                found += due
            return found

        found = [pair for pairs in await together(promoter(store) for store in stores) for pair in pairs]
        found += await promoter(self.store)
        self.assertEqual(sorted(found), [(Q, user.id) for user in users])

    async def test_dispatch_steps_over_what_another_has_in_hand(self) -> None:
        tasks = await self.create(5, State.WAITING)
        other = self.transaction("SELECT FROM tasks WHERE id = ANY(%s) FOR UPDATE", [t.id for t in tasks[:2]])
        turn = await self.dispatch(2)
        self.assertEqual([t.id for t in turn.tasks], [t.id for t in tasks[2:4]])
        other.rollback()
        self.assertEqual([t.id for t in (await self.dispatch(9)).tasks], [tasks[i].id for i in (0, 1, 4)])

    async def test_promote_steps_over_what_another_has_in_hand(self) -> None:
        tasks = await self.create(3, State.WAITING)
        for task in tasks:
            await self.postpone(task.id, -1)
        other = self.transaction("SELECT FROM tasks WHERE id = %s FOR UPDATE", tasks[0].id)
        self.assertEqual(await self.store.promote(10), [(Q, self.ana.id)])
        self.assertEqual({t.id for t in (await self.dispatch()).tasks}, {tasks[1].id, tasks[2].id})
        other.rollback()
        self.assertEqual(await self.store.promote(10), [(Q, self.ana.id)])

    async def test_batches_take_their_locks_in_one_order(self) -> None:
        # Whoever waits for the first row may not hold the second
        first, second = await self.create(2)
        mine = sorted(await self.running(2), key=lambda t: t.id)
        other, third = await self.make(), await self.make()
        backwards = [Claim(t.id, t.dispatch, False) for t in (second, first)]
        done, put_off = [
            [Outcome(t.id, t.dispatch, t.attempt, state) for t in reversed(mine)]
            for state in (State.COMPLETED, State.WAITING)
        ]
        reports = [Report(t.id, t.dispatch, t.attempt, 0.5) for t in reversed(mine)]
        holder = self.transaction("SELECT FROM tasks WHERE id IN (%s, %s) FOR UPDATE", first.id, mine[0].id)
        waiting = together(
            [
                self.store.claim("v", 60, backwards),
                other.finish("w", done),
                other.finish("w", put_off),
                self.store.release("w", [Claim(t.id, t.dispatch, False) for t in reversed(mine)]),
                third.report("w", reports),
            ]
        )
        await until(lambda: self.blocked() == 5)
        self.sql("SELECT FROM tasks WHERE id IN (%s, %s) FOR UPDATE NOWAIT", second.id, mine[1].id)
        holder.rollback()
        claimed, completed, failed, released, _ = await waiting
        self.assertEqual({t.id for t in claimed}, {first.id, second.id})
        ended = [*completed, *failed, *[t.id for t in released]]
        self.assertEqual(sorted(set(ended)), [t.id for t in mine])

    async def test_a_claim_that_waits_for_a_cancel_claims_nothing(self) -> None:
        [task] = await self.create()
        text = "UPDATE tasks SET state = 'cancelled', version = version + 1, finished_at = now() WHERE id = %s"
        cancelling = self.transaction(text, task.id)
        claiming = Deferred.fromCoroutine(self.claim([task]))
        await until(lambda: self.blocked() == 1)
        cancelling.commit()
        self.assertEqual(await claiming, [])

    async def test_of_finish_and_cancel_at_once_one_wins(self) -> None:
        for finish_first in (True, False):
            [task] = await self.running()
            other = await self.make()
            holder = self.transaction("SELECT FROM tasks WHERE id = %s FOR UPDATE", task.id)

            async def cancel(store: Any = other, task: Task = task) -> Any:
                try:
                    return await store.cancel(task.user_id, task.id)
                except Conflict:
                    return None

            async def finish(task: Task = task) -> Any:
                return await self.finish(task)

            rivals: list[Callable[[], Coroutine[Any, Any, Any]]] = (
                [finish, cancel] if finish_first else [cancel, finish]
            )
            answers = []
            for n, rival in enumerate(rivals, 1):
                answers.append(Deferred.fromCoroutine(rival()))
                await until(lambda n=n: self.blocked() == n)  # type: ignore[misc]
            holder.rollback()
            won, lost = [await answer for answer in answers]
            self.assertTrue(won)
            self.assertFalse(lost)
            self.assertIs((await self.get(task)).state, State.COMPLETED if finish_first else State.CANCELLED)

    async def test_finish_that_waits_for_a_take_over_is_fenced(self) -> None:
        [task] = await self.running(worker="one")
        text = "UPDATE tasks SET worker = 'two', attempt = 2, version = version + 1 WHERE id = %s"
        taking = self.transaction(text, task.id)
        finishing = Deferred.fromCoroutine(self.finish(task, "one"))
        await until(lambda: self.blocked() == 1)
        taking.commit()
        self.assertIsNone(await finishing)
        self.assertIs((await self.get(task)).state, State.RUNNING)

    async def test_a_batch_that_was_repeated_outlives_its_settling(self) -> None:
        # a third run of it may still be stuck in a network, and must find its number taken
        batch, rows = new_batch(), [NewTask(self.ana.id, "t", state=State.QUEUED)]
        first = list(await self.store.create_tasks(batch, rows))
        for _ in range(2):
            self.assertEqual(list(await self.store.create_tasks(batch, rows)), first)
            await self.store.mark_published([batch])

    async def test_expiry_and_renewal_step_over_what_is_being_finished(self) -> None:
        [task] = await self.create()
        await self.store.claim("w", 0, [Claim(task.id, 1, False)])
        self.transaction("SELECT FROM tasks WHERE id = %s FOR UPDATE", task.id)
        self.assertEqual(list(await self.store.expire_leases(10)), [])
        self.assertEqual(await self.store.renew("w", 60, [task.id]), {task.id})

    async def test_cancel_of_a_task_tried_again_in_between(self) -> None:
        task = await self.in_state(State.FAILED)
        store, proxy = await self.through_proxy()
        requests = 0

        def try_again() -> None:
            nonlocal requests
            requests += 1
            if requests == 2:
                # its first look found the task failed
                text = """
                    UPDATE tasks SET state = 'waiting', finished_at = NULL, dispatched_at = NULL, version = version + 1
                    WHERE id = %s
                """
                self.sql(text, task.id)

        proxy.before = try_again
        cancelled = await store.cancel(task.user_id, task.id)
        self.assertIs(cancelled.state, State.CANCELLED)

    async def test_of_several_who_have_a_task_tried_again_one_does_it(self) -> None:
        task = await self.in_state(State.FAILED)
        stores = [self.store, await self.make()]
        holder = self.transaction("SELECT FROM tasks WHERE id = %s FOR UPDATE", task.id)
        retrying = together(store.retry(task.user_id, task.id) for store in stores)
        await until(lambda: self.blocked() == 2)
        holder.rollback()
        for found in await retrying:
            self.assertEqual((found.state, found.version), (State.WAITING, task.version + 1))

    async def test_what_is_kept_of_an_attempt_is_what_it_was(self) -> None:
        [task] = await self.running(worker="one")
        text = "UPDATE tasks SET worker = 'two', attempt = 2, version = version + 1 WHERE id = %s"
        taking = self.transaction(text, task.id)
        failing = Deferred.fromCoroutine(self.finish(task, "one", state=State.WAITING, error="broke"))
        saying = Deferred.fromCoroutine(self.store.report("one", [Report(task.id, 1, 1, 0.5, "half", 1, ["line"])]))
        await until(lambda: self.blocked() == 2)
        taking.commit()
        self.assertIsNone(await failing)
        self.assertEqual(await saying, frozenset())
        self.assertEqual(await self.count_rows(), (1, 0, 0))
        self.assertIsNone((await self.get(task)).progress)

    async def test_a_lease_is_renewed_though_its_task_is_being_reported_on(self) -> None:
        [task] = await self.create()
        await self.store.claim("w", 1, [Claim(task.id, 1, False)])
        reporting = self.transaction("SELECT FROM tasks WHERE id = %s FOR UPDATE", task.id)
        store, proxy = await self.through_proxy()
        requests = 0

        def commit() -> None:
            nonlocal requests
            requests += 1
            if requests == 2:
                reporting.rollback()

        proxy.before = commit
        self.assertEqual(await store.renew("w", 3600, [task.id]), {task.id})
        [(left,)] = self.sql("SELECT extract(epoch FROM lease_until - now()) FROM tasks WHERE id = %s", task.id)
        self.assertGreater(left, 1800)

    async def test_a_page_and_its_end_are_of_one_moment(self) -> None:
        [needle] = await self.create(1, State.WAITING, kind="needle")
        tasks = await self.create(SCANNED_ROWS + 100, State.WAITING)
        store, proxy = await self.through_proxy()
        requests = 0

        def finish_the_newest() -> None:
            nonlocal requests
            requests += 1
            if requests == 2:
                text = "UPDATE tasks SET state = 'cancelled', finished_at = now() WHERE id > %s"
                self.sql(text, tasks[100].id)

        proxy.before = finish_the_newest
        query = TaskQuery(10, kind="needle", status="Procesando")
        page = await store.list_tasks(self.ana.id, query)
        self.assertEqual(len(page.tasks), 0)
        finish_the_newest()
        assert page.before is not None
        page = await store.list_tasks(self.ana.id, TaskQuery(10, page.before, kind="needle", status="Procesando"))
        self.assertEqual([t.id for t in page.tasks], [needle.id])


class Failing(Hooks):
    """Connections that die, hang and are cut at the worst moment."""

    async def test_not_yet_started(self) -> None:
        store = self.build()
        with self.assertRaisesRegex(Unavailable, "cannot be reached yet"):
            await store.find_user("ana")
        await store.stop()
        with self.assertRaisesRegex(Unavailable, "the store is closed"):
            await store.find_user("ana")
        with self.assertRaisesRegex(Unavailable, "the store is closed"):
            await store.start()

    async def test_host_name_is_looked_up(self) -> None:
        store = self.build(dsn={"host": "localhost"})
        await store.start()
        self.assertIsNotNone(await store.find_user("ana"))

    async def test_killed_backends_are_replaced(self) -> None:
        for _ in range(3):
            await self.create()
            pids = self.backends()
            self.assertGreater(self.kill(), 0)
            tasks = await together(self.create() for _ in range(20))
            self.assertEqual(len({t.id for [t] in tasks}), 20)
            self.assertEqual(self.backends() & pids, set())

    async def test_backends_killed_under_the_work(self) -> None:
        work = together(self.create(3) for _ in range(100))
        for count in (20, 40, 60):
            await until(lambda count=count: self.sql("SELECT count(*) FROM outbox")[0][0] >= count)  # type: ignore[misc]
            # those of before may be gone, and no other one be there yet
            await until(self.kill)
        ids = [t.id for tasks in await work for t in tasks]
        self.assertEqual(len(set(ids)), 300)
        self.assertEqual(self.sql("SELECT count(*) FROM tasks"), [(300,)])
        self.assertEqual(await self.count_outbox(), 100)

    async def test_slow_statement_is_given_up_and_the_connection_lives_on(self) -> None:
        store = self.build(size=1, statement_timeout=1)
        await store.start()
        before = self.backends()
        [task] = await self.create()
        holder = self.transaction("SELECT FROM tasks WHERE id = %s FOR UPDATE", task.id)
        with self.assertRaisesRegex(Unavailable, "statement timeout"):
            await store.claim("w", 60, [Claim(task.id, 1, False)])
        holder.rollback()
        self.assertEqual(len(await store.claim("w", 60, [Claim(task.id, 1, False)])), 1)
        self.assertEqual(before - self.backends(), set())

    async def test_connection_that_hangs_is_given_up(self) -> None:
        store, proxy = await self.through_proxy(statement_timeout=1)
        proxy.swallow_answer()
        batch = new_batch()
        [task] = await store.create_tasks(batch, [NewTask(self.ana.id, "once", state=State.QUEUED)])
        self.assertEqual(self.sql("SELECT id FROM tasks"), [(task.id,)])

    async def test_handshake_that_is_cut_is_tried_again(self) -> None:
        store, proxy = await self.through_proxy()
        for _ in range(3):
            proxy.cut_after_commit()
            self.kill()
            await until(lambda: proxy.fate is None)
            self.assertIsNotNone(await store.find_user("ana"))

    async def test_what_the_server_cannot_take_is_refused(self) -> None:
        [task] = await self.running()
        for result in ("no json", "[" * 300_000 + "]" * 300_000):
            with self.assertRaisesRegex(BadRequest, "cannot be stored"):
                await self.finish(task, result=result)
        self.assertEqual(await self.get(task), task)

    async def test_deadlock_is_tried_again(self) -> None:
        first, second = await self.create(2)
        ours = self.transaction("SELECT FROM tasks WHERE id = %s FOR UPDATE", second.id)
        claiming = Deferred.fromCoroutine(self.claim([first, second]))
        await until(lambda: self.blocked() == 1)
        # the one that closes the circle later is the one that finds it: let the store's be the victim
        ours.cursor().execute("SET deadlock_timeout = '10s'")
        closing = deferToThread(ours.cursor().execute, "SELECT FROM tasks WHERE id = %s FOR UPDATE", (first.id,))
        await closing
        ours.rollback()
        self.assertEqual(len(await claiming), 2)

    # -- the ambiguous commit

    async def ambiguous(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        """What ``call`` answers when the connection is cut after its commit."""
        if not hasattr(self, "cut"):
            self.cut, self.proxy = await self.through_proxy()
        # its one connection is open, so that no other request comes between
        await self.cut.find_user("ana")
        self.proxy.cut_after_commit()
        answer = await call(self.cut)
        self.assertIsNone(self.proxy.fate, "nothing was cut")
        return answer

    async def test_created_once(self) -> None:
        rows = [NewTask(self.ana.id, f"t{i}", queue="q", state=State.QUEUED) for i in range(3)]
        tasks = await self.ambiguous(lambda store: store.create_tasks(new_batch(), rows))
        self.assertEqual([t.task for t in tasks], ["t0", "t1", "t2"])
        self.assertEqual(await self.pages(), [t.id for t in reversed(tasks)])
        self.assertEqual(await self.count_outbox(), 1)

    async def test_dispatched_once(self) -> None:
        await self.create(5, State.WAITING)
        for found in (3, 2):
            turn = await self.ambiguous(lambda store: store.dispatch(new_batch(), Q, 3, None))
            self.assertEqual([(t.state, t.dispatch) for t in turn.tasks], [(State.QUEUED, 1)] * found)
            self.assertEqual(turn.more, found == 3)
        self.assertEqual(await self.store.count_queued(), {Q: 5})
        turn = await self.ambiguous(lambda store: store.dispatch(new_batch(), Q, 3, None))
        self.assertEqual((len(turn.tasks), turn.last_user, turn.more), (0, None, False))

    async def test_claimed_finished_and_released_once(self) -> None:
        done, given = await self.create(2)
        claims = [Claim(t.id, t.dispatch, False) for t in (done, given)]
        claimed = await self.ambiguous(lambda store: store.claim("w", 60, claims))
        self.assertEqual([(t.attempt, t.version) for t in claimed], [(1, 2)] * 2)
        outcome = Outcome(done.id, 1, 1, State.COMPLETED, "1")
        finished = await self.ambiguous(lambda store: store.finish("w", [outcome]))
        self.assertEqual(finished[done.id].version, 3)
        [back] = await self.ambiguous(lambda store: store.release("w", [Claim(given.id, 1, False)]))
        self.assertEqual((back.state, back.attempt, back.version), (State.WAITING, 0, 3))
        self.assertEqual([(await self.get(t)).version for t in (done, given)], [3, 3])

    async def test_failed_and_tried_again_once(self) -> None:
        failed, later = await self.running(2)
        outcomes = [
            Outcome(failed.id, 1, 1, State.FAILED, None, "broke"),
            Outcome(later.id, 1, 1, State.WAITING, None, "broke", None, 60),
        ]
        finished = await self.ambiguous(lambda store: store.finish("w", outcomes))
        self.assertEqual([finished[t.id].version for t in (failed, later)], [3, 3])
        self.assertEqual(finished[later.id].run_at, (await self.get(later)).run_at)
        self.assertEqual(await self.count_rows(), (2, 0, 2))
        [task] = [await self.ambiguous(lambda store: store.retry(self.ana.id, failed.id))]
        self.assertEqual((task.state, task.version), (State.WAITING, 4))

    async def test_reported_once(self) -> None:
        [task] = await self.running()
        reports = [Report(task.id, 1, 1, 0.5, "half", 1, ["one", "two"])]
        self.assertEqual(await self.ambiguous(lambda store: store.report("w", reports)), {task.id})
        [chunk] = await self.store.read_log(task.id, None, 10)
        self.assertEqual(list(chunk.lines), ["one", "two"])

    async def test_deleted_once(self) -> None:
        task = await self.in_state(State.FAILED)
        await self.backdate(task.id, 100, 100)
        await self.ambiguous(lambda store: store.delete_finished(50, 0, 10))
        self.assertEqual(await self.count_rows(), (0, 0, 0))

    async def test_registered_and_cancelled_once(self) -> None:
        user = await self.ambiguous(lambda store: store.create_user("Zoe", "zoe", "$2b$hash"))
        self.assertEqual((await self.store.find_user("zoe")).user, user)
        with self.assertRaises(UsernameInUse):
            await self.store.create_user("Zoe", "zoe", "$2b$other")
        [task] = await self.create()
        cancelled = await self.ambiguous(lambda store: store.cancel(self.ana.id, task.id))
        self.assertEqual((cancelled.state, cancelled.version), (State.CANCELLED, 2))

    async def test_what_cannot_be_told_again_is_unavailable_and_done_once(self) -> None:
        [delayed] = await self.create(1, State.WAITING)
        [running] = await self.create()
        await self.store.claim("w", 0, [Claim(running.id, 1, False)])
        [lost] = await self.create(queue="other")
        await self.postpone(delayed.id, -1)
        calls: list[tuple[Callable[[Any], Awaitable[Any]], Task, int]] = [
            (lambda store: store.promote(10), delayed, 1),
            (lambda store: store.expire_leases(10), running, 3),
            (lambda store: store.requeue_lost(OTHER, 0, 10), lost, 2),
        ]
        for call, task, version in calls:
            with self.assertRaisesRegex(Unavailable, "connection was lost"):
                await self.ambiguous(call)
            self.assertEqual((await self.get(task)).version, version)
        self.assertEqual(list(await self.store.promote(10)), [])
        self.assertEqual({t.id for t in (await self.dispatch()).tasks}, {delayed.id, running.id})


class Outage(TestCase):
    """A server of its own, to be stopped."""

    def setUp(self) -> None:
        services.require("postgres")
        self.server = services.Postgres(fsync=False)
        self.addCleanup(self.server.stop, "immediate")
        self.store = PostgresStore(self.server.dsn(), reactor, 2, wait=0.5, retry=1.0)
        self.addCleanup(self.store.stop)

    async def test_goes_away_and_comes_back(self) -> None:
        starting = Deferred.fromCoroutine(self.store.start())
        with self.assertRaisesRegex(Unavailable, "cannot be reached yet"):
            await self.store.find_user("ana")
        self.assertFalse(self.store.ready)
        await deferToThread(self.server.start)
        await starting
        self.assertTrue(self.store.ready)
        user = await self.store.create_user("Ana", "ana", "x")
        confirmed: list[str] = []
        unknown: list[str] = []

        async def submit() -> None:
            """Until the store says no."""
            while True:
                text = uuid.uuid4().hex
                try:
                    [task] = await self.store.create_tasks(new_batch(), [NewTask(user.id, text)])
                except Unavailable:
                    unknown.append(text)
                    return
                self.assertEqual(task.task, text)
                confirmed.append(text)

        for mode in ("immediate", "fast"):
            submitters = together(submit() for _ in range(4))
            goal = len(confirmed) + 50
            await until(lambda goal=goal: len(confirmed) >= goal)  # type: ignore[misc]
            await deferToThread(self.server.stop, mode)
            await submitters
            await until(lambda: not self.store.ready)
            asked = reactor.seconds()
            with self.assertRaisesRegex(Unavailable, "cannot be reached now") as refusal:
                await self.store.find_user("ana")
            self.assertIsNotNone(refusal.exception.retry_after)
            self.assertLess(reactor.seconds() - asked, 2)
            await deferToThread(self.server.start)
            await until(lambda: self.store.ready)
            self.assertIsNotNone(await self.store.find_user("ana"))
        stored = [text for (text,) in self.server.query("SELECT task FROM tasks")]
        self.assertEqual(len(stored), len(set(stored)))
        self.assertEqual(set(confirmed) - set(stored), set())
        self.assertEqual(set(stored) - set(confirmed) - set(unknown), set())

    async def test_stop_while_starting(self) -> None:
        starting = Deferred.fromCoroutine(self.store.start())
        await until(lambda: self.store._delay._waiting is not None)
        await self.store.stop()
        with self.assertRaisesRegex(Unavailable, "the store is closed"):
            await starting


del StoreCase, StoreTests, ReportTests, Hooks, TestCase
