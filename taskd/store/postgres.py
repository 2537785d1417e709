"""The store of many servers: PostgreSQL.

Every batch is one statement in a transaction of its own. When the connection is lost under it, whether it was
committed is unknown; it then runs again on a fresh connection, for a bounded time, and is written so that
this is harmless. All times are the database's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import psycopg2
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from taskd.errors import BadRequest, Conflict, KeyTaken, NotFound, SettingsError, Unavailable, UsernameInUse
from taskd.model import NewTask, State, Task, User
from taskd.ports import (
    Account,
    Claim,
    Dispatch,
    Dispatched,
    Finished,
    ITaskStore,
    Keyed,
    NewRow,
    OutboxBatch,
    Outcome,
    Page,
    TaskQuery,
)
from taskd.store import migrations
from taskd.store import postgres_statements as sql
from taskd.store.common import (
    MAX_DELAY,
    MIN_DELAY,
    STATES,
    Filter,
    Pauses,
    check_storable,
    closed,
    end_of,
    look_at,
    possible,
    storable_error,
)
from taskd.store.pool import Lost, Pool, reason
from taskd.store.postgres_arrays import flags, ids, numbers, texts
from taskd.store.postgres_connection import STATEMENT_SECONDS, PostgresConnection, is_dead

MIGRATION_SECONDS = 600
"""The longest that a server waits for its own migrations or for another server's."""

_MIGRATION_LOCK = 7_461_735_642
_CANCEL_TRIES = 5

# By whether the statement may have been done
_GAVE_UP = {True: "the database connection was lost: {}", False: "the database is too busy now: {}"}

Rows = list[tuple[Any, ...]]


def _task(row: Sequence[Any]) -> Task:
    fields = list(row)
    fields[5] = STATES[row[5]]
    return Task(*fields)


def _tasks(rows: Rows) -> list[Task]:
    return [_task(row) for row in rows]


@implementer(ITaskStore)
class PostgresStore:
    """ITaskStore on PostgreSQL.

    ``dsn`` has user, password, dbname, host and port as libpq knows them; ``size`` is the number of connections. In
    seconds: ``wait`` is how long a call waits for one of them, ``patience`` how long one statement may take, and
    ``retry`` how long a batch whose fate is unknown is tried again.
    """

    log = Logger()

    def __init__(
        self,
        dsn: Mapping[str, str | int],
        reactor: Any,
        size: int = 6,
        *,
        wait: float = 5.0,
        patience: int = STATEMENT_SECONDS,
        retry: float = 10.0,
    ) -> None:
        self._dsn = dsn
        self._reactor = reactor
        self._retry = retry
        self._name = f"PostgreSQL at {dsn.get('host', 'localhost')}:{dsn.get('port', 5432)}"
        self._migrated = False
        self._pauses = Pauses(reactor)
        self._starting: PostgresConnection | None = None
        self._pool = Pool(
            reactor,
            lambda: PostgresConnection(dsn, reactor, sql.PREPARED, patience),
            is_dead,
            name=self._name,
            size=size,
            wait=wait,
        )

    @property
    def ready(self) -> bool:
        """True while a connection is open."""
        return self._migrated and self._pool.live > 0

    # -- start and stop ----------------------------------------------------------------------------

    async def start(self) -> None:
        told = False
        while True:
            if self._pauses.stopped:
                raise closed()
            try:
                if not self._migrated:
                    await self._migrate()
                    self._pool.start()
                await self._call("find_user", "")
                return
            except psycopg2.errors.InsufficientPrivilege as e:
                raise SettingsError(f"{self._name}: user {self._dsn.get('user')}: {reason(e)}") from None
            except Exception as e:
                passes = is_dead(e) or (isinstance(e, psycopg2.Error) and isinstance(_translated(e), Unavailable))
                if not passes and not isinstance(e, Unavailable):
                    raise
                if not told and not self._migrated:
                    told = True
                    text = "{name}: cannot connect, trying on: {reason}"
                    self.log.warn(text, name=self._name, reason=reason(e))
            await self._pauses.pause()

    async def _migrate(self) -> None:
        connection = self._starting = PostgresConnection(self._dsn, self._reactor, {}, patience=MIGRATION_SECONDS)
        try:
            await connection.open(lambda e: None)
            await _migrate(connection)
            self._migrated = True
        finally:
            connection.close()
            self._starting = None

    async def stop(self) -> None:
        self._pauses.stop()
        self._pool.stop()
        if self._starting is not None:
            self._starting.close()

    # -- running statements ------------------------------------------------------------------------

    async def _run(self, work: Callable[[bool, PostgresConnection], Any], repeat: bool = True) -> Any:
        """Do ``work(again, connection)`` until its outcome is known; ``again``: it may have been done.

        Without ``repeat`` it is done once at most.
        """
        again = False
        deadline: float | None = None
        while True:
            try:
                return await self._pool.run(partial(work, again))
            except (Lost, Unavailable, psycopg2.extensions.TransactionRollbackError) as e:
                if isinstance(e, Lost):
                    again = True
                elif isinstance(e, Unavailable) and not again:
                    raise
                now = self._reactor.seconds()
                if deadline is None:
                    deadline = now + self._retry
                if self._pauses.stopped:
                    raise closed() from e
                if now >= deadline or (again and not repeat):
                    raise Unavailable(_GAVE_UP[again].format(reason(e)), retry_after=MAX_DELAY) from e
            except psycopg2.Error as e:
                translated = _translated(e)
                if translated is None:
                    raise
                raise translated from e
            except UnicodeEncodeError as e:
                raise BadRequest("text must be valid Unicode") from e
            await deferLater(self._reactor, MIN_DELAY)

    async def _call(self, name: str, *args: Any, repeat: bool = True) -> Rows:
        rows: Rows = await self._run(lambda again, connection: connection.call(name, *args), repeat)
        return rows

    # -- accounts ----------------------------------------------------------------------------------

    async def create_user(self, username: str, key: str, password: str) -> User:
        args = check_storable(username), check_storable(key), password
        if rows := await self._call("create_user", *args):
            return User(rows[0][0], username)
        account = await self.find_user(key)
        if account is None or account.password != password:
            raise UsernameInUse(f"the username {username} is taken; choose another", field="username")
        return account.user

    async def find_user(self, key: str) -> Account | None:
        rows = await self._call("find_user", check_storable(key))
        return Account(User(*rows[0][:2]), rows[0][2]) if rows else None

    async def open_session(self, user_id: int, token_hash: bytes, seconds: int) -> None:
        await self._call("open_session", user_id, token_hash, seconds)

    async def find_session(self, token_hash: bytes) -> User | None:
        rows = await self._call("find_session", token_hash)
        return User(*rows[0]) if rows else None

    async def close_session(self, token_hash: bytes) -> None:
        await self._call("close_session", token_hash)

    # -- a task's life -----------------------------------------------------------------------------

    async def _batch(self, name: str, batch: str, *args: Any) -> tuple[bool, Rows]:
        """Rows of a statement that notes ``batch`` in the outbox; (True, its tasks) if an earlier run did."""

        async def work(again: bool, connection: PostgresConnection) -> tuple[bool, Rows]:
            try:
                return False, await connection.call(name, *args, again)
            except psycopg2.errors.UniqueViolation as e:
                if e.diag.constraint_name not in ("outbox_pkey", "tasks_key"):
                    raise
                violated = e.diag.constraint_name
            rows = await connection.call("batch", batch)
            if violated == "tasks_key" and not rows:
                raise KeyTaken("the key is taken", field="key")
            return True, rows

        known: tuple[bool, Rows] = await self._run(work)
        return known

    async def create_tasks(self, batch: str, rows: Sequence[NewRow], settled: Sequence[str] = ()) -> Sequence[Task]:
        specs = [row.spec for row in rows]
        known, answer = await self._batch(
            "create_tasks",
            batch,
            numbers([row.user_id for row in rows]),
            texts([spec.task for spec in specs]),
            texts([spec.kind for spec in specs]),
            texts([spec.queue for spec in specs]),
            texts([spec.payload for spec in specs]),
            numbers([spec.max_attempts for spec in specs]),
            flags([row.state is State.QUEUED for row in rows]),
            *_keys(specs),
            ids(settled),
            batch,
        )
        if known:
            return _tasks(answer)
        created, now = answer[0]
        return [
            Task(
                task_id,
                row.user_id,
                spec.task,
                spec.kind,
                spec.queue,
                row.state,
                now,
                now,
                spec.payload,
                max_attempts=spec.max_attempts,
                dispatch=1 if row.state is State.QUEUED else 0,
            )
            for task_id, row, spec in zip(created, rows, specs, strict=True)
        ]

    async def find_keys(self, keys: Sequence[tuple[int, str]]) -> Mapping[tuple[int, str], Keyed]:
        rows = await self._call("find_keys", numbers([user for user, _ in keys]), texts([key for _, key in keys]))
        return {(user, key): Keyed(task_id, fingerprint) for user, key, task_id, fingerprint in rows}

    async def dispatch(self, batch: str, queue: str, limit: int, after_user: int | None) -> Dispatched:
        known, rows = await self._batch("dispatch", batch, batch, queue, limit, after_user or 0)
        if not known and rows[0][0]:
            known, rows = True, await self._call("batch", batch)
        if known:
            # where the walk ended is not known any more: the next turn goes on behind the last user served
            tasks = _tasks(rows)
            return Dispatched(tasks, max((t.user_id for t in tasks), default=None), len(tasks) == limit)
        tasks = [_task(row[2:-1]) for row in rows if row[2] is not None]
        return Dispatched(tasks, rows[0][1], len(tasks) == limit)

    async def promote(self, limit: int) -> Sequence[tuple[str, int]]:
        return [(queue, user) for queue, user in await self._call("promote", limit, repeat=False)]

    async def settle(self, batches: Sequence[str]) -> None:
        await self._call("settle", ids(batches))

    async def take_over(self, older_than: float, limit: int) -> Sequence[OutboxBatch]:
        rows = await self._call("take_over", older_than, limit, repeat=False)
        batches: dict[str, dict[str, list[Dispatch]]] = {}
        for batch, queue, task_id, number in rows:
            messages = batches.setdefault(batch, {})
            if task_id is not None:
                messages.setdefault(queue, []).append(Dispatch(task_id, number))
        return [OutboxBatch(batch, messages) for batch, messages in batches.items()]

    async def claim(self, worker: str, lease: float, claims: Sequence[Claim]) -> Sequence[Task]:
        claims = sorted(claims)
        args = (
            numbers([c.task_id for c in claims]),
            numbers([c.dispatch for c in claims]),
            flags([c.redelivered for c in claims]),
            flags([c.alone for c in claims]),
        )
        return _tasks(await self._call("claim", worker, lease, *args))

    async def finish(self, worker: str, outcomes: Sequence[Outcome], again: bool = False) -> Mapping[int, Finished]:
        # In one order everywhere, so that two batches never wait for each other's rows.
        outcomes = sorted(outcomes, key=lambda o: o.task_id)
        key = (
            worker,
            numbers([o.task_id for o in outcomes]),
            numbers([o.dispatch for o in outcomes]),
            numbers([o.attempt for o in outcomes]),
            texts([o.state.value for o in outcomes]),
        )
        results = texts([o.result or "" for o in outcomes])
        errors = texts([storable_error(o.error) or "" for o in outcomes])

        async def work(repeated: bool, connection: PostgresConnection) -> Rows:
            rows = await connection.call("finish", *key, results, errors)
            if (again or repeated) and len(rows) < len(outcomes):
                rows += await connection.call("finished_so", *key)
            return rows

        rows: Rows = await self._run(work)
        return {task_id: Finished(version, when) for task_id, version, when in rows}

    async def release(self, worker: str, held: Sequence[Claim]) -> Sequence[Task]:
        held = sorted(held)
        args = numbers([c.task_id for c in held]), numbers([c.dispatch for c in held])
        return _tasks(await self._call("release", worker, *args))

    async def renew(self, worker: str, lease: float, task_ids: Sequence[int]) -> frozenset[int]:
        return frozenset(task_id for (task_id,) in await self._call("renew", worker, lease, numbers(task_ids)))

    async def cancel(self, user_id: int, task_id: int) -> Task:
        task: Task | None = None
        for _ in range(_CANCEL_TRIES if possible([task_id]) else 0):
            if rows := await self._call("cancel", user_id, task_id):
                return _task(rows[0])
            task = next(iter(await self.get_tasks(user_id, [task_id])), None)
            if task is None or task.state not in (State.WAITING, State.QUEUED):
                break
            # it was running a moment ago, and has been given back since
        if task is None:
            raise NotFound(f"you have no task {task_id}", field="task_id")
        if task.state is not State.CANCELLED:
            raise Conflict(f"task {task_id} is {task.state.value}: too late to cancel it", field="task_id")
        return task

    # -- repair ------------------------------------------------------------------------------------
    # What changes nothing when repeated but would not be told again is not repeated: the caller learns by
    # Unavailable that something may have changed unseen, and its next turn finds what is left.

    async def expire_leases(self, limit: int) -> Sequence[Task]:
        return _tasks(await self._call("expire_leases", limit, repeat=False))

    async def requeue_lost(self, queue: str, older_than: float, limit: int) -> Sequence[Task]:
        return _tasks(await self._call("requeue_lost", queue, older_than, limit, repeat=False))

    async def reset_in_flight(self) -> int:
        return int((await self._call("reset_in_flight"))[0][0])

    async def count_queued(self) -> Mapping[str, int]:
        return dict(await self._call("count_queued"))

    # -- reading -----------------------------------------------------------------------------------

    async def get_tasks(self, user_id: int, ids: Sequence[int]) -> Sequence[Task]:
        return _tasks(await self._call("get_tasks", user_id, numbers(possible(ids))))

    async def find_tasks(self, ids: Sequence[int]) -> Sequence[Task]:
        return _tasks(await self._call("find_tasks", numbers(ids)))

    async def list_tasks(self, user_id: int, query: TaskQuery) -> Page:
        wanted = Filter(query, now="now()", placeholder="%s")
        if not wanted.statuses:
            return Page((), None)
        text, args = _listing(user_id, query, wanted)
        rows: Rows = await self._run(lambda again, connection: connection.query(text, args))
        more, end = len(rows) > query.limit, None
        if wanted.walked:
            # one that does not pass is only there to tell where the walk ended
            end = rows[-1][2] if rows and rows[-1][1] else None
            rows = [row[2:] for row in rows if row[0]]
        tasks = _tasks(rows[: query.limit])
        return Page(tasks, tasks[-1].id if more else end)


def _keys(specs: Sequence[NewTask]) -> tuple[str, str]:
    """Keys and fingerprints as arrays, empty when no task has any, which is cheaper than a row of blanks."""
    if all(spec.key is None for spec in specs):
        return "{}", "{}"
    return texts([spec.key or "" for spec in specs]), texts([spec.fingerprint or "" for spec in specs])


def _listing(user_id: int, query: TaskQuery, wanted: Filter) -> tuple[str, Sequence[Any]]:
    """The statement for a page with one row more than asked for, and its parameters."""
    before = end_of(query)
    count = query.limit + 1
    if wanted.in_flight:
        return sql.list_in_flight(wanted.condition), (user_id, before, *wanted.args, count)
    each = look_at(query) if wanted.walked else count
    walk = [v for status in wanted.statuses for v in (user_id, status, before, each, user_id, status)]
    if not wanted.walked:
        return sql.list_walk(len(wanted.statuses)), (*walk, count)
    args = *wanted.args, each, *walk, each, count
    return sql.list_filtered(len(wanted.statuses), wanted.condition), args


async def _migrate(connection: PostgresConnection) -> None:
    known = migrations.load("postgres")
    await connection.query("BEGIN")
    await connection.query("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
    await connection.query(migrations.CREATE_TABLE)
    [(applied,)] = await connection.query(migrations.APPLIED)
    for migration in migrations.pending(known, applied):
        await connection.query(migration.sql)
        await connection.query("INSERT INTO schema_migrations VALUES (%s, %s, now())", migration[:2])
    await connection.query("COMMIT")


def _translated(e: psycopg2.Error) -> BadRequest | Unavailable | None:
    """A refused value is the caller's fault, a shortage passes, anything else is a defect of ours: None."""
    code = e.pgcode or ""
    if code.startswith(("22", "23", "54")):
        return BadRequest(f"cannot be stored: {reason(e)}")
    if code.startswith(("53", "58")) or code in {"57014", "55P03"}:
        return Unavailable(f"the database cannot do this now: {reason(e)}", retry_after=MAX_DELAY)
    return None
