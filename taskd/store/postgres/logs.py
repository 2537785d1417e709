"""Progress and log lines in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from taskd.ports.logs import LogChunk, LogPlace, Report
from taskd.store.postgres.arrays import array, optional_texts, texts
from taskd.store.postgres.database import PostgresDatabase
from taskd.store.refusals import sanitize

PREPARED = {
    # Locks the rows, so that only reports of attempts that the worker holds are stored; in the order of the batch, as
    # every other batch does, so that batches cannot deadlock. An earlier run may have stored a chunk already, with
    # fewer lines if more were written since then. In `cut`, the index serves the comparison by the first line; the
    # comparison by the last line decides.
    "report": """
WITH said AS MATERIALIZED (
    SELECT r.*
    FROM unnest($2::bigint[], $3::int[], $4::int[], $5::float8[], $6::text[], $7::int[], $8::int[], $9::text[],
        $10::int[]) AS r (id, dispatch, attempt, progress, note, line, lines, text, keep_from)
        JOIN tasks t ON t.id = r.id AND t.dispatch = r.dispatch AND t.attempt = r.attempt AND t.worker = $1
            AND t.state IN ('queued', 'running')
    FOR UPDATE OF t
), shown AS (
    UPDATE tasks t SET progress = coalesce(said.progress, t.progress),
        note = CASE WHEN said.note IS NULL THEN t.note ELSE nullif(said.note, '') END
    FROM said WHERE t.id = said.id AND (said.progress IS NOT NULL OR said.note IS NOT NULL)
), cut AS (
    DELETE FROM task_log l USING said
    WHERE said.keep_from > 1 AND l.task_id = said.id
        AND (l.dispatch, l.attempt, l.line) < (said.dispatch, said.attempt, said.keep_from)
        AND (l.dispatch, l.attempt, l.line + l.lines) <= (said.dispatch, said.attempt, said.keep_from)
), logged AS (
    INSERT INTO task_log (task_id, dispatch, attempt, line, lines, bytes, text)
    SELECT id, dispatch, attempt, line, lines, octet_length(text), text FROM said
    WHERE lines > 0 AND line + lines > keep_from
    ON CONFLICT (task_id, dispatch, attempt, line) DO UPDATE
        SET lines = excluded.lines, bytes = excluded.bytes, text = excluded.text
        WHERE excluded.lines > task_log.lines
)
SELECT id FROM said
""",
    # $4 may lie in the middle of a chunk: then the chunk with that line is the first to return. It is the last one that
    # begins at that line or before it.
    "read_log": """
SELECT dispatch, attempt, line, at, text FROM task_log
WHERE task_id = $1::bigint AND (dispatch, attempt, line) > ($2::bigint, $3::bigint, coalesce((
    SELECT CASE WHEN line + lines - 1 > $4::bigint THEN line - 1 END FROM (
        SELECT line, lines FROM task_log
        WHERE task_id = $1::bigint AND dispatch = $2::bigint AND attempt = $3::bigint AND line <= $4::bigint
        ORDER BY line DESC LIMIT 1) AS last), $4::bigint))
ORDER BY dispatch, attempt, line LIMIT $5
""",
    "log_bytes": "SELECT coalesce(sum(bytes), 0) FROM task_log WHERE task_id = $1",
}


class PostgresLogs(PostgresDatabase):
    """ILogStore on PostgreSQL."""

    async def report(self, worker: str, reports: Sequence[Report]) -> frozenset[int]:
        held: set[int] = set()
        for batch in _each_task_once(reports):
            rows = await self._call(
                "report",
                worker,
                array([r.task_id for r in batch]),
                array([r.dispatch for r in batch]),
                array([r.attempt for r in batch]),
                array([r.progress for r in batch]),
                optional_texts([None if r.note is None else sanitize(r.note) for r in batch]),
                array([r.first_line for r in batch]),
                array([len(r.lines) for r in batch]),
                texts([sanitize("\n".join(r.lines)) for r in batch]),
                array([r.keep_from for r in batch]),
            )
            held.update(task_id for (task_id,) in rows)
        return frozenset(held)

    async def read_log(self, task_id: int, after: LogPlace | None, limit: int) -> Sequence[LogChunk]:
        rows = await self._call("read_log", task_id, *(after or LogPlace(0, 0, 0)), limit)
        return [LogChunk(LogPlace(*row[:3]), row[3], row[4].split("\n")) for row in rows]

    async def log_bytes(self, task_id: int) -> int:
        return int((await self._call("log_bytes", task_id))[0][0])


def _each_task_once(reports: Sequence[Report]) -> Iterator[list[Report]]:
    """The reports in their order, sorted by task, in as few batches as possible (usually one). No batch has two reports
    of one task."""
    left = sorted(reports, key=lambda r: r.task_id)
    while left:
        first: dict[int, Report] = {}
        later = [r for r in left if first.setdefault(r.task_id, r) is not r]
        yield list(first.values())
        left = later
