"""The store of the embedded server: SQLite, one connection, statements in a thread of their own.

Every method is one transaction. Times come from the clock given and are stored in microseconds.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from zope.interface import implementer

from taskd.model.errors import KeyTaken
from taskd.model.states import State
from taskd.model.tasks import NewTask, Route, Task
from taskd.ports.attempts import Claim, Finished, Outcome
from taskd.ports.scheduling import Dispatch, Dispatched, OutboxBatch
from taskd.ports.store import IStore
from taskd.ports.tasks import Keyed, Page, TaskQuery
from taskd.store.paging import KEEP_SECONDS, STATES, Filter, end_of, look_at, possible
from taskd.store.refusals import RETRYABLE, no_such_task, not_retryable, too_late
from taskd.store.sharing import in_turns, share
from taskd.store.sqlite import statements as sql
from taskd.store.sqlite.accounts import SqliteAccounts
from taskd.store.sqlite.database import from_micros, to_micros
from taskd.store.sqlite.reports import SqliteReports
from taskd.store.sqlite.runner import InlineRunner, IRunner, open_sqlite
from taskd.store.texts import check_storable, storable

__all__ = ["IRunner", "InlineRunner", "SqliteStore", "open_sqlite"]

_FOREVER = 2**62


def _task(row: Sequence[Any]) -> Task:
    fields = list(row)
    fields[5] = STATES[row[5]]
    for i in (6, 7, 13, 14):
        if row[i] is not None:
            fields[i] = from_micros(row[i])
    return Task(*fields)


def _tasks(cursor: sqlite3.Cursor) -> list[Task]:
    return [_task(row) for row in cursor.fetchall()]


@implementer(IStore)
class SqliteStore(SqliteAccounts, SqliteReports):
    """IStore on SQLite; made as SqliteBase says."""

    # -- a task's life -----------------------------------------------------------------------------

    async def create_tasks(self, batch: str, tasks: Sequence[NewTask], settled: Sequence[str] = ()) -> Sequence[Task]:
        for task in tasks:
            check_storable(task.task)
        return await self._run(self._create_tasks, batch, tasks, settled)

    def _create_tasks(
        self, db: sqlite3.Cursor, batch: str, new: Sequence[NewTask], settled: Sequence[str]
    ) -> Sequence[Task]:
        now = self._now()
        db.execute("BEGIN IMMEDIATE")
        if settled:
            self._mark_published(db, settled)
        if known := db.execute(sql.FIND_BATCH, (batch,)).fetchone():
            return self._in_order(db, known[0])
        first = 1 + db.execute(sql.LAST_TASK).fetchone()[0]
        when = from_micros(now)
        tasks, values = [], []
        for task_id, t in enumerate(new, first):
            queued = t.state is State.QUEUED
            # one that has passed is as good as none; that of a queued task has come, by the clock of its server
            run_at = now if t.run_at is None else max(to_micros(t.run_at), now)
            values.append(
                (
                    *(task_id, t.user_id, t.task, t.kind, t.queue, t.payload),
                    *(t.max_attempts, t.state.value, int(queued), now, run_at, int(queued or run_at == now)),
                    *(now if queued else None, t.timeout, t.key, t.fingerprint),
                )
            )
            tasks.append(
                Task(
                    *(task_id, t.user_id, t.task, t.kind, t.queue, t.state, when, from_micros(run_at)),
                    *(t.payload, 0, t.max_attempts, int(queued)),
                    timeout=t.timeout,
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
        # those that are gone had ended long ago
        return [found[task_id] for task_id in json.loads(ids) if task_id in found]

    async def dispatch(self, batch: str, route: Route, limit: int, after_user: int | None) -> Dispatched:
        return await self._run(self._dispatch, batch, route, limit, after_user or 0)

    def _dispatch(self, db: sqlite3.Cursor, batch: str, route: Route, limit: int, after_user: int) -> Dispatched:
        now = self._now()
        db.execute("BEGIN IMMEDIATE")
        if known := db.execute(sql.FIND_BATCH, (batch,)).fetchone():
            # where the walk ended is not known any more: the next turn goes on behind the last user served
            tasks = self._in_order(db, known[0])
            return Dispatched(tasks, max((t.user_id for t in tasks), default=None), len(tasks) == limit)
        users: list[int] = []
        last = after_user
        while len(users) < limit and (row := db.execute(sql.NEXT_USER, (*route, last)).fetchone()):
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
                mine = db.execute(sql.OLDEST, (*route, user, each, had)).fetchall()
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

    async def promote(self, limit: int) -> Sequence[tuple[Route, int]]:
        return await self._run(self._promote, limit)

    def _promote(self, db: sqlite3.Cursor, limit: int) -> Sequence[tuple[Route, int]]:
        rows = set(db.execute(sql.PROMOTE, (self._now(), limit)).fetchall())
        return [(Route(queue, kind), user) for queue, kind, user in sorted(rows)]

    async def mark_published(self, batches: Sequence[str]) -> None:
        await self._run(self._mark_published, batches)

    def _mark_published(self, db: sqlite3.Cursor, batches: Sequence[str]) -> None:
        ids = json.dumps(list(batches))
        db.execute(sql.SETTLE, (ids,))
        db.execute(sql.SETTLE_TAKEN, (_FOREVER, ids))

    async def adopt_stale(self, older_than: float, limit: int) -> Sequence[OutboxBatch]:
        return await self._run(self._take_over, older_than, limit)

    def _take_over(self, db: sqlite3.Cursor, older_than: float, limit: int) -> Sequence[OutboxBatch]:
        now = self._now()
        db.execute("BEGIN IMMEDIATE")
        db.execute(sql.DROP_SETTLED, (_FOREVER, now - KEEP_SECONDS * 1_000_000))
        batches = []
        before = now - round(older_than * 1_000_000)
        for batch, ids in db.execute(sql.OLD_BATCHES, (before, limit)).fetchall():
            messages: dict[Route, list[Dispatch]] = {}
            for task in self._in_order(db, ids):
                if task.state is State.QUEUED:
                    messages.setdefault(task.route, []).append(Dispatch(task.id, task.dispatch))
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
            if c.redelivered:
                db.execute(sql.KEEP_TAKEN, (now, c.task_id, c.dispatch, worker, c.alone))
            values = worker, until, now, c.max_attempts, c.task_id, c.dispatch, c.redelivered, worker, c.alone
            row = (
                db.execute(sql.CLAIM, values).fetchone()
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
        done: dict[int, Finished] = {}
        for o in outcomes:
            end = self._complete if o.state is State.COMPLETED else self._fail
            if finished := end(db, worker, o, now, again):
                done[o.task_id] = finished
        return done

    def _complete(self, db: sqlite3.Cursor, worker: str, o: Outcome, now: int, again: bool) -> Finished | None:
        key = o.task_id, o.dispatch, o.attempt, worker
        if row := db.execute(sql.FINISH, (o.state.value, now, o.result or None, None, *key)).fetchone():
            return Finished(row[0], from_micros(now))
        return self._finished_so(db, key, o) if again else None

    def _fail(self, db: sqlite3.Cursor, worker: str, o: Outcome, now: int, again: bool) -> Finished | None:
        key = o.task_id, o.dispatch, o.attempt, worker
        error, trace = storable(o.error), storable(o.trace) or None
        db.execute(sql.KEEP_ATTEMPT, (now, error, trace, *key))
        if o.state is State.FAILED:
            if row := db.execute(sql.FINISH, (o.state.value, now, o.result or None, error or None, *key)).fetchone():
                return Finished(row[0], from_micros(now))
            return self._finished_so(db, key, o) if again else None
        run_at = now + max(0, round(o.delay * 1_000_000))
        row = db.execute(sql.TRY_AGAIN, (run_at, o.delay <= 0, error or None, *key)).fetchone()
        if row is None and again:
            row = db.execute(sql.FAILED_SO, (*key, error)).fetchone()
        return Finished(row[0], None, from_micros(row[1])) if row else None

    def _finished_so(self, db: sqlite3.Cursor, key: tuple[Any, ...], o: Outcome) -> Finished | None:
        row = db.execute(sql.FINISHED_SO, (*key, o.state.value)).fetchone()
        return Finished(row[0], from_micros(row[1])) if row else None

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
        return await self._run(self._cancel, user_id, task_id)

    def _cancel(self, db: sqlite3.Cursor, user_id: int, task_id: int) -> Task:
        task = self._of_user(db, user_id, task_id)
        if row := db.execute(sql.CANCEL, (self._now(), task.id)).fetchone():
            return _task(row)
        if task.state is not State.CANCELLED:
            raise too_late(task)
        return task

    async def retry(self, user_id: int, task_id: int) -> Task:
        return await self._run(self._retry, user_id, task_id)

    def _retry(self, db: sqlite3.Cursor, user_id: int, task_id: int) -> Task:
        task = self._of_user(db, user_id, task_id)
        if task.state not in RETRYABLE:
            raise not_retryable(task)
        return _task(db.execute(sql.RETRY, (self._now(), task.id)).fetchone())

    def _of_user(self, db: sqlite3.Cursor, user_id: int, task_id: int) -> Task:
        for task in _tasks(db.execute(sql.TASK_OF, (user_id, json.dumps(possible([task_id]))))):
            return task
        raise no_such_task(task_id)

    # -- repair ------------------------------------------------------------------------------------

    async def expire_leases(self, limit: int) -> Sequence[Task]:
        return await self._run(lambda db: self._expire(db, self._now(), limit))

    def _expire(self, db: sqlite3.Cursor, until: int, limit: int) -> list[Task]:
        dead = json.dumps([task_id for (task_id,) in db.execute(sql.DEAD, (until, limit)).fetchall()])
        db.execute(sql.KEEP_LOST, {"now": self._now(), "ids": dead})
        return _tasks(db.execute(sql.EXPIRE, {"now": self._now(), "ids": dead}))

    async def requeue_lost(self, route: Route, older_than: float, limit: int) -> Sequence[Task]:
        before = self._now() - round(older_than * 1_000_000)
        return await self._run(lambda db: _tasks(db.execute(sql.REQUEUE_LOST, (*route, before, limit))))

    async def reset_in_flight(self) -> int:
        return await self._run(self._reset_in_flight)

    def _reset_in_flight(self, db: sqlite3.Cursor) -> int:
        expired = self._expire(db, _FOREVER, -1)
        queued = db.execute(sql.RESET_QUEUED).fetchall()
        db.execute("DELETE FROM outbox")
        return len(expired) + len(queued)

    async def count_queued(self) -> Mapping[Route, int]:
        return await self._run(
            lambda db: {Route(queue, kind): count for queue, kind, count in db.execute(sql.COUNT_QUEUED).fetchall()}
        )

    async def delete_finished(self, seconds: float, after_id: int, limit: int) -> tuple[int, int | None]:
        return await self._run(self._delete_finished, seconds, after_id, limit)

    def _delete_finished(self, db: sqlite3.Cursor, seconds: float, after_id: int, limit: int) -> tuple[int, int | None]:
        before = self._now() - round(seconds * 1_000_000)
        seen = db.execute(sql.OLDEST_TASKS, (after_id, limit)).fetchall()
        ended = [task_id for task_id, _, finished in seen if finished is not None and finished < before]
        for statement in sql.DELETE_TASKS:
            db.execute(statement, (json.dumps(ended),))
        more = len(seen) == limit and all(created < before for _, created, _ in seen)
        return len(ended), seen[-1][0] if more else None

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
