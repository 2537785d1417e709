"""The registry of workers in SQLite."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Cursor

from taskd.ports.workers import WorkerInfo
from taskd.store.rows import decode_workers, encode_worker
from taskd.store.sqlite.database import SqliteDatabase, transaction

WORKER_SEEN = """
INSERT INTO workers (name, queues, kinds, slots, started_at, seen_at)
VALUES (:name, :queues, :kinds, :slots, :now, :now)
ON CONFLICT (name) DO UPDATE
    SET queues = excluded.queues, kinds = excluded.kinds, slots = excluded.slots, seen_at = excluded.seen_at
"""
WORKER_GONE = "DELETE FROM workers WHERE name = ?"
FORGET_WORKERS = "DELETE FROM workers WHERE seen_at < ?"
LIST_WORKERS = "SELECT name, queues, kinds, slots FROM workers WHERE seen_at > ?"

_DAY = 86_400_000_000


class SqliteWorkers(SqliteDatabase):
    """IWorkerStore on SQLite."""

    @transaction
    def worker_seen(self, db: Cursor, now: int, worker: WorkerInfo) -> None:
        row = dict(zip(("name", "queues", "kinds", "slots"), encode_worker(worker), strict=True))
        db.execute(WORKER_SEEN, {**row, "now": now})

    @transaction
    def worker_gone(self, db: Cursor, now: int, name: str) -> None:
        db.execute(WORKER_GONE, (name,))

    @transaction
    def list_workers(self, db: Cursor, now: int, seconds: float) -> Sequence[WorkerInfo]:
        db.execute(FORGET_WORKERS, (now - _DAY,))
        return decode_workers(db.execute(LIST_WORKERS, (now - round(seconds * 1_000_000),)).fetchall())
