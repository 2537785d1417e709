"""The registry of workers in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from taskd.ports.workers import WorkerInfo
from taskd.store.rows import decode_workers, encode_worker
from taskd.store.sqlite.database import SqliteDatabase

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

    async def worker_seen(self, worker: WorkerInfo) -> None:
        row = dict(zip(("name", "queues", "kinds", "slots"), encode_worker(worker), strict=True))
        await self._run(lambda db, now: db.execute(WORKER_SEEN, {**row, "now": now}))

    async def worker_gone(self, name: str) -> None:
        await self._run(lambda db, now: db.execute(WORKER_GONE, (name,)))

    async def list_workers(self, seconds: float) -> Sequence[WorkerInfo]:
        return await self._run(_list_workers, seconds)


def _list_workers(db: sqlite3.Cursor, now: int, seconds: float) -> Sequence[WorkerInfo]:
    db.execute(FORGET_WORKERS, (now - _DAY,))
    return decode_workers(db.execute(LIST_WORKERS, (now - round(seconds * 1_000_000),)).fetchall())
