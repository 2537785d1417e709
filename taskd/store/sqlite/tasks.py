"""Tasks in SQLite, as their owners create, read, cancel and retry them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from sqlite3 import Cursor

from taskd.model.states import State
from taskd.model.tasks import NewTask, Task
from taskd.ports.tasks import Keyed
from taskd.store.limits import valid_ids
from taskd.store.refusals import RETRYABLE, key_taken, no_such_task, not_cancellable, not_retryable
from taskd.store.sqlite.database import transaction
from taskd.store.sqlite.listing import SqliteListing
from taskd.store.sqlite.outbox import CREATE_BATCH, FIND_BATCH, TASKS_BY_ID, settle, tasks_in_order
from taskd.store.sqlite.rows import ALL, TO_WAITING, from_micros, to_micros, to_task, to_tasks
from taskd.store.text import nul_refused

# The last id that was given, not the greatest id in the table: an id is never used again.
LAST_TASK = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'tasks'"
CREATE_TASK = """
INSERT INTO tasks (id, user_id, task, kind, queue, payload, max_attempts, state, dispatch, created_at, run_at,
    due, dispatched_at, timeout, key, fingerprint)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
FIND_KEY = "SELECT id, fingerprint FROM tasks WHERE user_id = ? AND key = ?"
CANCEL = f"""
UPDATE tasks SET state = 'cancelled', version = version + 1, finished_at = ?, lease_until = NULL
WHERE id = ? AND state IN ('waiting', 'queued', 'running') RETURNING {ALL}
"""
RETRY = f"""
UPDATE tasks SET state = 'waiting', attempt = 0, run_at = ?, due = 1, finished_at = NULL, worker = NULL, result = NULL,
    error = NULL, {TO_WAITING}
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
            settle(db, settled)
        if known := db.execute(FIND_BATCH, (batch,)).fetchone():
            return tasks_in_order(db, known[0])
        first = 1 + db.execute(LAST_TASK).fetchone()[0]
        created_at = from_micros(now)
        created, values = [], []
        for task_id, t in enumerate(tasks, first):
            if "\0" in t.task:
                raise nul_refused()
            queued = t.state is State.QUEUED
            run_at, run_micros = created_at, now
            # a queued task is due by the clock of its server
            if t.run_at is not None and to_micros(t.run_at) > now:
                run_micros = to_micros(t.run_at)
                run_at = from_micros(run_micros)
            values.append(
                (
                    task_id,
                    t.user_id,
                    t.task,
                    t.kind,
                    t.queue,
                    t.payload,
                    t.max_attempts,
                    t.state.value,
                    int(queued),
                    now,
                    run_micros,
                    int(queued or run_micros == now),
                    now if queued else None,
                    t.timeout,
                    t.key,
                    t.fingerprint,
                )
            )
            created.append(
                Task(
                    task_id,
                    t.user_id,
                    t.task,
                    t.kind,
                    t.queue,
                    t.state,
                    created_at,
                    run_at,
                    t.payload,
                    0,
                    t.max_attempts,
                    int(queued),
                    timeout=t.timeout,
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
        task = _task_of_user(db, user_id, task_id)
        if row := db.execute(CANCEL, (now, task.id)).fetchone():
            return to_task(row)
        if task.state is not State.CANCELLED:
            raise not_cancellable(task)
        return task

    @transaction
    def retry(self, db: Cursor, now: int, user_id: int, task_id: int) -> Task:
        task = _task_of_user(db, user_id, task_id)
        if task.state not in RETRYABLE:
            raise not_retryable(task)
        return to_task(db.execute(RETRY, (now, task.id)).fetchone())

    @transaction
    def get_tasks(self, db: Cursor, now: int, user_id: int, ids: Sequence[int]) -> Sequence[Task]:
        return _tasks_of_user(db, user_id, ids)

    @transaction
    def find_tasks(self, db: Cursor, now: int, ids: Sequence[int]) -> Sequence[Task]:
        return to_tasks(db.execute(TASKS_BY_ID, (json.dumps(list(ids)),)))

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


def _task_of_user(db: Cursor, user_id: int, task_id: int) -> Task:
    for task in _tasks_of_user(db, user_id, [task_id]):
        return task
    raise no_such_task(task_id)


def _tasks_of_user(db: Cursor, user_id: int, ids: Sequence[int]) -> list[Task]:
    return to_tasks(db.execute(TASKS_OF_USER, (user_id, json.dumps(valid_ids(ids)))))
