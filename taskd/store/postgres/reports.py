"""What workers say, in PostgreSQL: of the tasks they run, and of themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from taskd.model.tasks import FailedAttempt
from taskd.ports.logs import LogChunk, LogPlace, Report
from taskd.ports.workers import WorkerInfo
from taskd.store.paging import LAST_FAILED
from taskd.store.postgres.arrays import numbers, optional_numbers, optional_texts, texts
from taskd.store.postgres.database import PostgresBase
from taskd.store.texts import chunk_lines, chunk_text, storable
from taskd.store.worker_rows import decode_workers, encode_worker


class PostgresReports(PostgresBase):
    """The part of IStore that keeps progress, logs, failed attempts and workers."""

    async def report(self, worker: str, reports: Sequence[Report]) -> frozenset[int]:
        held: set[int] = set()
        for batch in _each_task_once(reports):
            rows = await self._call(
                "report",
                worker,
                numbers([r.task_id for r in batch]),
                numbers([r.dispatch for r in batch]),
                numbers([r.attempt for r in batch]),
                optional_numbers([r.progress for r in batch]),
                optional_texts([None if r.note is None else storable(r.note) for r in batch]),
                numbers([r.first_line for r in batch]),
                numbers([len(r.lines) for r in batch]),
                texts([chunk_text(r.lines) for r in batch]),
                numbers([r.keep_from for r in batch]),
            )
            held.update(task_id for (task_id,) in rows)
        return frozenset(held)

    async def read_log(self, task_id: int, after: LogPlace | None, limit: int) -> Sequence[LogChunk]:
        rows = await self._call("read_log", task_id, *(after or LogPlace(0, 0, 0)), limit)
        return [LogChunk(LogPlace(*row[:3]), row[3], chunk_lines(row[4])) for row in rows]

    async def log_bytes(self, task_id: int) -> int:
        return int((await self._call("log_bytes", task_id))[0][0])

    async def failed_attempts(self, task_id: int) -> Sequence[FailedAttempt]:
        return [FailedAttempt(*row) for row in reversed(await self._call("failed_attempts", task_id, LAST_FAILED))]

    # -- workers -----------------------------------------------------------------------------------

    async def worker_seen(self, worker: WorkerInfo) -> None:
        await self._call("worker_seen", *encode_worker(worker))

    async def worker_gone(self, name: str) -> None:
        await self._call("worker_gone", name)

    async def list_workers(self, seconds: float) -> Sequence[WorkerInfo]:
        return decode_workers(await self._call("list_workers", seconds))


def _each_task_once(reports: Sequence[Report]) -> Iterator[list[Report]]:
    """The reports in their order, by task, in as few batches as leave no task twice in one: usually a single one."""
    left = sorted(reports, key=lambda r: r.task_id)
    while left:
        first: dict[int, Report] = {}
        later = [r for r in left if first.setdefault(r.task_id, r) is not r]
        yield list(first.values())
        left = later
