"""What workers say, in SQLite: of the tasks they run, and of themselves."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from taskd.model.tasks import FailedAttempt
from taskd.ports.logs import LogChunk, LogPlace, Report
from taskd.ports.workers import WorkerInfo
from taskd.store.paging import LAST_FAILED
from taskd.store.sqlite import report_statements as sql
from taskd.store.sqlite.database import SqliteBase, from_micros
from taskd.store.texts import chunk_lines, chunk_text, storable
from taskd.store.worker_rows import decode_workers, encode_worker

_DAY = 86_400_000_000


class SqliteReports(SqliteBase):
    """The part of IStore that keeps progress, logs, failed attempts and workers."""

    async def report(self, worker: str, reports: Sequence[Report]) -> frozenset[int]:
        return await self._run(self._report, worker, reports)

    def _report(self, db: sqlite3.Cursor, worker: str, reports: Sequence[Report]) -> frozenset[int]:
        held: set[int] = set()
        for r in reports:
            said = {
                "id": r.task_id,
                "dispatch": r.dispatch,
                "attempt": r.attempt,
                "worker": worker,
                "progress": r.progress,
                "note": None if r.note is None else storable(r.note),
                "keep_from": r.keep_from,
            }
            if db.execute(sql.HELD, said).fetchone() is None:
                continue
            held.add(r.task_id)
            if r.progress is not None or r.note is not None:
                db.execute(sql.SHOW, said)
            if r.keep_from > 1:
                db.execute(sql.CUT, said)
            if r.lines and r.first_line + len(r.lines) > r.keep_from:
                text = chunk_text(r.lines)
                chunk = {"line": r.first_line, "lines": len(r.lines), "bytes": len(text.encode()), "text": text}
                db.execute(sql.LOG, {**said, **chunk, "now": self._now()})
        return frozenset(held)

    async def read_log(self, task_id: int, after: LogPlace | None, limit: int) -> Sequence[LogChunk]:
        place = after or LogPlace(0, 0, 0)
        args = {"id": task_id, **place._asdict(), "limit": limit}
        rows = await self._run(lambda db: db.execute(sql.READ_LOG, args).fetchall())
        return [LogChunk(LogPlace(*row[:3]), from_micros(row[3]), chunk_lines(row[4])) for row in rows]

    async def log_bytes(self, task_id: int) -> int:
        return await self._run(lambda db: int(db.execute(sql.LOG_BYTES, (task_id,)).fetchone()[0]))

    async def failed_attempts(self, task_id: int) -> Sequence[FailedAttempt]:
        rows = await self._run(lambda db: db.execute(sql.FAILED_ATTEMPTS, (task_id, LAST_FAILED)).fetchall())
        return [
            FailedAttempt(dispatch, attempt, worker, start and from_micros(start), from_micros(end), error, trace)
            for dispatch, attempt, worker, start, end, error, trace in reversed(rows)
        ]

    # -- workers -----------------------------------------------------------------------------------

    async def worker_seen(self, worker: WorkerInfo) -> None:
        row = dict(zip(("name", "queues", "kinds", "slots"), encode_worker(worker), strict=True))
        await self._run(lambda db: db.execute(sql.WORKER_SEEN, {**row, "now": self._now()}) and None)

    async def worker_gone(self, name: str) -> None:
        await self._run(lambda db: db.execute(sql.WORKER_GONE, (name,)) and None)

    async def list_workers(self, seconds: float) -> Sequence[WorkerInfo]:
        return await self._run(self._list_workers, seconds)

    def _list_workers(self, db: sqlite3.Cursor, seconds: float) -> Sequence[WorkerInfo]:
        now = self._now()
        db.execute(sql.FORGET_WORKERS, (now - _DAY,))
        return decode_workers(db.execute(sql.LIST_WORKERS, (now - round(seconds * 1_000_000),)).fetchall())
