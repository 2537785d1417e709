"""The store of the embedded server: SQLite, one connection, statements in a thread of their own.

Every method is one transaction. Times come from the clock given and are stored in microseconds.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from taskd.errors import BadRequest, Conflict, KeyTaken, NotFound, SettingsError, Unavailable, UsernameInUse
from taskd.model import State, Task, User
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
from taskd.store import sqlite_statements as sql
from taskd.store.common import (
    KEEP_SECONDS,
    MAX_DELAY,
    STATES,
    Filter,
    Pauses,
    check_storable,
    closed,
    end_of,
    in_turns,
    look_at,
    possible,
    share,
    storable_error,
)
from taskd.store.sqlite_runner import InlineRunner, IRunner, open_sqlite

__all__ = ["IRunner", "InlineRunner", "SqliteStore", "open_sqlite"]

R = TypeVar("R")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_FOREVER = 2**62


def _time(micros: int | None) -> datetime | None:
    # by position: three times as fast as by name, and there are four in a row
    return None if micros is None else _EPOCH + timedelta(0, 0, micros)


def _task(row: Sequence[Any]) -> Task:
    fields = list(row)
    fields[5] = STATES[row[5]]
    for i in (6, 7, 13, 14):
        fields[i] = _time(row[i])
    return Task(*fields)


def _tasks(cursor: sqlite3.Cursor) -> list[Task]:
    return [_task(row) for row in cursor.fetchall()]


@implementer(ITaskStore)
class SqliteStore:
    """ITaskStore on SQLite. ``clock`` tells the time; stop() closes ``runner``."""

    log = Logger()

    def __init__(self, runner: IRunner, clock: IReactorTime) -> None:
        self._runner = runner
        self._clock = clock
        self._pauses = Pauses(clock)
        self.ready = False

    def _now(self) -> int:
        return round(self._clock.seconds() * 1_000_000)

    async def _run(self, interaction: Callable[..., R], *args: Any) -> R:
        if not self.ready:
            raise self._not_ready()
        return await self._interact(interaction, *args)

    def _not_ready(self) -> Unavailable:
        if self._pauses.stopped:
            return closed()
        return Unavailable("the database cannot be reached yet; try again", retry_after=MAX_DELAY)

    async def _interact(self, interaction: Callable[..., R], *args: Any) -> R:
        try:
            return await self._runner.runInteraction(interaction, *args)
        except sqlite3.OperationalError as e:
            # locked by somebody else's shell, disk full, I/O error: the data is whole, this was not done
            raise Unavailable(f"the database cannot be used now: {e}") from e
        except (sqlite3.IntegrityError, OverflowError, UnicodeEncodeError) as e:
            raise BadRequest(f"cannot be stored: {e}") from e

    # -- start and stop ----------------------------------------------------------------------------

    async def start(self) -> None:
        told = False
        while not self.ready:
            if self._pauses.stopped:
                raise closed()
            try:
                await self._interact(_migrate)
                self.ready = not self._pauses.stopped
            except Unavailable as e:
                # somebody else's shell lets go of it some day; nothing else passes by itself
                if "locked" not in e.message:
                    raise
                if not told:
                    told = True
                    self.log.warn("SQLite: trying on: {reason}", reason=e.message)
                await self._pauses.pause()
            except sqlite3.DatabaseError as e:
                raise SettingsError(f"the database file cannot be used: {e}") from None

    async def stop(self) -> None:
        self.ready = False
        if not self._pauses.stopped:
            self._pauses.stop()
            self._runner.close()

    # -- accounts ----------------------------------------------------------------------------------

    async def create_user(self, username: str, key: str, password: str) -> User:
        return await self._run(self._create_user, check_storable(username), check_storable(key), password)

    def _create_user(self, db: sqlite3.Cursor, username: str, key: str, password: str) -> User:
        if row := db.execute(sql.CREATE_USER, (username, key, password, self._now())).fetchone():
            return User(row[0], username)
        row = db.execute(sql.FIND_USER, (key,)).fetchone()
        if row[2] != password:
            raise UsernameInUse(f"the username {username} is taken; choose another", field="username")
        return User(row[0], row[1])

    async def find_user(self, key: str) -> Account | None:
        row = await self._run(lambda db: db.execute(sql.FIND_USER, (check_storable(key),)).fetchone())
        return Account(User(row[0], row[1]), row[2]) if row else None

    async def open_session(self, user_id: int, token_hash: bytes, seconds: int) -> None:
        await self._run(self._open_session, user_id, token_hash, seconds)

    def _open_session(self, db: sqlite3.Cursor, user_id: int, token_hash: bytes, seconds: int) -> None:
        now = self._now()
        db.execute(sql.DROP_EXPIRED_SESSIONS, (user_id, now))
        db.execute(sql.OPEN_SESSION, (token_hash, user_id, now, now + seconds * 1_000_000))

    async def find_session(self, token_hash: bytes) -> User | None:
        row = await self._run(lambda db: db.execute(sql.FIND_SESSION, (token_hash, self._now())).fetchone())
        return User(*row) if row else None

    async def close_session(self, token_hash: bytes) -> None:
        await self._run(lambda db: db.execute(sql.CLOSE_SESSION, (token_hash,)) and None)

    # -- a task's life -----------------------------------------------------------------------------

    async def create_tasks(self, batch: str, rows: Sequence[NewRow], settled: Sequence[str] = ()) -> Sequence[Task]:
        for row in rows:
            check_storable(row.spec.task)
        return await self._run(self._create_tasks, batch, rows, settled)

    def _create_tasks(
        self, db: sqlite3.Cursor, batch: str, rows: Sequence[NewRow], settled: Sequence[str]
    ) -> Sequence[Task]:
        now = self._now()
        db.execute("BEGIN IMMEDIATE")
        if settled:
            self._settle(db, settled)
        if known := db.execute(sql.FIND_BATCH, (batch,)).fetchone():
            return self._in_order(db, known[0])
        first = 1 + db.execute(sql.LAST_TASK).fetchone()[0]
        when = _EPOCH + timedelta(microseconds=now)
        tasks, values = [], []
        for task_id, row in enumerate(rows, first):
            spec, queued = row.spec, row.state is State.QUEUED
            values.append(
                (
                    *(task_id, row.user_id, spec.task, spec.kind, spec.queue, spec.payload),
                    *(spec.max_attempts, row.state.value, int(queued), now, now, now if queued else None),
                    *(spec.key, spec.fingerprint),
                )
            )
            tasks.append(
                Task(
                    *(task_id, row.user_id, spec.task, spec.kind, spec.queue, row.state, when, when),
                    *(spec.payload, 0, spec.max_attempts, int(queued)),
                )
            )
        try:
            db.executemany(sql.CREATE_TASK, values)
        except sqlite3.IntegrityError as e:
            if "tasks.key" in str(e):
                raise KeyTaken("the key is taken", field="key") from None
            raise
        db.execute(sql.CREATE_BATCH, (batch, json.dumps([t.id for t in tasks]), now))
        return tasks

    async def find_keys(self, keys: Sequence[tuple[int, str]]) -> Mapping[tuple[int, str], Keyed]:
        return await self._run(self._find_keys, keys)

    def _find_keys(self, db: sqlite3.Cursor, keys: Sequence[tuple[int, str]]) -> Mapping[tuple[int, str], Keyed]:
        rows = ((key, db.execute(sql.FIND_KEY, key).fetchone()) for key in keys)
        return {key: Keyed(*row) for key, row in rows if row is not None}

    def _in_order(self, db: sqlite3.Cursor, ids: str) -> list[Task]:
        found = {task.id: task for task in _tasks(db.execute(sql.TASKS_BY_ID, (ids,)))}
        return [found[task_id] for task_id in json.loads(ids)]

    async def dispatch(self, batch: str, queue: str, limit: int, after_user: int | None) -> Dispatched:
        return await self._run(self._dispatch, batch, queue, limit, after_user or 0)

    def _dispatch(self, db: sqlite3.Cursor, batch: str, queue: str, limit: int, after_user: int) -> Dispatched:
        now = self._now()
        db.execute("BEGIN IMMEDIATE")
        if known := db.execute(sql.FIND_BATCH, (batch,)).fetchone():
            # where the walk ended is not known any more: the next turn goes on behind the last user served
            tasks = self._in_order(db, known[0])
            return Dispatched(tasks, max((t.user_id for t in tasks), default=None), len(tasks) == limit)
        users: list[int] = []
        last = after_user
        while len(users) < limit and (row := db.execute(sql.NEXT_USER, (queue, last)).fetchone()):
            last = row[0]
            users.append(last)
        # A round that needs several turns gives everybody one task: with more, those of its last turn would get
        # a whole turn for themselves.
        whole = after_user == 0 and len(users) < limit
        picked: list[int] = []
        hungry = dict.fromkeys(users, 0)
        while hungry and len(picked) < limit:
            each = share(limit - len(picked), len(hungry)) if whole else 1
            for user, had in list(hungry.items())[: limit - len(picked)]:
                mine = db.execute(sql.OLDEST, (queue, user, each, had)).fetchall()
                picked += [task_id for (task_id,) in mine]
                if len(mine) == each and whole:
                    hungry[user] += each
                else:
                    del hungry[user]
        if not picked:
            return Dispatched((), None, False)
        tasks = _tasks(db.execute(sql.DISPATCH, (now, json.dumps(picked))))
        tasks = in_turns((t.user_id, t) for t in sorted(tasks, key=lambda t: (t.run_at, t.id)))
        db.execute(sql.CREATE_BATCH, (batch, json.dumps([t.id for t in tasks]), now))
        return Dispatched(tasks, last if len(users) == limit else None, len(tasks) == limit)

    async def promote(self, limit: int) -> Sequence[tuple[str, int]]:
        now = self._now()
        return await self._run(lambda db: sorted(set(db.execute(sql.PROMOTE, (now, limit)).fetchall())))

    async def settle(self, batches: Sequence[str]) -> None:
        await self._run(self._settle, batches)

    def _settle(self, db: sqlite3.Cursor, batches: Sequence[str]) -> None:
        ids = json.dumps(list(batches))
        db.execute(sql.SETTLE, (ids,))
        db.execute(sql.SETTLE_TAKEN, (_FOREVER, ids))

    async def take_over(self, older_than: float, limit: int) -> Sequence[OutboxBatch]:
        return await self._run(self._take_over, older_than, limit)

    def _take_over(self, db: sqlite3.Cursor, older_than: float, limit: int) -> Sequence[OutboxBatch]:
        now = self._now()
        db.execute("BEGIN IMMEDIATE")
        db.execute(sql.DROP_SETTLED, (_FOREVER, now - KEEP_SECONDS * 1_000_000))
        batches = []
        before = now - round(older_than * 1_000_000)
        for batch, ids in db.execute(sql.OLD_BATCHES, (before, limit)).fetchall():
            messages: dict[str, list[Dispatch]] = {}
            for task in self._in_order(db, ids):
                if task.state is State.QUEUED:
                    messages.setdefault(task.queue, []).append(Dispatch(task.id, task.dispatch))
            batches.append(OutboxBatch(batch, messages))
        db.execute(sql.TAKE, (now, json.dumps([b.id for b in batches])))
        return batches

    async def claim(self, worker: str, lease: float, claims: Sequence[Claim]) -> Sequence[Task]:
        return await self._run(self._claim, worker, lease, claims)

    def _claim(self, db: sqlite3.Cursor, worker: str, lease: float, claims: Sequence[Claim]) -> Sequence[Task]:
        now = self._now()
        until = now + round(lease * 1_000_000)
        mine: dict[int, Task] = {}
        for c in claims:
            row = (
                db.execute(
                    sql.CLAIM, (worker, until, now, c.task_id, c.dispatch, c.redelivered, worker, c.alone)
                ).fetchone()
                or db.execute(sql.HELD, (c.task_id, c.dispatch, worker)).fetchone()
            )
            if row:
                mine[row[0]] = _task(row)
        return list(mine.values())

    async def finish(self, worker: str, outcomes: Sequence[Outcome], again: bool = False) -> Mapping[int, Finished]:
        return await self._run(self._finish, worker, outcomes, again)

    def _finish(
        self, db: sqlite3.Cursor, worker: str, outcomes: Sequence[Outcome], again: bool
    ) -> Mapping[int, Finished]:
        now = self._now()
        when = _EPOCH + timedelta(microseconds=now)
        done: dict[int, Finished] = {}
        for o in outcomes:
            state, key = o.state.value, (o.task_id, o.dispatch, o.attempt, worker)
            values = (state, now, o.result or None, storable_error(o.error), *key)
            if row := db.execute(sql.FINISH, values).fetchone():
                done[o.task_id] = Finished(row[0], when)
            elif again and (row := db.execute(sql.FINISHED_SO, (*key, state)).fetchone()):
                done[o.task_id] = Finished(row[0], _EPOCH + timedelta(microseconds=row[1]))
        return done

    async def release(self, worker: str, held: Sequence[Claim]) -> Sequence[Task]:
        return await self._run(self._release, worker, held)

    def _release(self, db: sqlite3.Cursor, worker: str, held: Sequence[Claim]) -> Sequence[Task]:
        given: dict[int, Task] = {}
        for c in held:
            key = (c.task_id, c.dispatch, worker)
            row = db.execute(sql.RELEASE, key).fetchone() or db.execute(sql.RELEASED, key).fetchone()
            if row:
                given[row[0]] = _task(row)
        return list(given.values())

    async def renew(self, worker: str, lease: float, task_ids: Sequence[int]) -> frozenset[int]:
        args = self._now() + round(lease * 1_000_000), worker, json.dumps(list(task_ids))
        return await self._run(lambda db: frozenset(task_id for (task_id,) in db.execute(sql.RENEW, args).fetchall()))

    async def cancel(self, user_id: int, task_id: int) -> Task:
        if not possible([task_id]):
            raise NotFound(f"you have no task {task_id}", field="task_id")
        return await self._run(self._cancel, user_id, task_id)

    def _cancel(self, db: sqlite3.Cursor, user_id: int, task_id: int) -> Task:
        if row := db.execute(sql.CANCEL, (self._now(), task_id, user_id)).fetchone():
            return _task(row)
        row = db.execute(sql.TASK_OF, (user_id, json.dumps([task_id]))).fetchone()
        if row is None:
            raise NotFound(f"you have no task {task_id}", field="task_id")
        task = _task(row)
        if task.state is not State.CANCELLED:
            raise Conflict(f"task {task_id} is {task.state.value}: too late to cancel it", field="task_id")
        return task

    # -- repair ------------------------------------------------------------------------------------

    async def expire_leases(self, limit: int) -> Sequence[Task]:
        now = self._now()
        return await self._run(lambda db: _tasks(db.execute(sql.EXPIRE, {"now": now, "until": now, "limit": limit})))

    async def requeue_lost(self, queue: str, older_than: float, limit: int) -> Sequence[Task]:
        before = self._now() - round(older_than * 1_000_000)
        return await self._run(lambda db: _tasks(db.execute(sql.REQUEUE_LOST, (queue, before, limit))))

    async def reset_in_flight(self) -> int:
        return await self._run(self._reset_in_flight)

    def _reset_in_flight(self, db: sqlite3.Cursor) -> int:
        expired = db.execute(sql.EXPIRE, {"now": self._now(), "until": _FOREVER, "limit": -1}).fetchall()
        queued = db.execute(sql.RESET_QUEUED).fetchall()
        db.execute("DELETE FROM outbox")
        return len(expired) + len(queued)

    async def count_queued(self) -> Mapping[str, int]:
        return await self._run(lambda db: dict(db.execute(sql.COUNT_QUEUED).fetchall()))

    # -- reading -----------------------------------------------------------------------------------

    async def get_tasks(self, user_id: int, ids: Sequence[int]) -> Sequence[Task]:
        return await self._run(lambda db: _tasks(db.execute(sql.TASK_OF, (user_id, json.dumps(possible(ids))))))

    async def find_tasks(self, ids: Sequence[int]) -> Sequence[Task]:
        return await self._run(lambda db: _tasks(db.execute(sql.TASKS_BY_ID, (json.dumps(list(ids)),))))

    async def list_tasks(self, user_id: int, query: TaskQuery) -> Page:
        return await self._run(self._list_tasks, user_id, query)

    def _list_tasks(self, db: sqlite3.Cursor, user_id: int, query: TaskQuery) -> Page:
        wanted = Filter(query, now=str(self._now()), placeholder="?")
        if not wanted.statuses:
            return Page((), None)
        before = end_of(query)
        each = look_at(query) if wanted.walked else query.limit + 1
        walks = [value for status in wanted.statuses for value in (user_id, status, before, each)]
        if wanted.in_flight:
            db.execute(sql.list_in_flight(wanted.condition), (user_id, before, *wanted.args, query.limit + 1))
        else:
            text = sql.list_walk(len(wanted.statuses), wanted.condition)
            db.execute(text, (*walks, each, *wanted.args, query.limit + 1))
        tasks = _tasks(db)
        if len(tasks) > query.limit:
            return Page(tasks[: query.limit], tasks[query.limit - 1].id)
        if not wanted.walked:
            return Page(tasks, None)
        row = db.execute(sql.list_end(len(wanted.statuses)), (*walks, each - 1)).fetchone()
        return Page(tasks, row[0] if row else None)


def _migrate(db: sqlite3.Cursor) -> None:
    known = migrations.load("sqlite")
    db.execute("BEGIN IMMEDIATE")
    db.execute(migrations.CREATE_TABLE)
    for migration in migrations.pending(known, db.execute(migrations.APPLIED).fetchone()[0]):
        for statement in _statements(migration.sql):
            db.execute(statement)
        db.execute("INSERT INTO schema_migrations VALUES (?, ?, datetime('now'))", migration[:2])


def _statements(script: str) -> Iterator[str]:
    # executescript() would commit first
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
