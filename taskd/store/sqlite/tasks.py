"""Tasks in SQLite, as their owners create, read, cancel and retry them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from sqlite3 import Cursor

from taskd.model.tasks import NewTask, Task
from taskd.ports.tasks import Keyed
from taskd.store.refusals import check_cancelled, check_retryable, found_task, key_taken, nul_refused, valid_ids
from taskd.store.rows import ALL, TO_WAITING, created_task
from taskd.store.sqlite.database import transaction
from taskd.store.sqlite.listing import SqliteListing
from taskd.store.sqlite.rows import (
    CREATE_BATCH,
    DELETE_SETTLED,
    FIND_BATCH,
    FOREVER,
    KEEP_SETTLED,
    TASKS_BY_ID,
    from_micros,
    tasks_in_order,
    to_micros,
    to_task,
    to_tasks,
)

# The last id that was given, not the greatest id in the table: an id is never used again.
LAST_TASK = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'tasks'"
CREATE_TASK = """
INSERT INTO tasks (id, user_id, task, kind, queue, payload, max_attempts, state, dispatch, created_at, run_at,
    due, dispatched_at, timeout, key, fingerprint)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
FIND_KEY = "SELECT id, fingerprint FROM tasks WHERE user_id = ? AND key = ?"
CANCEL = f"""
UPDATE tasks SET state = 'cancelled', version = version + 1, finished_at = ?
WHERE id = ? AND state IN ('waiting', 'queued', 'running') RETURNING {ALL}
"""
RETRY = f"""
UPDATE tasks SET state = 'waiting', attempt = 0, run_at = ?, due = 1, finished_at = NULL, worker = NULL, result = NULL,
    error = NULL, losses = 0, returns = 0, {TO_WAITING}
WHERE id = ? AND state IN ('failed', 'cancelled') RETURNING {ALL}
"""
TASKS_OF_USER = f"SELECT {ALL} FROM tasks WHERE +user_id = ? AND id IN (SELECT value FROM json_each(?))"

# Tasks have no index by the time of their end, which would cost every task: so this walks the primary key.
OLDEST_TASKS = "SELECT id, created_at, finished_at FROM tasks WHERE id > ? ORDER BY id LIMIT ?"
DELETE_TASKS = (
    "DELETE FROM tasks WHERE id IN (SELECT value FROM json_each(?))",
    "DELETE FROM task_log WHERE task_id IN (SELECT value FROM json_each(?))",
    "DELETE FROM task_attempts WHERE task_id IN (SELECT value FROM json_each(?))",
)


class SqliteTasks(SqliteListing):
    """ITaskStore on SQLite."""

    @transaction
    def create_tasks(
        self, db: Cursor, now: int, batch: str, tasks: Sequence[NewTask], settled: Sequence[str] = ()
    ) -> Sequence[Task]:
        db.execute("BEGIN IMMEDIATE")
        if settled:
            ids = json.dumps(settled)
            db.execute(DELETE_SETTLED, (ids,))
            db.execute(KEEP_SETTLED, (FOREVER, ids))
        if known := db.execute(FIND_BATCH, (batch,)).fetchone():
            return tasks_in_order(db, known[0])
        first = 1 + db.execute(LAST_TASK).fetchone()[0]
        at = from_micros(now)
        created, values = [], []
        for task_id, new in enumerate(tasks, first):
            if "\0" in new.task:
                raise nul_refused()
            task = created_task(task_id, new, at)
            # a queued task is due by the clock of its server
            run_at = now if task.run_at is at else to_micros(task.run_at)
            created.append(task)
            values.append(
                (
                    task_id,
                    task.user_id,
                    task.task,
                    task.kind,
                    task.queue,
                    task.payload,
                    task.max_attempts,
                    task.state.value,
                    task.dispatch,
                    now,
                    run_at,
                    task.dispatch or run_at == now,
                    now if task.dispatch else None,
                    task.timeout,
                    new.key,
                    new.fingerprint,
                )
            )
        try:
            db.executemany(CREATE_TASK, values)
        except sqlite3.IntegrityError as e:
            if "tasks.key" in str(e):
                raise key_taken() from None
            raise
        db.execute(CREATE_BATCH, (batch, json.dumps([task.id for task in created]), now))
        return created

    @transaction
    def find_keys(self, db: Cursor, now: int, keys: Sequence[tuple[int, str]]) -> Mapping[tuple[int, str], Keyed]:
        rows = ((key, db.execute(FIND_KEY, key).fetchone()) for key in keys)
        return {key: Keyed(*row) for key, row in rows if row is not None}

    @transaction
    def cancel(self, db: Cursor, now: int, user_id: int, task_id: int) -> Task:
        task = found_task(_tasks_of_user(db, user_id, [task_id]), task_id)
        row = db.execute(CANCEL, (now, task_id)).fetchone()
        return to_task(row) if row else check_cancelled(task)

    @transaction
    def retry(self, db: Cursor, now: int, user_id: int, task_id: int) -> Task:
        check_retryable(found_task(_tasks_of_user(db, user_id, [task_id]), task_id))
        return to_task(db.execute(RETRY, (now, task_id)).fetchone())

    @transaction
    def get_tasks(self, db: Cursor, now: int, user_id: int, ids: Sequence[int]) -> Sequence[Task]:
        return _tasks_of_user(db, user_id, ids)

    @transaction
    def find_tasks(self, db: Cursor, now: int, ids: Sequence[int]) -> Sequence[Task]:
        return to_tasks(db.execute(TASKS_BY_ID, (json.dumps(ids),)))

    @transaction
    def delete_finished(
        self, db: Cursor, now: int, seconds: float, after_id: int, limit: int
    ) -> tuple[int, int | None]:
        before = now - round(seconds * 1_000_000)
        seen = db.execute(OLDEST_TASKS, (after_id, limit)).fetchall()
        ended = [task_id for task_id, _, finished in seen if finished is not None and finished < before]
        for statement in DELETE_TASKS:
            db.execute(statement, (json.dumps(ended),))
        more = len(seen) == limit and all(created < before for _, created, _ in seen)
        return len(ended), seen[-1][0] if more else None


def _tasks_of_user(db: Cursor, user_id: int, ids: Sequence[int]) -> list[Task]:
    return to_tasks(db.execute(TASKS_OF_USER, (user_id, json.dumps(valid_ids(ids)))))
