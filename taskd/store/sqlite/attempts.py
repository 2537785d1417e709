"""Attempts in SQLite: how a worker finds, begins, ends and gives back what is assigned to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from sqlite3 import Cursor

from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.ports.attempts import Assigned, Begun, Claim, Finished, Held, Outcome, Standing, Started
from taskd.store.refusals import nul_refused, sanitize
from taskd.store.rows import LOOKED_BYTES, LOOKED_TASKS, NOT_BEGUN, TO_WAITING, columns
from taskd.store.sqlite.database import SqliteDatabase, transaction
from taskd.store.sqlite.rows import LISTED, from_micros, micros_of, to_micros, to_task

LOOK = """
SELECT id FROM tasks INDEXED BY tasks_held
WHERE held AND worker = ? AND state = 'queued' AND id NOT IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT ?
"""
ASSIGNED = f"SELECT username, weight, {columns('t')} FROM tasks t JOIN users u ON u.id = t.user_id WHERE t.id = ?"
STANDING = """
SELECT id, dispatch, state IN ('queued', 'running') FROM tasks INDEXED BY tasks_held WHERE held AND worker = ?
"""
# What a worker may still end or give back.
OPEN = "id = ? AND dispatch = ? AND worker = ? AND held AND state IN ('queued', 'running')"

ASSERT = f"""
UPDATE tasks SET state = 'queued', worker = ?, held = true, due = true, dispatch = ?, attempt = ?, max_attempts = ?,
    version = max(version, ?) + 1, {NOT_BEGUN}
WHERE id = ? AND created_at = ? AND dispatch < ? AND state IN ('waiting', 'queued', 'running')
"""
ASSERTED = "SELECT 1 FROM tasks WHERE id = ? AND created_at = ? AND dispatch = ? AND worker = ? AND held"
ALIVE = "SELECT 1 FROM workers WHERE name = ? AND state IN ('serving', 'draining')"

BEGIN = """
UPDATE tasks SET state = 'running', version = version + 1, started_at = ?
WHERE id = ? AND dispatch = ? AND worker = ? AND held AND state = 'queued' RETURNING version, started_at
"""
RUNNING = """
SELECT version, started_at FROM tasks WHERE id = ? AND dispatch = ? AND worker = ? AND held AND state = 'running'
"""
# Whether the begin was stored makes no difference to the version.
_ENDED = "version = version + CASE state WHEN 'queued' THEN 2 ELSE 1 END, held = false, losses = 0"

FINISH = f"""
UPDATE tasks SET state = ?, finished_at = ?, result = ?, error = ?, started_at = coalesce(started_at, ?), {_ENDED}
WHERE {OPEN} AND attempt = ? RETURNING version, started_at, finished_at
"""
FIND_RECORDED_END = """
SELECT version, started_at, finished_at FROM tasks
WHERE id = ? AND dispatch = ? AND worker = ? AND attempt = ? AND state = ?
"""
# Runs before the task changes, because the record describes the attempt as it was.
RECORD_FAILED = f"""
INSERT INTO task_attempts (task_id, dispatch, attempt, worker, started_at, ended_at, error, trace)
SELECT id, dispatch, attempt, worker, coalesce(started_at, ?), ?, ?, ? FROM tasks WHERE {OPEN} AND attempt = ?
ON CONFLICT DO NOTHING
"""
RETRY_LATER = f"""
UPDATE tasks SET state = 'waiting', run_at = ?, due = ?, error = ?, {NOT_BEGUN}, {_ENDED}
WHERE {OPEN} AND attempt = ? RETURNING version, run_at
"""
# A task that was to be retried may have moved on since then; its record in task_attempts shows that this attempt did
# fail. Version 0 tells the caller not to announce the task.
FIND_RECORDED_RETRY = """
SELECT CASE WHEN t.state = 'waiting' AND t.dispatch = a.dispatch THEN t.version ELSE 0 END, t.run_at
FROM task_attempts a JOIN tasks t ON t.id = a.task_id
WHERE a.task_id = ? AND a.dispatch = ? AND a.worker = ? AND a.attempt = ? AND a.error = ?
"""
RELEASE = f"""
UPDATE tasks SET state = 'waiting', attempt = attempt - 1, returns = returns + (? AND state = 'running'),
    worker = NULL, {TO_WAITING}
WHERE {OPEN} RETURNING {LISTED}
"""
# It was cancelled, and perhaps retried since.
DROP = f"UPDATE tasks SET held = false WHERE id = ? AND dispatch = ? AND worker = ? AND held RETURNING {LISTED}"


class SqliteAttempts(SqliteDatabase):
    """What workers do of IAttemptStore, on SQLite."""

    @transaction
    def look(self, db: Cursor, now: int, worker: str, known: Sequence[int]) -> Sequence[Assigned]:
        ids = db.execute(LOOK, (worker, json.dumps(list(known)), LOOKED_TASKS)).fetchall()
        found: list[Assigned] = []
        size = 0
        for key in ids:
            user, weight, *row = db.execute(ASSIGNED, key).fetchone()
            task = to_task(row)
            size += len(task.payload)
            if found and size > LOOKED_BYTES:
                break
            found.append(Assigned(task, user, weight))
        return found

    @transaction
    def standing(self, db: Cursor, now: int, worker: str) -> Sequence[Standing]:
        rows = db.execute(STANDING, (worker,))
        return [Standing(task_id, dispatch, bool(wanted)) for task_id, dispatch, wanted in rows]

    @transaction
    def assert_held(self, db: Cursor, now: int, worker: str, claims: Sequence[Claim]) -> Sequence[int]:
        if db.execute(ALIVE, (worker,)).fetchone() is None:
            return []
        for c in claims:
            numbers = c.dispatch, c.attempt, c.max_attempts, c.version
            db.execute(ASSERT, (worker, *numbers, c.task_id, to_micros(c.created_at), c.dispatch))
        keys = [(c.task_id, to_micros(c.created_at), c.dispatch, worker) for c in claims]
        return [key[0] for key in keys if db.execute(ASSERTED, key).fetchone()]

    @transaction
    def begin(self, db: Cursor, now: int, worker: str, begun: Sequence[Begun], flush: bool) -> Mapping[int, Started]:
        # every commit waits for the disk here
        started = {}
        for b in begun:
            key = b.task_id, b.dispatch, worker
            row = db.execute(BEGIN, (now - micros_of(b.age), *key)).fetchone() or db.execute(RUNNING, key).fetchone()
            if row:
                started[b.task_id] = Started(row[0], from_micros(row[1]))
        return started

    @transaction
    def finish(
        self, db: Cursor, now: int, worker: str, outcomes: Sequence[Outcome], again: bool = False
    ) -> Mapping[int, Finished]:
        done: dict[int, Finished] = {}
        for o in outcomes:
            key = o.task_id, o.dispatch, worker, o.attempt
            began = now - micros_of(o.age)
            error, result = "", o.result or None
            if result is not None and "\0" in result:
                raise nul_refused()
            if o.state is not State.COMPLETED:
                error = sanitize(o.error)
                db.execute(RECORD_FAILED, (began, now, error, sanitize(o.trace) or None, *key))
            if o.state is State.WAITING:
                run_at = now + micros_of(o.delay)
                row = db.execute(RETRY_LATER, (run_at, o.delay <= 0, error or None, *key)).fetchone()
                if row is None and again:
                    row = db.execute(FIND_RECORDED_RETRY, (*key, error)).fetchone()
                if row:
                    done[o.task_id] = Finished(row[0], None, None, from_micros(row[1]))
            else:
                row = db.execute(FINISH, (o.state.value, now, result, error or None, began, *key)).fetchone()
                if row is None and again:
                    row = db.execute(FIND_RECORDED_END, (*key, o.state.value)).fetchone()
                if row:
                    done[o.task_id] = Finished(row[0], from_micros(row[1]), from_micros(row[2]))
        return done

    @transaction
    def release(
        self, db: Cursor, now: int, worker: str, held: Sequence[Held], stopping: bool = False
    ) -> Sequence[Task]:
        return _release(db, worker, held, stopping)


def release_all(db: Cursor, worker: str) -> None:
    """Give back everything that a worker holds that has stopped."""
    held = [Held(task_id, dispatch) for task_id, dispatch, _ in db.execute(STANDING, (worker,)).fetchall()]
    _release(db, worker, held, stopping=True)


def _release(db: Cursor, worker: str, held: Sequence[Held], stopping: bool) -> list[Task]:
    waiting = []
    for each in held:
        key = (*each, worker)
        row = db.execute(RELEASE, (stopping, *key)).fetchone() or db.execute(DROP, key).fetchone()
        if row and (task := to_task(row)).state is State.WAITING:
            waiting.append(task)
    return waiting
