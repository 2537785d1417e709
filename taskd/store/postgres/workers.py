"""The registry of workers in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence

from taskd.ports.workers import WorkerInfo
from taskd.store.postgres.database import PostgresDatabase
from taskd.store.rows import decode_workers, encode_worker

PREPARED: dict[str, str] = {}

PREPARED["worker_seen"] = """
INSERT INTO workers (name, queues, kinds, slots) VALUES ($1, $2, $3, $4)
ON CONFLICT (name) DO UPDATE
    SET queues = excluded.queues, kinds = excluded.kinds, slots = excluded.slots, seen_at = now()
"""
PREPARED["worker_gone"] = "DELETE FROM workers WHERE name = $1"
PREPARED["list_workers"] = """
WITH forgotten AS (DELETE FROM workers WHERE seen_at < now() - interval '1 day')
SELECT name, queues, kinds, slots FROM workers WHERE seen_at > now() - make_interval(secs => $1)
"""


class PostgresWorkers(PostgresDatabase):
    """IWorkerStore on PostgreSQL."""

    async def worker_seen(self, worker: WorkerInfo) -> None:
        await self._call("worker_seen", *encode_worker(worker))

    async def worker_gone(self, name: str) -> None:
        await self._call("worker_gone", name)

    async def list_workers(self, seconds: float) -> Sequence[WorkerInfo]:
        return decode_workers(await self._call("list_workers", seconds))
