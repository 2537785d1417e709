"""The statements of the SQLite store. Times are parameters, in microseconds; ids go in as JSON lists."""

from __future__ import annotations

from taskd.store.common import columns

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

# -- a task's life

LAST_TASK = "SELECT coalesce(max(id), 0) FROM tasks"
CREATE_TASK = """
INSERT INTO tasks (id, user_id, task, kind, queue, payload, max_attempts, state, dispatch, created_at, run_at,
    dispatched_at, key, fingerprint)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
FIND_KEY = "SELECT id, fingerprint FROM tasks WHERE user_id = ? AND key = ?"
CREATE_BATCH = "INSERT INTO outbox VALUES (?, ?, ?, NULL)"
FIND_BATCH = "SELECT task_ids FROM outbox WHERE id = ?"
TASKS_BY_ID = f"SELECT {_ALL} FROM tasks WHERE id IN (SELECT value FROM json_each(?))"

# The predicate of tasks_backlog, which a query must repeat to be served by it.
_BACKLOG = "dispatched_at IS NULL AND finished_at IS NULL AND due"

NEXT_USER = f"""
SELECT user_id FROM tasks INDEXED BY tasks_backlog WHERE queue = ? AND user_id > ? AND {_BACKLOG}
ORDER BY user_id LIMIT 1
"""
OLDEST = f"""
SELECT id FROM tasks INDEXED BY tasks_backlog WHERE queue = ? AND user_id = ? AND {_BACKLOG}
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
RETURNING queue, user_id
"""

SETTLE = "DELETE FROM outbox WHERE id IN (SELECT value FROM json_each(?)) AND published_at IS NULL"
SETTLE_TAKEN = "UPDATE outbox SET published_at = ? WHERE id IN (SELECT value FROM json_each(?))"
DROP_SETTLED = "DELETE FROM outbox WHERE published_at = ? AND created_at < ?"
OLD_BATCHES = """
SELECT id, task_ids FROM outbox WHERE coalesce(published_at, created_at) <= ? ORDER BY created_at LIMIT ?
"""
TAKE = "UPDATE outbox SET published_at = ? WHERE id IN (SELECT value FROM json_each(?))"

# A redelivery takes over from a worker that lost its channel, but not the last attempt: its lease decides.
CLAIM = f"""
UPDATE tasks SET state = 'running', attempt = attempt + 1, version = version + 1, worker = ?, lease_until = ?,
    started_at = ?
WHERE id = ? AND dispatch = ?
    AND (state = 'queued' OR ? AND state = 'running' AND worker <> ? AND attempt < max_attempts)
    AND (? OR attempt = 0 OR attempt + 1 <> max_attempts)
RETURNING {_ALL}
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

_BACK = "dispatched_at = NULL, started_at = NULL, lease_until = NULL, version = version + 1"

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
UPDATE tasks SET state = 'cancelled', version = version + 1, finished_at = ?
WHERE id = ? AND user_id = ? AND state IN ('waiting', 'queued') RETURNING {_ALL}
"""

# -- repair

EXPIRE = f"""
UPDATE tasks SET
    state = CASE WHEN attempt < max_attempts THEN 'waiting' ELSE 'failed' END,
    dispatched_at = CASE WHEN attempt >= max_attempts THEN dispatched_at END,
    started_at = CASE WHEN attempt >= max_attempts THEN started_at END,
    finished_at = CASE WHEN attempt >= max_attempts THEN :now END,
    error = CASE WHEN attempt >= max_attempts THEN
        'lease expired on attempt ' || attempt || ' of ' || max_attempts
        || ': the worker stopped answering' END,
    lease_until = NULL, version = version + 1
WHERE id IN (
    SELECT id FROM tasks INDEXED BY tasks_in_flight
    WHERE dispatched_at IS NOT NULL AND finished_at IS NULL AND state = 'running'
        AND lease_until <= :until LIMIT :limit)
RETURNING {_ALL}
"""
REQUEUE_LOST = f"""
UPDATE tasks SET state = 'waiting', {_BACK}
WHERE id IN (
    SELECT id FROM tasks INDEXED BY tasks_in_flight
    WHERE dispatched_at IS NOT NULL AND finished_at IS NULL AND queue = ? AND dispatched_at <= ?
        AND state = 'queued'
    ORDER BY dispatched_at LIMIT ?)
RETURNING {_ALL}
"""
RESET_QUEUED = f"""
UPDATE tasks INDEXED BY tasks_in_flight SET state = 'waiting', {_BACK}
WHERE dispatched_at IS NOT NULL AND finished_at IS NULL AND state = 'queued' RETURNING id
"""
COUNT_QUEUED = """
SELECT queue, count(*) FROM tasks INDEXED BY tasks_in_flight
WHERE dispatched_at IS NOT NULL AND finished_at IS NULL AND state = 'queued' GROUP BY queue
"""

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
