"""Tasks in SQLite, as their owners create, read, cancel and retry them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from sqlite3 import Cursor

from taskd.model.tasks import NewTask, Task
from taskd.ports.tasks import Created, Keyed, TaskState
from taskd.store.refusals import check_cancelled, check_retryable, found_task, key_taken, nul_refused, valid_ids
from taskd.store.rows import ALL, NOT_BEGUN, STATES, created_task
from taskd.store.sqlite.database import transaction
from taskd.store.sqlite.listing import SqliteListing
from taskd.store.sqlite.rows import LISTED, TASKS_BY_ID, from_micros, to_micros, to_task, to_tasks

# The last id that was drawn is kept here, also when the table is empty: an id is never used again.
FIRST_DRAW = """
INSERT INTO sqlite_sequence SELECT 'tasks', 0
WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'tasks')
"""
DRAW_IDS = "UPDATE sqlite_sequence SET seq = seq + ? WHERE name = 'tasks' RETURNING seq"
SERVING = "SELECT name FROM workers WHERE state = 'serving' AND name IN (SELECT value FROM json_each(?))"
CREATE_TASK = """
INSERT INTO tasks (id, user_id, task, kind, queue, payload, max_attempts, state, dispatch, attempt, worker, held,
    created_at, run_at, due, timeout, key, fingerprint)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING
"""
FIND_KEY = "SELECT id, fingerprint FROM tasks WHERE user_id = ? AND key = ?"
CANCEL = f"""
UPDATE tasks SET state = 'cancelled', version = version + 1, finished_at = ?
WHERE id = ? AND state IN ('waiting', 'queued', 'running') RETURNING {ALL}
"""
RETRY = f"""
UPDATE tasks SET state = 'waiting', version = version + 1, attempt = 0, run_at = ?, due = 1, finished_at = NULL,
    worker = CASE WHEN held THEN worker END, result = NULL, error = NULL, losses = 0, returns = 0, {NOT_BEGUN}
WHERE id = ? AND state IN ('failed', 'cancelled') RETURNING {ALL}
"""
_OF_USER = "FROM tasks WHERE +user_id = ? AND id IN (SELECT value FROM json_each(?))"
TASKS_OF_USER = f"SELECT {ALL} {_OF_USER}"
LISTED_OF_USER = f"SELECT {LISTED} {_OF_USER}"
LISTED_BY_ID = f"SELECT {LISTED} FROM tasks WHERE id IN (SELECT value FROM json_each(?))"
STATES_BY_ID = "SELECT id, user_id, state, version FROM tasks WHERE id IN (SELECT value FROM json_each(?))"

# Tasks have no index by the time of their end, which would cost every task: so this walks the primary key.
OLDEST_TASKS = "SELECT id, created_at, finished_at FROM tasks WHERE id > ? ORDER BY id LIMIT ?"
# What they take up is subtracted in the same transaction, from the row of all hours long past.
SUBTRACT = """
INSERT INTO user_usage (user_id, hour, tasks, bytes)
SELECT user_id, 0, 0, -sum(length(CAST(task AS BLOB)) + length(CAST(payload AS BLOB))
    + coalesce(length(CAST(result AS BLOB)), 0)
    + (SELECT coalesce(sum(bytes), 0) FROM task_log WHERE task_id = tasks.id))
FROM tasks WHERE id IN (SELECT value FROM json_each(?)) GROUP BY user_id
ON CONFLICT (user_id, hour) DO UPDATE SET bytes = bytes + excluded.bytes
"""
DELETE_TASKS = (
    SUBTRACT,
    "DELETE FROM tasks WHERE id IN (SELECT value FROM json_each(?))",
    "DELETE FROM task_log WHERE task_id IN (SELECT value FROM json_each(?))",
    "DELETE FROM task_attempts WHERE task_id IN (SELECT value FROM json_each(?))",
)


class SqliteTasks(SqliteListing):
    """ITaskStore on SQLite."""

    @transaction
    def draw_ids(self, db: Cursor, now: int, count: int) -> Sequence[int]:
        return _draw_ids(db, count)

    @transaction
    def create_tasks(self, db: Cursor, now: int, tasks: Sequence[NewTask], spare: int = 0) -> Created:
        db.execute("BEGIN IMMEDIATE")
        at = from_micros(now)
        serving = {name for (name,) in db.execute(SERVING, (json.dumps(list({t.worker for t in tasks} - {None})),))}
        created = [created_task(new, at, new.worker in serving) for new in tasks]
        try:
            inserted = db.executemany(CREATE_TASK, map(_new_row, tasks, created)).rowcount
        except sqlite3.IntegrityError as e:
            if "tasks.key" in str(e):
                raise key_taken() from None
            raise
        if inserted < len(created):
            # an earlier run has created them
            found = {task.id: task for task in to_tasks(db.execute(TASKS_BY_ID, (json.dumps([t.id for t in tasks]),)))}
            created = [found[new.id] for new in tasks]
        return Created(created, _draw_ids(db, spare))

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
        return to_tasks(db.execute(TASKS_OF_USER, (user_id, json.dumps(valid_ids(ids)))))

    @transaction
    def get_listed(self, db: Cursor, now: int, user_id: int, ids: Sequence[int]) -> Sequence[Task]:
        return _tasks_of_user(db, user_id, ids)

    @transaction
    def find_tasks(self, db: Cursor, now: int, ids: Sequence[int]) -> Sequence[Task]:
        return to_tasks(db.execute(LISTED_BY_ID, (json.dumps(ids),)))

    @transaction
    def find_states(self, db: Cursor, now: int, ids: Sequence[int]) -> Sequence[TaskState]:
        rows = db.execute(STATES_BY_ID, (json.dumps(valid_ids(ids)),))
        return [TaskState(task_id, user, STATES[state], version) for task_id, user, state, version in rows]

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
    return to_tasks(db.execute(LISTED_OF_USER, (user_id, json.dumps(valid_ids(ids)))))


def _draw_ids(db: Cursor, count: int) -> Sequence[int]:
    if count <= 0:
        return ()
    db.execute(FIRST_DRAW)
    [(last,)] = db.execute(DRAW_IDS, (count,)).fetchall()
    return range(last - count + 1, last + 1)


def _new_row(new: NewTask, task: Task) -> tuple[object, ...]:
    """The parameters of CREATE_TASK."""
    if "\0" in new.task:
        raise nul_refused()
    held = task.worker is not None
    return (
        task.id,
        task.user_id,
        task.task,
        task.kind,
        task.queue,
        task.payload,
        task.max_attempts,
        task.state.value,
        task.dispatch,
        task.attempt,
        task.worker,
        held,
        to_micros(task.created_at),
        to_micros(task.run_at),
        # an assigned task is due by the clock of its server
        held or task.run_at == task.created_at,
        task.timeout,
        new.key,
        new.fingerprint,
    )
