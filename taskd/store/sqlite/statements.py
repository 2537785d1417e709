"""The statements of the SQLite store. Times are parameters, in microseconds; ids go in as JSON lists."""

from __future__ import annotations

from taskd.store.paging import columns

_ALL = columns()
_LISTED = columns(listed=True)

# -- accounts

# Nothing comes back when the key is taken, be it by an earlier run of the same registration.
CREATE_USER = """
INSERT INTO users (username, username_key, password, created_at) VALUES (?, ?, ?, ?)
ON CONFLICT (username_key) DO NOTHING RETURNING id
"""
FIND_USER = "SELECT id, username, password FROM users WHERE username_key = ?"
DROP_EXPIRED_SESSIONS = "DELETE FROM sessions WHERE user_id = ? AND expires_at <= ?"
OPEN_SESSION = "INSERT INTO sessions VALUES (?, ?, ?, ?) ON CONFLICT (token_hash) DO NOTHING"
FIND_SESSION = """
SELECT u.id, u.username FROM sessions s JOIN users u ON u.id = s.user_id
WHERE s.token_hash = ? AND s.expires_at > ?
"""
CLOSE_SESSION = "DELETE FROM sessions WHERE token_hash = ?"
USERNAMES = "SELECT id, username FROM users WHERE id IN (SELECT value FROM json_each(?))"

# -- a task's life

# Not the greatest id that is left: numbers are not used again.
LAST_TASK = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'tasks'"
CREATE_TASK = """
INSERT INTO tasks (id, user_id, task, kind, queue, payload, max_attempts, state, dispatch, created_at, run_at,
    due, dispatched_at, timeout, key, fingerprint)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
FIND_KEY = "SELECT id, fingerprint FROM tasks WHERE user_id = ? AND key = ?"
CREATE_BATCH = "INSERT INTO outbox VALUES (?, ?, ?, NULL)"
FIND_BATCH = "SELECT task_ids FROM outbox WHERE id = ?"
TASKS_BY_ID = f"SELECT {_ALL} FROM tasks WHERE id IN (SELECT value FROM json_each(?))"

# The predicate of tasks_backlog, which a query must repeat to be served by it.
_BACKLOG = "dispatched_at IS NULL AND finished_at IS NULL AND due"

NEXT_USER = f"""
SELECT user_id FROM tasks INDEXED BY tasks_backlog WHERE queue = ? AND kind = ? AND user_id > ? AND {_BACKLOG}
ORDER BY user_id LIMIT 1
"""
OLDEST = f"""
SELECT id FROM tasks INDEXED BY tasks_backlog WHERE queue = ? AND kind = ? AND user_id = ? AND {_BACKLOG}
ORDER BY run_at, id LIMIT ? OFFSET ?
"""
DISPATCH = f"""
UPDATE tasks SET state = 'queued', dispatch = dispatch + 1, version = version + 1, dispatched_at = ?
WHERE id IN (SELECT value FROM json_each(?)) RETURNING {_ALL}
"""

# The state, and so the version, stays.
PROMOTE = """
UPDATE tasks SET due = 1 WHERE id IN (
    SELECT id FROM tasks INDEXED BY tasks_delayed WHERE NOT due AND finished_at IS NULL AND run_at <= ?
    ORDER BY run_at LIMIT ?)
RETURNING queue, kind, user_id
"""

SETTLE = "DELETE FROM outbox WHERE id IN (SELECT value FROM json_each(?)) AND published_at IS NULL"
SETTLE_TAKEN = "UPDATE outbox SET published_at = ? WHERE id IN (SELECT value FROM json_each(?))"
DROP_SETTLED = "DELETE FROM outbox WHERE published_at = ? AND created_at < ?"
OLD_BATCHES = """
SELECT id, task_ids FROM outbox WHERE coalesce(published_at, created_at) <= ? ORDER BY created_at LIMIT ?
"""
TAKE = "UPDATE outbox SET published_at = ? WHERE id IN (SELECT value FROM json_each(?))"

# A redelivery takes over from a worker that lost its channel, but not the last attempt: its lease decides. An attempt
# that failed leaves an error, one that was lost with its worker does not: only after such a one the last attempt has to
# be alone.
CLAIM = f"""
UPDATE tasks SET state = 'running', attempt = attempt + 1, version = version + 1, worker = ?, lease_until = ?,
    started_at = ?, progress = NULL, note = NULL, error = NULL,
    max_attempts = CASE max_attempts WHEN 0 THEN ? ELSE max_attempts END
WHERE id = ? AND dispatch = ?
    AND (state = 'queued' OR ? AND state = 'running' AND worker <> ? AND attempt < max_attempts)
    AND (? OR attempt = 0 OR error IS NOT NULL OR attempt + 1 <> max_attempts)
RETURNING {_ALL}
"""
# Before it is taken over.
KEEP_TAKEN = """
INSERT INTO task_attempts (task_id, dispatch, attempt, worker, started_at, ended_at, error)
SELECT id, dispatch, attempt, worker, started_at, ?,
    'attempt ' || attempt || ' of ' || max_attempts || ' was lost: its worker ended or was cut off'
FROM tasks WHERE id = ? AND dispatch = ? AND state = 'running' AND worker <> ? AND attempt < max_attempts
    AND (? OR attempt + 1 <> max_attempts)
ON CONFLICT DO NOTHING
"""
HELD = f"SELECT {_ALL} FROM tasks WHERE id = ? AND dispatch = ? AND worker = ? AND state = 'running'"
FINISH = """
UPDATE tasks SET state = ?, version = version + 1, finished_at = ?, result = ?, error = ?, lease_until = NULL
WHERE id = ? AND dispatch = ? AND attempt = ? AND worker = ? AND state = 'running'
RETURNING version
"""
FINISHED_SO = """
SELECT version, finished_at FROM tasks
WHERE id = ? AND dispatch = ? AND attempt = ? AND worker = ? AND state = ?
"""

# Before the row is changed, as what is kept of an attempt must be what it was.
KEEP_ATTEMPT = """
INSERT INTO task_attempts (task_id, dispatch, attempt, worker, started_at, ended_at, error, trace)
SELECT id, dispatch, attempt, worker, started_at, ?, ?, ? FROM tasks
WHERE id = ? AND dispatch = ? AND attempt = ? AND worker = ? AND state = 'running'
ON CONFLICT DO NOTHING
"""

_BACK = """
dispatched_at = NULL, started_at = NULL, lease_until = NULL, progress = NULL, note = NULL, version = version + 1
"""

TRY_AGAIN = f"""
UPDATE tasks SET state = 'waiting', run_at = ?, due = ?, error = ?, {_BACK}
WHERE id = ? AND dispatch = ? AND attempt = ? AND worker = ? AND state = 'running'
RETURNING version, run_at
"""
# What was to be tried again may have gone on since: the attempt that it left behind tells. Its version then is not
# known any more, and nobody is to be told of it.
FAILED_SO = """
SELECT CASE WHEN t.state = 'waiting' AND t.dispatch = a.dispatch THEN t.version ELSE 0 END, t.run_at
FROM task_attempts a JOIN tasks t ON t.id = a.task_id
WHERE a.task_id = ? AND a.dispatch = ? AND a.attempt = ? AND a.worker = ? AND a.error = ?
"""

RELEASE = f"""
UPDATE tasks SET state = 'waiting', attempt = attempt - 1, {_BACK}
WHERE id = ? AND dispatch = ? AND worker = ? AND state = 'running' RETURNING {_ALL}
"""
RELEASED = f"SELECT {_ALL} FROM tasks WHERE id = ? AND dispatch = ? AND worker = ? AND state = 'waiting'"
RENEW = """
UPDATE tasks SET lease_until = ?
WHERE worker = ? AND state = 'running' AND id IN (SELECT value FROM json_each(?)) RETURNING id
"""
CANCEL = f"""
UPDATE tasks SET state = 'cancelled', version = version + 1, finished_at = ?, lease_until = NULL
WHERE id = ? AND state IN ('waiting', 'queued', 'running') RETURNING {_ALL}
"""
RETRY = f"""
UPDATE tasks SET state = 'waiting', attempt = 0, run_at = ?, due = 1, finished_at = NULL, worker = NULL, result = NULL,
    error = NULL, {_BACK}
WHERE id = ? AND state IN ('failed', 'cancelled') RETURNING {_ALL}
"""

# -- repair

DEAD = """
SELECT id FROM tasks INDEXED BY tasks_in_flight
WHERE dispatched_at IS NOT NULL AND finished_at IS NULL AND state = 'running' AND lease_until <= ? LIMIT ?
"""
_EXPIRED = "'lease expired on attempt ' || attempt || ' of ' || max_attempts || ': the worker stopped answering'"
KEEP_LOST = f"""
INSERT INTO task_attempts (task_id, dispatch, attempt, worker, started_at, ended_at, error)
SELECT id, dispatch, attempt, worker, started_at, :now, {_EXPIRED} FROM tasks
WHERE id IN (SELECT value FROM json_each(:ids))
ON CONFLICT DO NOTHING
"""
EXPIRE = f"""
UPDATE tasks SET
    state = CASE WHEN attempt < max_attempts THEN 'waiting' ELSE 'failed' END,
    dispatched_at = CASE WHEN attempt >= max_attempts THEN dispatched_at END,
    started_at = CASE WHEN attempt >= max_attempts THEN started_at END,
    finished_at = CASE WHEN attempt >= max_attempts THEN :now END,
    progress = CASE WHEN attempt >= max_attempts THEN progress END,
    note = CASE WHEN attempt >= max_attempts THEN note END,
    error = CASE WHEN attempt >= max_attempts THEN {_EXPIRED} END, lease_until = NULL, version = version + 1
WHERE id IN (SELECT value FROM json_each(:ids))
RETURNING {_ALL}
"""
REQUEUE_LOST = f"""
UPDATE tasks SET state = 'waiting', {_BACK}
WHERE id IN (
    SELECT id FROM tasks INDEXED BY tasks_in_flight
    WHERE dispatched_at IS NOT NULL AND finished_at IS NULL AND queue = ? AND kind = ? AND dispatched_at <= ?
        AND state = 'queued'
    ORDER BY dispatched_at LIMIT ?)
RETURNING {_ALL}
"""
RESET_QUEUED = f"""
UPDATE tasks INDEXED BY tasks_in_flight SET state = 'waiting', {_BACK}
WHERE dispatched_at IS NOT NULL AND finished_at IS NULL AND state = 'queued' RETURNING id
"""
COUNT_QUEUED = """
SELECT queue, kind, count(*) FROM tasks INDEXED BY tasks_in_flight
WHERE dispatched_at IS NOT NULL AND finished_at IS NULL AND state = 'queued' GROUP BY queue, kind
"""

# A walk by the primary key: there is no index by the end of a task, which every task would have to pay for.
OLDEST_TASKS = "SELECT id, created_at, finished_at FROM tasks WHERE id > ? ORDER BY id LIMIT ?"
DELETE_TASKS = (
    "DELETE FROM tasks WHERE id IN (SELECT value FROM json_each(?))",
    "DELETE FROM task_log WHERE task_id IN (SELECT value FROM json_each(?))",
    "DELETE FROM task_attempts WHERE task_id IN (SELECT value FROM json_each(?))",
)

# -- reading

TASK_OF = f"SELECT {_ALL} FROM tasks WHERE +user_id = ? AND id IN (SELECT value FROM json_each(?))"


def list_in_flight(condition: str) -> str:
    """Queued or running tasks of a user. Parameters: user, before, those of the condition, limit."""
    return f"""
SELECT {_LISTED} FROM tasks INDEXED BY tasks_in_flight
WHERE dispatched_at IS NOT NULL AND finished_at IS NULL AND user_id = ? AND id < ? AND {condition}
ORDER BY id DESC LIMIT ?
"""


def _walk(statuses: int, select: str) -> str:
    one = (
        f"SELECT * FROM (SELECT {select} FROM tasks INDEXED BY tasks_list WHERE user_id = ? AND status = ? AND id < ?"
        " ORDER BY id DESC LIMIT ?)"
    )
    return " UNION ALL ".join([one] * statuses)


def list_walk(statuses: int, condition: str) -> str:
    """The newest of each status, merged.

    Parameters: (user, status, before, each) a status, all, those of the condition, limit.
    """
    walk = f"SELECT id FROM ({_walk(statuses, 'id')}) ORDER BY id DESC LIMIT ?"
    where = f"WHERE {condition}" if condition else ""
    return f"""
SELECT {_LISTED} FROM ({walk}) JOIN tasks USING (id) {where} ORDER BY id DESC LIMIT ?
"""


def list_end(statuses: int) -> str:
    """The last id that such a walk looked at.

    Parameters: (user, status, before, each) a status, how many before it.
    """
    return f"SELECT id FROM ({_walk(statuses, 'id')}) ORDER BY id DESC LIMIT 1 OFFSET ?"
