"""What SQLite does with the tasks of dead workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from sqlite3 import Cursor
from typing import NamedTuple

import msgspec

from taskd.model.tasks import FailedAttempt, Task
from taskd.ports.handler import IN_PROCESS
from taskd.ports.workers import Culprit, WorkerState
from taskd.store.rows import ALL, FAILED_ATTEMPTS_LISTED, TO_WAITING, UNSPENT_LOSSES, decode_worker
from taskd.store.sqlite.database import SqliteDatabase, transaction
from taskd.store.sqlite.rows import from_micros, to_task

FENCE = "UPDATE workers SET state = 'fenced' WHERE name = ? AND beat = ? AND state IN ('serving', 'draining')"
RUNNING = """
SELECT id, kind, worker, dispatch, attempt, max_attempts, losses, begun FROM tasks INDEXED BY tasks_in_flight
WHERE dispatched_at IS NOT NULL AND finished_at IS NULL AND state = 'running' ORDER BY id
"""
WORKERS = "SELECT name, queues, kinds, slots, state, culprit FROM workers"
# Runs before the task changes, because the record describes the attempt as it was.
RECORD_LOST = """
INSERT INTO task_attempts (task_id, dispatch, attempt, worker, started_at, ended_at, error)
SELECT id, dispatch, attempt, worker, started_at, ?, ? FROM tasks WHERE id = ? ON CONFLICT DO NOTHING
"""
FAIL_LOST = f"""
UPDATE tasks SET state = 'failed', finished_at = ?, error = ?, losses = losses + ?, worker = NULL, version = version + 1
WHERE id = ? RETURNING {ALL}
"""
TAKE_BACK = f"""
UPDATE tasks SET state = 'waiting', attempt = attempt - ?, losses = losses + ?, error = ?, worker = NULL, {TO_WAITING}
WHERE id = ? RETURNING {ALL}
"""
RESET_QUEUED = f"""
UPDATE tasks INDEXED BY tasks_in_flight SET state = 'waiting', {TO_WAITING}
WHERE dispatched_at IS NOT NULL AND finished_at IS NULL AND state = 'queued' RETURNING id
"""
FAILED_ATTEMPTS = """
SELECT dispatch, attempt, worker, started_at, ended_at, error, trace FROM task_attempts
WHERE task_id = ? ORDER BY dispatch DESC, attempt DESC LIMIT ?
"""


class _Worker(NamedTuple):
    """What its record says about a worker."""

    alive: bool
    isolations: Mapping[str, str]
    culprit: Culprit | None
    reason: str


_ABSENT = _Worker(False, {}, None, "its worker died")


class _Lost(NamedTuple):
    """A running task of a dead worker."""

    id: int
    kind: str
    worker: str
    dispatch: int
    attempt: int
    max_attempts: int
    losses: int
    begun: bool


class SqliteLosses(SqliteDatabase):
    """The part of IAttemptStore on SQLite that takes tasks back from dead workers."""

    @transaction
    def take_back(self, db: Cursor, now: int, dead: Mapping[str, int]) -> Sequence[Task]:
        db.execute("BEGIN IMMEDIATE")
        db.executemany(FENCE, dead.items())
        workers = _workers(db)
        lost = [task for task in _running(db) if not workers.get(task.worker, _ABSENT).alive]
        return _take_back(db, now, lost, workers)

    @transaction
    def reset_in_flight(self, db: Cursor, now: int) -> int:
        db.execute("BEGIN IMMEDIATE")
        workers = {name: worker._replace(culprit=None) for name, worker in _workers(db).items()}
        taken = _take_back(db, now, _running(db), workers, together=True)
        queued = db.execute(RESET_QUEUED).fetchall()
        db.execute("DELETE FROM workers")
        db.execute("DELETE FROM outbox")
        return len(taken) + len(queued)

    @transaction
    def failed_attempts(self, db: Cursor, now: int, task_id: int) -> Sequence[FailedAttempt]:
        rows = db.execute(FAILED_ATTEMPTS, (task_id, FAILED_ATTEMPTS_LISTED)).fetchall()
        return [
            FailedAttempt(dispatch, attempt, worker, start and from_micros(start), from_micros(end), error, trace)
            for dispatch, attempt, worker, start, end, error, trace in reversed(rows)
        ]


def _running(db: Cursor) -> list[_Lost]:
    return [_Lost(*row) for row in db.execute(RUNNING)]


def _workers(db: Cursor) -> dict[str, _Worker]:
    workers = {}
    for name, queues, kinds, slots, state, culprit in db.execute(WORKERS):
        workers[name] = _Worker(
            state in (WorkerState.SERVING.value, WorkerState.DRAINING.value),
            {kind.kind: kind.isolation for kind in decode_worker(name, queues, kinds, slots).kinds},
            None if culprit is None else msgspec.json.decode(culprit, type=Culprit),
            "its worker died" if state == WorkerState.GONE.value else "its worker stopped answering",
        )
    return workers


def _take_back(
    db: Cursor, now: int, lost: Sequence[_Lost], workers: Mapping[str, _Worker], together: bool = False
) -> list[Task]:
    """Move these tasks back. ``together``: they died together, whatever their worker's name is."""
    found = [(task, workers.get(task.worker, _ABSENT)) for task in lost]
    candidates = {t.id for t, w in found if t.begun and w.isolations.get(t.kind, IN_PROCESS[0]) in IN_PROCESS}
    suspects = Counter("" if together else t.worker for t in lost if t.id in candidates and t.losses)
    taken = []
    for task, worker in found:
        candidate, culprit = task.id in candidates, worker.culprit
        guilty = culprit is not None and (culprit.task_id, culprit.dispatch) == (task.id, task.dispatch)
        alone = culprit is None and task.losses > 0 and suspects["" if together else task.worker] == 1
        spent = (task.begun and (guilty or task.max_attempts == 1)) or (
            candidate and (task.losses >= UNSPENT_LOSSES or alone)
        )
        reason = culprit.reason if guilty and culprit else worker.reason
        error = f"attempt {task.attempt} of {task.max_attempts} was lost: {reason}"
        if spent:
            db.execute(RECORD_LOST, (now, error, task.id))
        if spent and task.attempt >= task.max_attempts:
            row = db.execute(FAIL_LOST, (now, error, candidate, task.id)).fetchone()
        else:
            row = db.execute(TAKE_BACK, (not spent, candidate, error if spent else None, task.id)).fetchone()
        taken.append(to_task(row))
    return taken
