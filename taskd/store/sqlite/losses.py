"""What SQLite does with the tasks of dead workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from sqlite3 import Cursor
from typing import NamedTuple

import msgspec

from taskd.model.states import State
from taskd.model.tasks import FailedAttempt, Task
from taskd.ports.handler import IN_PROCESS
from taskd.ports.workers import WorkerState
from taskd.store.rows import FAILED_ATTEMPTS_LISTED, TO_WAITING, UNSPENT_LOSSES, decode_worker
from taskd.store.sqlite.database import SqliteDatabase, transaction
from taskd.store.sqlite.rows import LISTED, from_micros, to_task

FENCE = "UPDATE workers SET state = 'fenced' WHERE name = ? AND beat = ? AND state IN ('serving', 'draining')"
HELD = """
SELECT id, kind, worker, dispatch, attempt, max_attempts, losses, state FROM tasks INDEXED BY tasks_held
WHERE held ORDER BY id
"""
WORKERS = "SELECT name, queues, kinds, slots, state, culprit FROM workers"
# Runs before the task changes, because the record describes the attempt as it was.
RECORD_LOST = """
INSERT INTO task_attempts (task_id, dispatch, attempt, worker, started_at, ended_at, error)
SELECT id, dispatch, attempt, worker, started_at, ?, ? FROM tasks WHERE id = ? ON CONFLICT DO NOTHING
"""
FAIL_LOST = f"""
UPDATE tasks SET state = 'failed', finished_at = ?, error = ?, losses = losses + ?, worker = NULL, held = false,
    version = version + 1
WHERE id = ? RETURNING {LISTED}
"""
TAKE_BACK = f"""
UPDATE tasks SET state = 'waiting', attempt = attempt - ?, losses = losses + ?, error = ?, worker = NULL, {TO_WAITING}
WHERE id = ? RETURNING {LISTED}
"""
# It was cancelled, and perhaps retried since.
DROP = "UPDATE tasks SET held = false WHERE id = ?"
FAILED_ATTEMPTS = """
SELECT dispatch, attempt, worker, started_at, ended_at, error, trace FROM task_attempts
WHERE task_id = ? ORDER BY dispatch DESC, attempt DESC LIMIT ?
"""


class _Death(msgspec.Struct, frozen=True):
    """What a watchdog knows of a death: the culprit, and the dispatches of the tasks ``among`` which it is, by id."""

    task_id: int = 0
    dispatch: int = 0
    reason: str = ""
    among: Mapping[int, int] | None = None


class _Worker(NamedTuple):
    """What its record says about a worker."""

    alive: bool
    isolations: Mapping[str, str]
    death: _Death
    reason: str


_ABSENT = _Worker(False, {}, _Death(), "its worker died")


class _Lost(NamedTuple):
    """A task that a dead worker holds."""

    id: int
    kind: str
    worker: str
    dispatch: int
    attempt: int
    max_attempts: int
    losses: int
    state: str

    @property
    def open(self) -> bool:
        """Whether it was neither cancelled nor retried."""
        return self.state in (State.QUEUED.value, State.RUNNING.value)

    def may_have_begun(self) -> bool:
        """Workers store the begin of what has losses or a single attempt before they begin it."""
        return self.state == State.RUNNING.value or (not self.losses and self.max_attempts != 1)

    def is_candidate(self, worker: _Worker) -> bool:
        """Whether it may have killed its worker."""
        among = worker.death.among
        return (
            self.may_have_begun()
            and worker.isolations.get(self.kind, IN_PROCESS[0]) in IN_PROCESS
            and (among is None or among.get(self.id) == self.dispatch)
        )


class SqliteLosses(SqliteDatabase):
    """The part of IAttemptStore on SQLite that takes tasks back from dead workers."""

    @transaction
    def take_back(self, db: Cursor, now: int, dead: Mapping[str, int]) -> Sequence[Task]:
        db.execute("BEGIN IMMEDIATE")
        db.executemany(FENCE, dead.items())
        workers = _workers(db)
        lost = [task for task in _held(db) if not workers.get(task.worker, _ABSENT).alive]
        return _take_back(db, now, lost, workers)

    @transaction
    def reset_in_flight(self, db: Cursor, now: int) -> int:
        db.execute("BEGIN IMMEDIATE")
        workers = {name: worker._replace(death=_Death()) for name, worker in _workers(db).items()}
        taken = _take_back(db, now, _held(db), workers, together=True)
        db.execute("DELETE FROM workers")
        return len(taken)

    @transaction
    def failed_attempts(self, db: Cursor, now: int, task_id: int) -> Sequence[FailedAttempt]:
        rows = db.execute(FAILED_ATTEMPTS, (task_id, FAILED_ATTEMPTS_LISTED)).fetchall()
        return [
            FailedAttempt(
                dispatch,
                attempt,
                worker,
                None if start is None else from_micros(start),
                from_micros(end),
                error,
                trace,
            )
            for dispatch, attempt, worker, start, end, error, trace in reversed(rows)
        ]


def _held(db: Cursor) -> list[_Lost]:
    return [_Lost(*row) for row in db.execute(HELD)]


def _workers(db: Cursor) -> dict[str, _Worker]:
    workers = {}
    for name, queues, kinds, slots, state, culprit in db.execute(WORKERS):
        workers[name] = _Worker(
            state in (WorkerState.SERVING.value, WorkerState.DRAINING.value),
            {kind.kind: kind.isolation for kind in decode_worker(name, queues, kinds, slots).kinds},
            _Death() if culprit is None else msgspec.json.decode(culprit, type=_Death),
            "its worker died" if state == WorkerState.GONE.value else "its worker stopped answering",
        )
    return workers


def _take_back(
    db: Cursor, now: int, lost: Sequence[_Lost], workers: Mapping[str, _Worker], together: bool = False
) -> list[Task]:
    """Take these tasks back. ``together``: they died together, whatever their worker's name is."""
    db.executemany(DROP, [(task.id,) for task in lost if not task.open])
    found = [(task, workers.get(task.worker, _ABSENT)) for task in lost if task.open]
    candidates = {task.id for task, worker in found if task.is_candidate(worker)}
    suspects = Counter("" if together else t.worker for t, _ in found if t.id in candidates and t.losses)
    taken = []
    for task, worker in found:
        candidate, death = task.id in candidates, worker.death
        guilty = (death.task_id, death.dispatch) == (task.id, task.dispatch)
        alone = not death.task_id and task.losses > 0 and suspects["" if together else task.worker] == 1
        single = task.state == State.RUNNING.value and task.max_attempts == 1
        spent = guilty or single or (candidate and (task.losses >= UNSPENT_LOSSES or alone))
        reason = death.reason if guilty else worker.reason
        error = f"attempt {task.attempt} of {task.max_attempts} was lost: {reason}"
        if spent:
            db.execute(RECORD_LOST, (now, error, task.id))
        if spent and task.attempt >= task.max_attempts:
            row = db.execute(FAIL_LOST, (now, error, candidate, task.id)).fetchone()
        else:
            row = db.execute(TAKE_BACK, (not spent, candidate, error if spent else None, task.id)).fetchone()
        taken.append(to_task(row))
    return taken
