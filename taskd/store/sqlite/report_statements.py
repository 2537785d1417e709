"""The statements of the SQLite store for what workers say: of the tasks they run, and of themselves."""

from __future__ import annotations

HELD = """
SELECT 1 FROM tasks WHERE id = :id AND dispatch = :dispatch AND attempt = :attempt AND worker = :worker
    AND state = 'running'
"""
SHOW = """
UPDATE tasks SET progress = coalesce(:progress, progress),
    note = CASE WHEN :note IS NULL THEN note ELSE nullif(:note, '') END
WHERE id = :id
"""
CUT = """
DELETE FROM task_log WHERE task_id = :id AND (dispatch, attempt, line) < (:dispatch, :attempt, :keep_from)
    AND (dispatch, attempt, line + lines) <= (:dispatch, :attempt, :keep_from)
"""
# A chunk that was stored by an earlier call is there already, with fewer lines if more were said meanwhile.
LOG = """
INSERT INTO task_log (task_id, dispatch, attempt, line, at, lines, bytes, text)
VALUES (:id, :dispatch, :attempt, :line, :now, :lines, :bytes, :text)
ON CONFLICT (task_id, dispatch, attempt, line) DO UPDATE
    SET lines = excluded.lines, bytes = excluded.bytes, text = excluded.text WHERE excluded.lines > task_log.lines
"""

# The line of the place may stand in the middle of a chunk, which is the last that begins before it or at it.
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
FAILED_ATTEMPTS = """
SELECT dispatch, attempt, worker, started_at, ended_at, error, trace FROM task_attempts
WHERE task_id = ? ORDER BY dispatch DESC, attempt DESC LIMIT ?
"""

# -- workers

WORKER_SEEN = """
INSERT INTO workers (name, queues, kinds, slots, started_at, seen_at)
VALUES (:name, :queues, :kinds, :slots, :now, :now)
ON CONFLICT (name) DO UPDATE
    SET queues = excluded.queues, kinds = excluded.kinds, slots = excluded.slots, seen_at = excluded.seen_at
"""
WORKER_GONE = "DELETE FROM workers WHERE name = ?"
FORGET_WORKERS = "DELETE FROM workers WHERE seen_at < ?"
LIST_WORKERS = "SELECT name, queues, kinds, slots FROM workers WHERE seen_at > ?"
