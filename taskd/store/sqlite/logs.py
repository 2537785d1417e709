"""Progress and log lines in SQLite."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Cursor

from taskd.ports.logs import LogChunk, LogPlace, Report
from taskd.store.refusals import sanitize
from taskd.store.sqlite.database import SqliteDatabase, transaction
from taskd.store.sqlite.rows import from_micros

IS_HELD = """
SELECT 1 FROM tasks WHERE id = :id AND dispatch = :dispatch AND attempt = :attempt AND worker = :worker AND held
    AND state IN ('queued', 'running')
"""
SET_PROGRESS = """
UPDATE tasks SET progress = coalesce(:progress, progress),
    note = CASE WHEN :note IS NULL THEN note ELSE nullif(:note, '') END
WHERE id = :id
"""
CUT = """
DELETE FROM task_log WHERE task_id = :id AND (dispatch, attempt, line) < (:dispatch, :attempt, :keep_from)
    AND (dispatch, attempt, line + lines) <= (:dispatch, :attempt, :keep_from)
"""
# An earlier run may have stored the chunk already, with fewer lines if more were written since then.
APPEND = """
INSERT INTO task_log (task_id, dispatch, attempt, line, at, lines, bytes, text)
VALUES (:id, :dispatch, :attempt, :line, :now, :lines, :bytes, :text)
ON CONFLICT (task_id, dispatch, attempt, line) DO UPDATE
    SET lines = excluded.lines, bytes = excluded.bytes, text = excluded.text WHERE excluded.lines > task_log.lines
"""

# ``:line`` may lie in the middle of a chunk: then the chunk with that line is the first to return. It is the last one
# that begins at that line or before it.
READ_LOG = """
SELECT dispatch, attempt, line, at, text FROM task_log
WHERE task_id = :id AND (dispatch, attempt, line) > (:dispatch, :attempt, coalesce((
    SELECT CASE WHEN line + lines - 1 > :line THEN line - 1 END FROM (
        SELECT line, lines FROM task_log
        WHERE task_id = :id AND dispatch = :dispatch AND attempt = :attempt AND line <= :line
        ORDER BY line DESC LIMIT 1)), :line))
ORDER BY dispatch, attempt, line LIMIT :limit
"""
LOG_BYTES = "SELECT coalesce(sum(bytes), 0) FROM task_log WHERE task_id = ?"


class SqliteLogs(SqliteDatabase):
    """ILogStore on SQLite."""

    @transaction
    def report(self, db: Cursor, now: int, worker: str, reports: Sequence[Report]) -> frozenset[int]:
        held: set[int] = set()
        for r in reports:
            values = {
                "id": r.task_id,
                "dispatch": r.dispatch,
                "attempt": r.attempt,
                "worker": worker,
                "progress": r.progress,
                "note": None if r.note is None else sanitize(r.note),
                "keep_from": r.keep_from,
            }
            if db.execute(IS_HELD, values).fetchone() is None:
                continue
            held.add(r.task_id)
            if r.progress is not None or r.note is not None:
                db.execute(SET_PROGRESS, values)
            if r.keep_from > 1:
                db.execute(CUT, values)
            if r.lines and r.first_line + len(r.lines) > r.keep_from:
                text = sanitize("\n".join(r.lines))
                chunk = {"line": r.first_line, "lines": len(r.lines), "bytes": len(text.encode()), "text": text}
                db.execute(APPEND, {**values, **chunk, "now": now})
        return frozenset(held)

    @transaction
    def read_log(self, db: Cursor, now: int, task_id: int, after: LogPlace | None, limit: int) -> Sequence[LogChunk]:
        place = after or LogPlace(0, 0, 0)
        rows = db.execute(READ_LOG, {"id": task_id, **place._asdict(), "limit": limit})
        return [LogChunk(LogPlace(*row[:3]), from_micros(row[3]), row[4].split("\n")) for row in rows]

    @transaction
    def log_bytes(self, db: Cursor, now: int, task_id: int) -> int:
        return int(db.execute(LOG_BYTES, (task_id,)).fetchone()[0])
