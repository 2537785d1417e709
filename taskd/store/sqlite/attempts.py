"""Attempts in SQLite: how a worker claims, ends and releases a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from sqlite3 import Cursor

from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.ports.attempts import Claim, Finished, Held, Outcome
from taskd.store.refusals import nul_refused, sanitize
from taskd.store.rows import ALL, TO_WAITING
from taskd.store.sqlite.database import SqliteDatabase, transaction
from taskd.store.sqlite.rows import from_micros, to_task

ALIVE = "SELECT 1 FROM workers WHERE name = ? AND state IN ('serving', 'draining')"
CLAIM = f"""
UPDATE tasks SET state = 'running', attempt = attempt + 1, version = version + 1, worker = ?, started_at = ?,
    progress = NULL, note = NULL, error = NULL, begun = losses = 0,
    max_attempts = CASE max_attempts WHEN 0 THEN ? ELSE max_attempts END
WHERE id = ? AND dispatch = ? AND state = 'queued' RETURNING {ALL}
"""
BEGIN = """
UPDATE tasks SET begun = 1
WHERE id = ? AND dispatch = ? AND attempt = ? AND worker = ? AND state = 'running' RETURNING id
"""
HELD = f"SELECT {ALL} FROM tasks WHERE id = ? AND dispatch = ? AND worker = ? AND state = 'running'"
FINISH = """
UPDATE tasks SET state = ?, version = version + 1, finished_at = ?, result = ?, error = ?, losses = 0
WHERE id = ? AND dispatch = ? AND attempt = ? AND worker = ? AND state = 'running'
RETURNING version
"""
FIND_RECORDED_END = """
SELECT version, finished_at FROM tasks
WHERE id = ? AND dispatch = ? AND attempt = ? AND worker = ? AND state = ?
"""
# Runs before the task changes, because the record describes the attempt as it was.
RECORD_FAILED = """
INSERT INTO task_attempts (task_id, dispatch, attempt, worker, started_at, ended_at, error, trace)
SELECT id, dispatch, attempt, worker, started_at, ?, ?, ? FROM tasks
WHERE id = ? AND dispatch = ? AND attempt = ? AND worker = ? AND state = 'running'
ON CONFLICT DO NOTHING
"""
RETRY_LATER = f"""
UPDATE tasks SET state = 'waiting', run_at = ?, due = ?, error = ?, losses = 0, {TO_WAITING}
WHERE id = ? AND dispatch = ? AND attempt = ? AND worker = ? AND state = 'running'
RETURNING version, run_at
"""
# A task that was to be retried may have moved on since then; its record in task_attempts shows that this attempt did
# fail. Version 0 tells the caller not to announce the task.
FIND_RECORDED_RETRY = """
SELECT CASE WHEN t.state = 'waiting' AND t.dispatch = a.dispatch THEN t.version ELSE 0 END, t.run_at
FROM task_attempts a JOIN tasks t ON t.id = a.task_id
WHERE a.task_id = ? AND a.dispatch = ? AND a.attempt = ? AND a.worker = ? AND a.error = ?
"""

RELEASE = f"""
UPDATE tasks SET state = 'waiting', attempt = attempt - 1, returns = returns + ?, {TO_WAITING}
WHERE id = ? AND dispatch = ? AND attempt = ? AND worker = ? AND state = 'running' RETURNING {ALL}
"""
RELEASED = f"""
SELECT {ALL} FROM tasks WHERE id = ? AND dispatch = ? AND attempt + 1 = ? AND worker = ? AND state = 'waiting'
"""
HELD_BY = """
SELECT id, dispatch, attempt FROM tasks INDEXED BY tasks_in_flight
WHERE dispatched_at IS NOT NULL AND finished_at IS NULL AND state = 'running' AND worker = ?
"""


class SqliteAttempts(SqliteDatabase):
    """What workers do of IAttemptStore, on SQLite."""

    @transaction
    def claim(self, db: Cursor, now: int, worker: str, claims: Sequence[Claim]) -> Sequence[Task]:
        if db.execute(ALIVE, (worker,)).fetchone() is None:
            return []
        held: dict[int, Task] = {}
        for c in claims:
            row = db.execute(CLAIM, (worker, now, c.max_attempts, c.task_id, c.dispatch)).fetchone()
            if row := row or db.execute(HELD, (c.task_id, c.dispatch, worker)).fetchone():
                held[row[0]] = to_task(row)
        return list(held.values())

    @transaction
    def begin(self, db: Cursor, now: int, worker: str, held: Sequence[Held]) -> Sequence[Held]:
        return [each for each in held if db.execute(BEGIN, (*each, worker)).fetchone()]

    @transaction
    def finish(
        self, db: Cursor, now: int, worker: str, outcomes: Sequence[Outcome], again: bool = False
    ) -> Mapping[int, Finished]:
        finished_at = from_micros(now)
        done: dict[int, Finished] = {}
        for o in outcomes:
            key = o.task_id, o.dispatch, o.attempt, worker
            error, result = "", o.result or None
            if result is not None and "\0" in result:
                raise nul_refused()
            if o.state is not State.COMPLETED:
                error = sanitize(o.error)
                db.execute(RECORD_FAILED, (now, error, sanitize(o.trace) or None, *key))
            if o.state is State.WAITING:
                run_at = now + max(0, round(o.delay * 1_000_000))
                row = db.execute(RETRY_LATER, (run_at, o.delay <= 0, error or None, *key)).fetchone()
                if row is None and again:
                    row = db.execute(FIND_RECORDED_RETRY, (*key, error)).fetchone()
                if row:
                    done[o.task_id] = Finished(row[0], None, from_micros(row[1]))
            elif row := db.execute(FINISH, (o.state.value, now, result, error or None, *key)).fetchone():
                done[o.task_id] = Finished(row[0], finished_at)
            elif again and (row := db.execute(FIND_RECORDED_END, (*key, o.state.value)).fetchone()):
                done[o.task_id] = Finished(row[0], from_micros(row[1]))
        return done

    @transaction
    def release(
        self, db: Cursor, now: int, worker: str, held: Sequence[Held], stopping: bool = False
    ) -> Sequence[Task]:
        released: dict[int, Task] = {}
        for each in held:
            key = (*each, worker)
            row = db.execute(RELEASE, (stopping, *key)).fetchone() or db.execute(RELEASED, key).fetchone()
            if row:
                released[row[0]] = to_task(row)
        return list(released.values())

    @transaction
    def held_by(self, db: Cursor, now: int, worker: str) -> Sequence[Held]:
        return [Held(*row) for row in db.execute(HELD_BY, (worker,))]
