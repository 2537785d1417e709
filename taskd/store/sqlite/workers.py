"""The registry of workers in SQLite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from sqlite3 import Cursor

from taskd.ports.workers import Beaten, Digest, Mean, WorkerInfo, WorkerPoll, WorkerState, WorkerStatus
from taskd.store.rows import WORKER_KEEP_SECONDS, decode_counts, decode_means, decode_worker, encode, encode_worker
from taskd.store.sqlite.attempts import release_all
from taskd.store.sqlite.database import SqliteDatabase, transaction

REGISTER = """
INSERT INTO workers (name, queues, kinds, slots, started_at, seen_at)
VALUES (:name, :queues, :kinds, :slots, :now, :now) ON CONFLICT (name) DO NOTHING
"""
BEAT = """
UPDATE workers SET beat = beat + 1, seen_at = ?, stalled = NULL, hung = ?, means = ?, holds = ?
WHERE name = ? AND state IN ('serving', 'draining')
"""
WORKER_DRAINING = "UPDATE workers SET state = 'draining' WHERE name = ? AND state = 'serving'"
WORKER_GONE = "DELETE FROM workers WHERE name = ?"
POLL_WORKERS = """
SELECT name, queues, kinds, slots, state, beat, hung, means, holds, stalled, seen_at FROM workers ORDER BY name
"""
HOLDS = "SELECT 1 FROM tasks INDEXED BY tasks_held WHERE held AND worker = ? LIMIT 1"
# What taskd.ports.workers.digest computes.
DIGEST = """
SELECT count(*), coalesce(sum(31 * id + dispatch) FILTER (WHERE state IN ('queued', 'running')), 0)
FROM tasks INDEXED BY tasks_held WHERE held AND worker = ?
"""

_EPOCH = "embedded"
"""There is no other process whose connection could be lost."""


class SqliteWorkers(SqliteDatabase):
    """IWorkerStore on SQLite."""

    @transaction
    def register(self, db: Cursor, now: int, worker: WorkerInfo) -> None:
        db.execute(REGISTER, {**encode_worker(worker), "now": now})

    @transaction
    def beat(
        self, db: Cursor, now: int, name: str, hung: Mapping[str, int], means: Sequence[Mean], holds: Digest
    ) -> Beaten:
        if not db.execute(BEAT, (now, encode(hung), encode(means), holds.count, name)).rowcount:
            return Beaten(False, False)
        return Beaten(True, Digest(*db.execute(DIGEST, (name,)).fetchone()) == holds)

    @transaction
    def worker_draining(self, db: Cursor, now: int, name: str) -> None:
        db.execute(WORKER_DRAINING, (name,))

    @transaction
    def worker_gone(self, db: Cursor, now: int, name: str) -> None:
        release_all(db, name)
        db.execute(WORKER_GONE, (name,))

    @transaction
    def poll_workers(self, db: Cursor, now: int) -> WorkerPoll:
        found = []
        before = now - WORKER_KEEP_SECONDS * 1_000_000
        for name, *serves, stored, beat, hung, means, holds, stalled, seen_at in db.execute(POLL_WORKERS).fetchall():
            state = WorkerState(stored)
            dead = state in (WorkerState.GONE, WorkerState.FENCED)
            if dead and seen_at < before and db.execute(HOLDS, (name,)).fetchone() is None:
                db.execute(WORKER_GONE, (name,))
            else:
                worker = decode_worker(name, *serves)
                counts, measured = decode_counts(hung), decode_means(means)
                found.append(WorkerStatus(worker, state, beat, True, counts, stalled, measured, holds))
        return WorkerPoll(_EPOCH, found)
