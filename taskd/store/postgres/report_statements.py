"""The statements of the PostgreSQL store for what workers say: of the tasks they run, and of themselves."""

from __future__ import annotations

REPORTS: dict[str, str] = {}

# Locked in the order in which they come, as by all other batches, so that what is stored is of attempts that still
# run. A chunk that was stored by an earlier run is there already, with fewer lines if more were said meanwhile. The
# comparison by line is what the index can serve; that by the last line decides.
REPORTS["report"] = """
WITH said AS MATERIALIZED (
    SELECT r.*
    FROM unnest($2::bigint[], $3::int[], $4::int[], $5::float8[], $6::text[], $7::int[], $8::int[], $9::text[],
        $10::int[]) AS r (id, dispatch, attempt, progress, note, line, lines, text, keep_from)
        JOIN tasks t ON t.id = r.id AND t.dispatch = r.dispatch AND t.attempt = r.attempt AND t.worker = $1
            AND t.state = 'running'
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
"""

# The line of the place may stand in the middle of a chunk, which is the last that begins before it or at it.
REPORTS["read_log"] = """
SELECT dispatch, attempt, line, at, text FROM task_log
WHERE task_id = $1::bigint AND (dispatch, attempt, line) > ($2::bigint, $3::bigint, coalesce((
    SELECT CASE WHEN line + lines - 1 > $4::bigint THEN line - 1 END FROM (
        SELECT line, lines FROM task_log
        WHERE task_id = $1::bigint AND dispatch = $2::bigint AND attempt = $3::bigint AND line <= $4::bigint
        ORDER BY line DESC LIMIT 1) AS last), $4::bigint))
ORDER BY dispatch, attempt, line LIMIT $5
"""
REPORTS["log_bytes"] = "SELECT coalesce(sum(bytes), 0) FROM task_log WHERE task_id = $1"
REPORTS["failed_attempts"] = """
SELECT dispatch, attempt, worker, started_at, ended_at, error, trace FROM task_attempts
WHERE task_id = $1 ORDER BY dispatch DESC, attempt DESC LIMIT $2
"""

# -- workers

REPORTS["worker_seen"] = """
INSERT INTO workers (name, queues, kinds, slots) VALUES ($1, $2, $3, $4)
ON CONFLICT (name) DO UPDATE
    SET queues = excluded.queues, kinds = excluded.kinds, slots = excluded.slots, seen_at = now()
"""
REPORTS["worker_gone"] = "DELETE FROM workers WHERE name = $1"
REPORTS["list_workers"] = """
WITH forgotten AS (DELETE FROM workers WHERE seen_at < now() - interval '1 day')
SELECT name, queues, kinds, slots FROM workers WHERE seen_at > now() - make_interval(secs => $1)
"""
