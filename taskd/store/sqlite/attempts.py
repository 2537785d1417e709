"""Attempts in SQLite: how a worker claims, keeps, ends and releases a task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from sqlite3 import Cursor

from taskd.model.states import State
from taskd.model.tasks import FailedAttempt, Task
from taskd.ports.attempts import Claim, Finished, Outcome
from taskd.store.limits import FAILED_ATTEMPTS_LISTED
from taskd.store.sqlite.database import SqliteDatabase, transaction
from taskd.store.sqlite.rows import ALL, FOREVER, TO_WAITING, from_micros, to_task, to_tasks
from taskd.store.text import sanitize

# A redelivered message takes a task over from a worker that lost its channel. The last attempt is not taken over: its
# lease decides. A failed attempt leaves an error, an attempt that was lost with its worker does not: only after a lost
# attempt must the last attempt run alone.
CLAIM = f"""
UPDATE tasks SET state = 'running', attempt = attempt + 1, version = version + 1, worker = ?, lease_until = ?,
    started_at = ?, progress = NULL, note = NULL, error = NULL,
    max_attempts = CASE max_attempts WHEN 0 THEN ? ELSE max_attempts END
WHERE id = ? AND dispatch = ?
    AND (state = 'queued' OR ? AND state = 'running' AND worker <> ? AND attempt < max_attempts)
    AND (? OR attempt = 0 OR error IS NOT NULL OR attempt + 1 <> max_attempts)
RETURNING {ALL}
"""
# Runs before the attempt is taken over.
RECORD_TAKEN_OVER = """
INSERT INTO task_attempts (task_id, dispatch, attempt, worker, started_at, ended_at, error)
SELECT id, dispatch, attempt, worker, started_at, ?,
    'attempt ' || attempt || ' of ' || max_attempts || ' was lost: its worker ended or was cut off'
FROM tasks WHERE id = ? AND dispatch = ? AND state = 'running' AND worker <> ? AND attempt < max_attempts
    AND (? OR attempt + 1 <> max_attempts)
ON CONFLICT DO NOTHING
"""
HELD = f"SELECT {ALL} FROM tasks WHERE id = ? AND dispatch = ? AND worker = ? AND state = 'running'"
FINISH = """
UPDATE tasks SET state = ?, version = version + 1, finished_at = ?, result = ?, error = ?, lease_until = NULL
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
UPDATE tasks SET state = 'waiting', run_at = ?, due = ?, error = ?, {TO_WAITING}
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
UPDATE tasks SET state = 'waiting', attempt = attempt - 1, {TO_WAITING}
WHERE id = ? AND dispatch = ? AND worker = ? AND state = 'running' RETURNING {ALL}
"""
RELEASED = f"SELECT {ALL} FROM tasks WHERE id = ? AND dispatch = ? AND worker = ? AND state = 'waiting'"
RENEW = """
UPDATE tasks SET lease_until = ?
WHERE worker = ? AND state = 'running' AND id IN (SELECT value FROM json_each(?)) RETURNING id
"""

EXPIRED_LEASES = """
SELECT id FROM tasks INDEXED BY tasks_in_flight
WHERE dispatched_at IS NOT NULL AND finished_at IS NULL AND state = 'running' AND lease_until <= ? LIMIT ?
"""
_EXPIRED = "'lease expired on attempt ' || attempt || ' of ' || max_attempts || ': the worker stopped answering'"
RECORD_LOST = f"""
INSERT INTO task_attempts (task_id, dispatch, attempt, worker, started_at, ended_at, error)
SELECT id, dispatch, attempt, worker, started_at, :now, {_EXPIRED} FROM tasks
WHERE id IN (SELECT value FROM json_each(:ids))
ON CONFLICT DO NOTHING
"""
EXPIRE = f"""
UPDATE tasks SET
    state = CASE WHEN attempt < max_attempts THEN 'waiting' ELSE 'failed' END,
    dispatched_at = CASE WHEN attempt >= max_attempts THEN dispatched_at END,
    started_at = CASE WHEN attempt >= max_attempts THEN started_at END,
    finished_at = CASE WHEN attempt >= max_attempts THEN :now END,
    progress = CASE WHEN attempt >= max_attempts THEN progress END,
    note = CASE WHEN attempt >= max_attempts THEN note END,
    error = CASE WHEN attempt >= max_attempts THEN {_EXPIRED} END, lease_until = NULL, version = version + 1
WHERE id IN (SELECT value FROM json_each(:ids))
RETURNING {ALL}
"""
RESET_QUEUED = f"""
UPDATE tasks INDEXED BY tasks_in_flight SET state = 'waiting', {TO_WAITING}
WHERE dispatched_at IS NOT NULL AND finished_at IS NULL AND state = 'queued' RETURNING id
"""

FAILED_ATTEMPTS = """
SELECT dispatch, attempt, worker, started_at, ended_at, error, trace FROM task_attempts
WHERE task_id = ? ORDER BY dispatch DESC, attempt DESC LIMIT ?
"""

_Key = tuple[int, int, int, str]
"""Task id, dispatch, attempt and worker of an outcome."""


class SqliteAttempts(SqliteDatabase):
    """IAttemptStore on SQLite."""

    @transaction
    def claim(self, db: Cursor, now: int, worker: str, lease: float, claims: Sequence[Claim]) -> Sequence[Task]:
        until = now + round(lease * 1_000_000)
        held: dict[int, Task] = {}
        for c in claims:
            if c.redelivered:
                db.execute(RECORD_TAKEN_OVER, (now, c.task_id, c.dispatch, worker, c.alone))
            values = worker, until, now, c.max_attempts, c.task_id, c.dispatch, c.redelivered, worker, c.alone
            row = db.execute(CLAIM, values).fetchone() or db.execute(HELD, (c.task_id, c.dispatch, worker)).fetchone()
            if row:
                held[row[0]] = to_task(row)
        return list(held.values())

    @transaction
    def finish(
        self, db: Cursor, now: int, worker: str, outcomes: Sequence[Outcome], again: bool = False
    ) -> Mapping[int, Finished]:
        finished_at = from_micros(now)
        done: dict[int, Finished] = {}
        for o in outcomes:
            key = o.task_id, o.dispatch, o.attempt, worker
            error = ""
            if o.state is not State.COMPLETED:
                error = sanitize(o.error)
                db.execute(RECORD_FAILED, (now, error, sanitize(o.trace) or None, *key))
            if o.state is State.WAITING:
                finished = _retry_later(db, now, key, o.delay, error, again)
            elif row := db.execute(FINISH, (o.state.value, now, o.result or None, error or None, *key)).fetchone():
                finished = Finished(row[0], finished_at)
            elif again and (row := db.execute(FIND_RECORDED_END, (*key, o.state.value)).fetchone()):
                finished = Finished(row[0], from_micros(row[1]))
            else:
                finished = None
            if finished:
                done[o.task_id] = finished
        return done

    @transaction
    def release(self, db: Cursor, now: int, worker: str, held: Sequence[Claim]) -> Sequence[Task]:
        released: dict[int, Task] = {}
        for c in held:
            key = (c.task_id, c.dispatch, worker)
            row = db.execute(RELEASE, key).fetchone() or db.execute(RELEASED, key).fetchone()
            if row:
                released[row[0]] = to_task(row)
        return list(released.values())

    @transaction
    def renew(self, db: Cursor, now: int, worker: str, lease: float, task_ids: Sequence[int]) -> frozenset[int]:
        args = now + round(lease * 1_000_000), worker, json.dumps(list(task_ids))
        return frozenset(task_id for (task_id,) in db.execute(RENEW, args).fetchall())

    @transaction
    def expire_leases(self, db: Cursor, now: int, limit: int) -> Sequence[Task]:
        return _expire(db, now, now, limit)

    @transaction
    def reset_in_flight(self, db: Cursor, now: int) -> int:
        expired = _expire(db, now, FOREVER, -1)
        queued = db.execute(RESET_QUEUED).fetchall()
        db.execute("DELETE FROM outbox")
        return len(expired) + len(queued)

    @transaction
    def failed_attempts(self, db: Cursor, now: int, task_id: int) -> Sequence[FailedAttempt]:
        rows = db.execute(FAILED_ATTEMPTS, (task_id, FAILED_ATTEMPTS_LISTED)).fetchall()
        return [
            FailedAttempt(dispatch, attempt, worker, start and from_micros(start), from_micros(end), error, trace)
            for dispatch, attempt, worker, start, end, error, trace in reversed(rows)
        ]


def _retry_later(db: Cursor, now: int, key: _Key, delay: float, error: str, again: bool) -> Finished | None:
    run_at = now + max(0, round(delay * 1_000_000))
    row = db.execute(RETRY_LATER, (run_at, delay <= 0, error or None, *key)).fetchone()
    if row is None and again:
        row = db.execute(FIND_RECORDED_RETRY, (*key, error)).fetchone()
    return Finished(row[0], None, from_micros(row[1])) if row else None


def _expire(db: Cursor, now: int, until: int, limit: int) -> list[Task]:
    expired = json.dumps([task_id for (task_id,) in db.execute(EXPIRED_LEASES, (until, limit)).fetchall()])
    db.execute(RECORD_LOST, {"now": now, "ids": expired})
    return to_tasks(db.execute(EXPIRE, {"now": now, "ids": expired}))
