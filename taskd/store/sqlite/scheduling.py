"""The backlog, the queued tasks and the outbox in SQLite."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from sqlite3 import Cursor

from taskd.model.states import State
from taskd.model.tasks import Route, Task
from taskd.ports.scheduling import Dispatch, Dispatched, OutboxBatch
from taskd.store.limits import OUTBOX_KEEP_SECONDS
from taskd.store.sqlite.database import SqliteDatabase, transaction
from taskd.store.sqlite.outbox import CREATE_BATCH, FIND_BATCH, settle, tasks_in_order
from taskd.store.sqlite.rows import ALL, FOREVER, TO_WAITING, to_tasks

# The condition of the index tasks_backlog. SQLite uses the index only for a query that repeats it.
_BACKLOG = "dispatched_at IS NULL AND finished_at IS NULL AND due"

NEXT_USER = f"""
SELECT user_id FROM tasks INDEXED BY tasks_backlog WHERE queue = ? AND kind = ? AND user_id > ? AND {_BACKLOG}
ORDER BY user_id LIMIT 1
"""
OLDEST = f"""
SELECT id FROM tasks INDEXED BY tasks_backlog WHERE queue = ? AND kind = ? AND user_id = ? AND {_BACKLOG}
ORDER BY run_at, id LIMIT ? OFFSET ?
"""
DISPATCH = f"""
UPDATE tasks SET state = 'queued', dispatch = dispatch + 1, version = version + 1, dispatched_at = ?
WHERE id IN (SELECT value FROM json_each(?)) RETURNING {ALL}
"""
# The state does not change, so the version does not either.
PROMOTE = """
UPDATE tasks SET due = 1 WHERE id IN (
    SELECT id FROM tasks INDEXED BY tasks_delayed WHERE NOT due AND finished_at IS NULL AND run_at <= ?
    ORDER BY run_at LIMIT ?)
RETURNING queue, kind, user_id
"""

DROP_SETTLED = "DELETE FROM outbox WHERE published_at = ? AND created_at < ?"
STALE_BATCHES = """
SELECT id, task_ids FROM outbox WHERE coalesce(published_at, created_at) <= ? ORDER BY created_at LIMIT ?
"""
ADOPT = "UPDATE outbox SET published_at = ? WHERE id IN (SELECT value FROM json_each(?))"

REQUEUE_LOST = f"""
UPDATE tasks SET state = 'waiting', {TO_WAITING}
WHERE id IN (
    SELECT id FROM tasks INDEXED BY tasks_in_flight
    WHERE dispatched_at IS NOT NULL AND finished_at IS NULL AND queue = ? AND kind = ? AND dispatched_at <= ?
        AND state = 'queued'
    ORDER BY dispatched_at LIMIT ?)
RETURNING {ALL}
"""
COUNT_QUEUED = """
SELECT queue, kind, count(*) FROM tasks INDEXED BY tasks_in_flight
WHERE dispatched_at IS NOT NULL AND finished_at IS NULL AND state = 'queued' GROUP BY queue, kind
"""


class SqliteScheduling(SqliteDatabase):
    """ISchedulingStore on SQLite."""

    @transaction
    def dispatch(
        self, db: Cursor, now: int, batch: str, route: Route, limit: int, after_user: int | None
    ) -> Dispatched:
        db.execute("BEGIN IMMEDIATE")
        if known := db.execute(FIND_BATCH, (batch,)).fetchone():
            tasks = tasks_in_order(db, known[0])
            # where the walk ended is not stored: the next turn begins after the last user of this one
            return Dispatched(tasks, max((t.user_id for t in tasks), default=None), len(tasks) == limit)
        users: list[int] = []
        last = after_user or 0
        while len(users) < limit and (row := db.execute(NEXT_USER, (*route, last)).fetchone()):
            last = row[0]
            users.append(last)
        # A round that needs several turns gives every user one task. With more, the few users of its last turn would
        # share a whole turn.
        whole = not after_user and len(users) < limit
        picked: list[int] = []
        hungry = dict.fromkeys(users, 0)
        while hungry and len(picked) < limit:
            each = max(1, (limit - len(picked)) // len(hungry)) if whole else 1
            for user, had in list(hungry.items())[: limit - len(picked)]:
                mine = db.execute(OLDEST, (*route, user, each, had)).fetchall()
                picked += [task_id for (task_id,) in mine]
                if len(mine) == each and whole:
                    hungry[user] += each
                else:
                    del hungry[user]
        if not picked:
            return Dispatched((), None, False)
        tasks = _round_robin(to_tasks(db.execute(DISPATCH, (now, json.dumps(picked)))))
        db.execute(CREATE_BATCH, (batch, json.dumps([task.id for task in tasks]), now))
        return Dispatched(tasks, last if len(users) == limit else None, len(tasks) == limit)

    @transaction
    def promote(self, db: Cursor, now: int, limit: int) -> Sequence[tuple[Route, int]]:
        rows = set(db.execute(PROMOTE, (now, limit)).fetchall())
        return [(Route(queue, kind), user) for queue, kind, user in sorted(rows)]

    @transaction
    def mark_published(self, db: Cursor, now: int, batches: Sequence[str]) -> None:
        settle(db, batches)

    @transaction
    def adopt_stale(self, db: Cursor, now: int, older_than: float, limit: int) -> Sequence[OutboxBatch]:
        db.execute("BEGIN IMMEDIATE")
        db.execute(DROP_SETTLED, (FOREVER, now - OUTBOX_KEEP_SECONDS * 1_000_000))
        batches = []
        before = now - round(older_than * 1_000_000)
        for batch, ids in db.execute(STALE_BATCHES, (before, limit)).fetchall():
            messages: dict[Route, list[Dispatch]] = {}
            for task in tasks_in_order(db, ids):
                if task.state is State.QUEUED:
                    messages.setdefault(task.route, []).append(Dispatch(task.id, task.dispatch))
            batches.append(OutboxBatch(batch, messages))
        db.execute(ADOPT, (now, json.dumps([b.id for b in batches])))
        return batches

    @transaction
    def requeue_lost(self, db: Cursor, now: int, route: Route, older_than: float, limit: int) -> Sequence[Task]:
        before = now - round(older_than * 1_000_000)
        return to_tasks(db.execute(REQUEUE_LOST, (*route, before, limit)))

    @transaction
    def count_queued(self, db: Cursor, now: int) -> Mapping[Route, int]:
        return {Route(queue, kind): count for queue, kind, count in db.execute(COUNT_QUEUED).fetchall()}


def _round_robin(tasks: Iterable[Task]) -> list[Task]:
    """The oldest task of every user, by user id, then the second of every user, and so on."""
    ranks: dict[int, int] = {}
    ranked: list[tuple[int, int, Task]] = []
    for task in sorted(tasks, key=lambda t: (t.run_at, t.id)):
        rank = ranks[task.user_id] = ranks.get(task.user_id, -1) + 1
        ranked.append((rank, task.user_id, task))
    ranked.sort(key=lambda r: r[:2])
    return [task for _, _, task in ranked]
