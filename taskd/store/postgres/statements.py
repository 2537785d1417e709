"""The statements of the PostgreSQL store.

Those in PREPARED are prepared on every connection: parsing and planning cost a third of a small batch.
A batch is one statement and one round trip; its rows go in as arrays, one parameter a column, because parsing
an array literal costs the server a fraction of parsing as many constants. Each is harmless when run twice.
"""

from __future__ import annotations

from taskd.store.paging import KEEP_SECONDS, columns
from taskd.store.postgres.report_statements import REPORTS

_ALL = columns()
_T = columns("t")
_LISTED = columns("t", listed=True)

# The predicates of the two partial indexes; a query must repeat them to be served by them.
_BACKLOG = "dispatched_at IS NULL AND finished_at IS NULL AND due"
_IN_FLIGHT = "dispatched_at IS NOT NULL AND finished_at IS NULL"

PREPARED: dict[str, str] = {**REPORTS}

# -- accounts

# Nothing comes back when the key is taken, be it by an earlier run of the same registration.
PREPARED["create_user"] = """
INSERT INTO users (username, username_key, password) VALUES ($1, $2, $3)
ON CONFLICT (username_key) DO NOTHING RETURNING id
"""
PREPARED["find_user"] = "SELECT id, username, password FROM users WHERE username_key = $1"
PREPARED["open_session"] = """
WITH expired AS (DELETE FROM sessions WHERE user_id = $1 AND expires_at <= now())
INSERT INTO sessions (token_hash, user_id, expires_at) VALUES ($2, $1, now() + make_interval(secs => $3))
ON CONFLICT (token_hash) DO NOTHING
"""
PREPARED["find_session"] = """
SELECT u.id, u.username FROM sessions s JOIN users u ON u.id = s.user_id
WHERE s.token_hash = $1 AND s.expires_at > now()
"""
PREPARED["close_session"] = "DELETE FROM sessions WHERE token_hash = $1"
PREPARED["usernames"] = "SELECT id, username FROM users WHERE id = ANY ($1::bigint[])"

# -- a task's life

# What is not confirmed to anybody need not wait for the disk: it is there at the latest with the next commit that
# waits, and what a crash of the database undoes is dispatched or claimed again. Evaluated once, before the commit.
_RELAXED = "(SELECT set_config('synchronous_commit', 'off', true)) = 'off'"

# Outbox rows that were taken over or repeated are kept for a while: see KEEP_SECONDS.
_SETTLE = """
DELETE FROM outbox WHERE id = ANY({ids}) AND published_at IS NULL
"""
_SETTLE_TAKEN = """
UPDATE outbox SET published_at = 'infinity' WHERE id = ANY({ids}) AND published_at IS NOT NULL
"""

# The ids come back from the outbox row, in the order of the rows: the sequence was drawn in that order. A
# second run stops at the outbox's primary key, or waits there for the first to end. What few tasks have comes in arrays
# that are empty when none has it. A run_at that has passed is as good as none; so is that of a queued row, which by the
# clock of its server has come.
PREPARED["create_tasks"] = f"""
WITH new AS (
    INSERT INTO tasks (user_id, task, kind, queue, payload, max_attempts, state, dispatch, dispatched_at, run_at, due,
        timeout, key, fingerprint)
    SELECT user_id, task, kind, queue, payload, max_attempts,
        CASE WHEN queued THEN 'queued' ELSE 'waiting' END, queued::int, CASE WHEN queued THEN now() END,
        greatest(run_at, now()), queued OR run_at IS NULL OR run_at <= now(), timeout, nullif(key, ''),
        nullif(fingerprint, '')
    FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::json[], $6::int[], $7::bool[],
        $8::timestamptz[], $9::float8[], $10::text[], $11::text[])
        AS n (user_id, task, kind, queue, payload, max_attempts, queued, run_at, timeout, key, fingerprint)
    RETURNING id
), settled AS ({_SETTLE.format(ids="$12::uuid[]")}), kept AS ({_SETTLE_TAKEN.format(ids="$12::uuid[]")})
INSERT INTO outbox (id, task_ids, published_at)
SELECT $13::uuid, coalesce(array_agg(id ORDER BY id), '{{}}'), CASE WHEN $14::bool THEN now() END FROM new
RETURNING task_ids, created_at
"""
PREPARED["find_keys"] = """
SELECT t.user_id, t.key, t.id, t.fingerprint
FROM unnest($1::bigint[], $2::text[]) AS k (user_id, key) JOIN tasks t ON t.user_id = k.user_id AND t.key = k.key
"""
# Whoever asks has repeated the batch: the row is marked, so that it outlives its settling (see KEEP_SECONDS).
PREPARED["batch"] = f"""
WITH o AS (
    UPDATE outbox SET published_at = coalesce(published_at, now()) WHERE id = $1::uuid RETURNING task_ids
)
SELECT {_T} FROM o, unnest(o.task_ids) WITH ORDINALITY AS i (id, n) JOIN tasks t USING (id) ORDER BY i.n
"""

# A walk over the users who have a backlog, from key to key of the index. A round that needs several turns gives
# everybody one task: with more, those of its last turn would get a whole turn for themselves. A round that fits
# into one turn gives equal shares, then what is left in equal shares to those who used theirs up, then again, and
# what is left after that to the first of them, so that a turn that is not full leaves nothing behind. It looks
# at no more than some 4 * limit rows. Each pass goes on where the one before ended: at the start of a user's
# backlog the index may have the entries of thousands of tasks dispatched since the last vacuum, and stepping over
# them once is enough.
_NEXT = f"""
SELECT user_id, run_at, id, {{n}} FROM tasks WHERE queue = $2 AND kind = $3 AND user_id > {{after}} AND {_BACKLOG}
ORDER BY user_id, run_at, id LIMIT 1
"""
_PICK = f"""
SELECT t.user_id, t.run_at, t.id, row_number() OVER (PARTITION BY t.user_id ORDER BY t.run_at, t.id) AS n
FROM (SELECT mine.* FROM {{users}} AS u, LATERAL (
    SELECT user_id, run_at, id FROM tasks
    WHERE queue = $2 AND kind = $3 AND user_id = u.user_id AND (run_at, id) {{behind}} (u.run_at, u.id) AND {_BACKLOG}
    ORDER BY run_at, id LIMIT (SELECT each FROM {{share}}) FOR UPDATE SKIP LOCKED) AS mine
LIMIT (SELECT free FROM {{share}})) AS t
"""


def _pass(k: int, each: str) -> str:
    """The CTEs of a pass over those who used up their share of pass ``k - 1``."""
    picked = " + ".join(f"(SELECT count(*) FROM pick{i})" for i in range(k))
    return f"""
), hungry{k} AS MATERIALIZED (
    SELECT user_id, run_at, id FROM pick{k - 1} WHERE n = (SELECT each FROM share{k - 1}) ORDER BY user_id
), share{k} AS MATERIALIZED (
    SELECT free, {each} AS each
    FROM (SELECT CASE $5 WHEN 0 THEN $4 - ({picked}) ELSE 0 END AS free,
        greatest((SELECT count(*) FROM hungry{k}), 1) AS users) AS c
), pick{k} AS MATERIALIZED ({_PICK.format(users=f"hungry{k}", behind=">", share=f"share{k}")}"""


# The first column tells a repetition that had nothing left to move from a turn that found nothing: either
# leaves the outbox alone.
PREPARED["dispatch"] = f"""
WITH RECURSIVE walk (user_id, run_at, id, n) AS (
    ({_NEXT.format(n="1", after="$5::bigint")})
    UNION ALL
    SELECT next.* FROM walk, LATERAL ({_NEXT.format(n="walk.n + 1", after="walk.user_id")}) AS next
    WHERE walk.n < $4::int
), share0 AS MATERIALIZED (
    SELECT $4 AS free, CASE $5 WHEN 0 THEN $4 / greatest(count(*), 1) ELSE 1 END AS each FROM walk
), pick0 AS MATERIALIZED ({_PICK.format(users="walk", behind=">=", share="share0")}
{_pass(1, "(free + users - 1) / users")}{_pass(2, "(free + users - 1) / users")}{_pass(3, "free")}
), moved AS (
    UPDATE tasks t SET state = 'queued', dispatch = dispatch + 1, version = version + 1, dispatched_at = now()
    FROM ({" UNION ALL ".join(f"SELECT id FROM pick{k}" for k in range(4))}) AS picked
    WHERE {_RELAXED} AND t.id = picked.id
    RETURNING {_T}
), turn AS MATERIALIZED (
    SELECT *, row_number() OVER (PARTITION BY user_id ORDER BY run_at, id) AS n FROM moved
), noted AS (
    INSERT INTO outbox (id, task_ids, published_at)
    SELECT $1::uuid, array_agg(id ORDER BY n, user_id), CASE WHEN $6::bool THEN now() END FROM turn
    HAVING count(*) > 0
)
SELECT EXISTS (SELECT FROM outbox WHERE id = $1::uuid),
    (SELECT CASE WHEN count(*) = $4 THEN max(user_id) END FROM walk), turn.*
FROM (SELECT) AS always LEFT JOIN turn ON true ORDER BY turn.n, turn.user_id
"""

# Nothing of it can be told again, so the caller does not repeat it. The state, and so the version, stays.
PREPARED["promote"] = """
WITH come AS (
    SELECT id FROM tasks WHERE NOT due AND finished_at IS NULL AND run_at <= now()
    ORDER BY run_at LIMIT $1 FOR UPDATE SKIP LOCKED
), promoted AS (
    UPDATE tasks t SET due = true FROM come WHERE t.id = come.id RETURNING t.queue, t.kind, t.user_id
)
SELECT DISTINCT queue, kind, user_id FROM promoted
"""

PREPARED["mark_published"] = f"""
WITH settled AS ({_SETTLE.format(ids="$1::uuid[]")}) {_SETTLE_TAKEN.format(ids="$1::uuid[]")}
"""
PREPARED["adopt_stale"] = f"""
WITH gone AS (
    DELETE FROM outbox WHERE published_at = 'infinity' AND created_at < now() - interval '{KEEP_SECONDS} s'
), old AS (
    SELECT id FROM outbox WHERE coalesce(published_at, created_at) <= now() - make_interval(secs => $1)
    ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE outbox o SET published_at = now() FROM old WHERE o.id = old.id RETURNING o.id, o.task_ids
)
SELECT taken.id, t.queue, t.kind, t.id, t.dispatch
FROM taken LEFT JOIN LATERAL unnest(taken.task_ids) WITH ORDINALITY AS i (id, n) ON true
    LEFT JOIN tasks t ON t.id = i.id AND t.state = 'queued'
ORDER BY taken.id, i.n
"""

# A row that this worker holds already is returned as it is. A redelivery takes over from a worker that lost
# its channel, but not the last attempt: its lease decides. An attempt that failed leaves an error, one that was lost
# with its worker does not: only after such a one the last attempt has to be alone.
_HELD = "t.state = 'running' AND t.worker = $1"
_CLAIM = f"""
UPDATE tasks t SET state = 'running', worker = $1,
    attempt = CASE WHEN {_HELD} THEN t.attempt ELSE t.attempt + 1 END,
    max_attempts = CASE t.max_attempts WHEN 0 THEN c.max_attempts ELSE t.max_attempts END,
    version = CASE WHEN {_HELD} THEN t.version ELSE t.version + 1 END,
    lease_until = CASE WHEN {_HELD} THEN t.lease_until ELSE now() + make_interval(secs => $2) END,
    started_at = CASE WHEN {_HELD} THEN t.started_at ELSE now() END,
    progress = CASE WHEN {_HELD} THEN t.progress END, note = CASE WHEN {_HELD} THEN t.note END,
    error = NULL
"""
_CLAIMS = """
unnest($3::bigint[], $4::int[], $5::bool[], $6::bool[], $7::int[])
    AS c (id, dispatch, redelivered, alone, max_attempts)
"""
_CLAIMABLE = f"""
t.id = c.id AND t.dispatch = c.dispatch AND ({_HELD}
    OR (t.state = 'queued' OR t.state = 'running' AND c.redelivered AND t.attempt < t.max_attempts)
        AND (c.alone OR t.attempt = 0 OR t.error IS NOT NULL OR t.attempt + 1 <> t.max_attempts))
"""
PREPARED["claim"] = f"{_CLAIM} FROM {_CLAIMS} WHERE {_RELAXED} AND {_CLAIMABLE} RETURNING {_T}"
# The same where something may be taken over, whose attempt is lost. The rows are locked before they are changed, as
# what is kept of an attempt must be what it was.
PREPARED["claim_redelivered"] = f"""
WITH had AS MATERIALIZED (
    SELECT c.id, c.max_attempts, t.state = 'running' AND NOT ({_HELD}) AS lost, t.dispatch, t.attempt, t.worker,
        t.started_at, t.max_attempts AS most
    FROM {_CLAIMS} JOIN tasks t ON {_CLAIMABLE}
    FOR UPDATE OF t
), kept AS (
    INSERT INTO task_attempts (task_id, dispatch, attempt, worker, started_at, error)
    SELECT id, dispatch, attempt, worker, started_at, format(
        'attempt %s of %s was lost: its worker ended or was cut off', attempt, most)
    FROM had WHERE lost ON CONFLICT DO NOTHING
)
{_CLAIM} FROM had AS c WHERE {_RELAXED} AND t.id = c.id RETURNING {_T}
"""
# What most attempts end by, in a statement of their own.
PREPARED["complete"] = """
UPDATE tasks t SET state = 'completed', version = t.version + 1, finished_at = now(), lease_until = NULL,
    result = nullif(o.result, '')::json, error = NULL
FROM unnest($2::bigint[], $3::int[], $4::int[], $5::text[]) AS o (id, dispatch, attempt, result)
WHERE t.id = o.id AND t.dispatch = o.dispatch AND t.attempt = o.attempt AND t.worker = $1
    AND t.state = 'running'
RETURNING t.id, t.version, t.finished_at, NULL
"""
# What fails keeps how far it was; what is tried again begins anew. The rows are locked before they are changed, as
# what is kept of an attempt must be what it was.
PREPARED["fail"] = """
WITH ended AS MATERIALIZED (
    SELECT o.*, t.started_at
    FROM unnest($2::bigint[], $3::int[], $4::int[], $5::bool[], $6::text[], $7::text[], $8::text[], $9::float8[])
        AS o (id, dispatch, attempt, for_good, result, error, trace, delay)
        JOIN tasks t ON t.id = o.id AND t.dispatch = o.dispatch AND t.attempt = o.attempt AND t.worker = $1
            AND t.state = 'running'
    FOR UPDATE OF t
), kept AS (
    INSERT INTO task_attempts (task_id, dispatch, attempt, worker, started_at, error, trace)
    SELECT id, dispatch, attempt, $1, started_at, error, nullif(trace, '') FROM ended ON CONFLICT DO NOTHING
)
UPDATE tasks t SET state = CASE WHEN o.for_good THEN 'failed' ELSE 'waiting' END, version = t.version + 1,
    finished_at = CASE WHEN o.for_good THEN now() END, lease_until = NULL, error = nullif(o.error, ''),
    result = CASE WHEN o.for_good THEN nullif(o.result, '')::json END,
    run_at = CASE WHEN o.for_good THEN t.run_at ELSE now() + make_interval(secs => greatest(o.delay, 0)) END,
    due = o.for_good OR o.delay <= 0,
    dispatched_at = CASE WHEN o.for_good THEN t.dispatched_at END,
    started_at = CASE WHEN o.for_good THEN t.started_at END,
    progress = CASE WHEN o.for_good THEN t.progress END, note = CASE WHEN o.for_good THEN t.note END
FROM ended AS o WHERE t.id = o.id
RETURNING t.id, t.version, t.finished_at, CASE WHEN NOT o.for_good THEN t.run_at END
"""
# Statements of their own: one that waited for the first run to commit has a snapshot from before.
PREPARED["finished_so"] = """
SELECT t.id, t.version, t.finished_at, NULL
FROM unnest($2::bigint[], $3::int[], $4::int[], $5::text[]) AS o (id, dispatch, attempt, state) JOIN tasks t
    ON t.id = o.id AND t.dispatch = o.dispatch AND t.attempt = o.attempt AND t.worker = $1
    AND t.state = o.state
"""
# What was to be tried again may have gone on since: the attempt that it left behind tells. Its version then is not
# known any more, and nobody is to be told of it.
PREPARED["failed_so"] = """
SELECT t.id, CASE WHEN t.state = 'waiting' AND t.dispatch = o.dispatch THEN t.version ELSE 0 END, NULL, t.run_at
FROM unnest($2::bigint[], $3::int[], $4::int[], $5::text[]) AS o (id, dispatch, attempt, error)
    JOIN task_attempts a ON a.task_id = o.id AND a.dispatch = o.dispatch AND a.attempt = o.attempt AND a.worker = $1
        AND a.error = o.error
    JOIN tasks t ON t.id = o.id
"""

_BACK = """
dispatched_at = NULL, started_at = NULL, lease_until = NULL, progress = NULL, note = NULL, version = version + 1
"""

PREPARED["release"] = f"""
UPDATE tasks t SET state = 'waiting', dispatched_at = NULL, started_at = NULL, lease_until = NULL,
    progress = NULL, note = NULL,
    attempt = CASE t.state WHEN 'running' THEN t.attempt - 1 ELSE t.attempt END,
    version = CASE t.state WHEN 'running' THEN t.version + 1 ELSE t.version END
FROM unnest($2::bigint[], $3::int[]) AS c (id, dispatch)
WHERE t.id = c.id AND t.dispatch = c.dispatch AND t.worker = $1 AND t.state IN ('running', 'waiting')
RETURNING {_T}
"""
# Only leases with less than three quarters left are written, so that short tasks cost nothing here. Rows that
# are being finished or reported on at this moment are passed over: waiting for them could be a deadlock. Each id comes
# with whether its lease was passed over.
PREPARED["renew"] = """
WITH held AS MATERIALIZED (
    SELECT id, lease_until FROM tasks WHERE id = ANY ($3::bigint[]) AND state = 'running' AND worker = $1
), due AS (
    SELECT t.id FROM held JOIN tasks t USING (id)
    WHERE held.lease_until < now() + make_interval(secs => $2 * 0.75) AND t.state = 'running'
        AND t.worker = $1
    FOR UPDATE OF t SKIP LOCKED
), renewed AS (
    UPDATE tasks t SET lease_until = now() + make_interval(secs => $2) FROM due WHERE t.id = due.id
)
SELECT held.id, held.lease_until < now() + make_interval(secs => $2 * 0.75) AND due.id IS NULL
FROM held LEFT JOIN due USING (id)
"""
PREPARED["cancel"] = f"""
UPDATE tasks SET state = 'cancelled', version = version + 1, finished_at = now(), lease_until = NULL
WHERE id = $2 AND user_id = $1 AND state IN ('waiting', 'queued', 'running') RETURNING {_ALL}
"""
# The version is that under which the caller has seen it failed or cancelled: when it is another one by now, then
# because this has been done.
PREPARED["retry"] = f"""
UPDATE tasks SET state = 'waiting', version = version + 1, attempt = 0, run_at = now(), due = true, finished_at = NULL,
    dispatched_at = NULL, started_at = NULL, worker = NULL, result = NULL, error = NULL, progress = NULL, note = NULL
WHERE id = $1 AND version = $2 AND state IN ('failed', 'cancelled') RETURNING {_ALL}
"""

# -- repair


def _expire(which: str) -> str:
    """CTEs of which the last, expired, has the running tasks that were taken back."""
    return f"""
dead AS MATERIALIZED (
    SELECT id, dispatch, attempt, worker, started_at, format(
        'lease expired on attempt %s of %s: the worker stopped answering', attempt, max_attempts) AS error
    FROM tasks WHERE {_IN_FLIGHT} AND state = 'running' {which}
), lost AS (
    INSERT INTO task_attempts (task_id, dispatch, attempt, worker, started_at, error) SELECT * FROM dead
    ON CONFLICT DO NOTHING
), expired AS (
    UPDATE tasks t SET state = CASE WHEN t.attempt < max_attempts THEN 'waiting' ELSE 'failed' END,
        dispatched_at = CASE WHEN t.attempt >= max_attempts THEN dispatched_at END,
        started_at = CASE WHEN t.attempt >= max_attempts THEN t.started_at END,
        finished_at = CASE WHEN t.attempt >= max_attempts THEN now() END,
        progress = CASE WHEN t.attempt >= max_attempts THEN progress END,
        note = CASE WHEN t.attempt >= max_attempts THEN note END,
        error = CASE WHEN t.attempt >= max_attempts THEN dead.error END, lease_until = NULL, version = version + 1
    FROM dead WHERE t.id = dead.id RETURNING {_T}
)
"""


PREPARED["expire_leases"] = f"""
WITH {_expire("AND lease_until <= now() LIMIT $1 FOR UPDATE SKIP LOCKED")} SELECT * FROM expired
"""
PREPARED["requeue_lost"] = f"""
WITH lost AS (
    SELECT id FROM tasks
    WHERE {_IN_FLIGHT} AND queue = $1 AND kind = $2 AND dispatched_at <= now() - make_interval(secs => $3)
        AND state = 'queued'
    ORDER BY dispatched_at LIMIT $4 FOR UPDATE SKIP LOCKED
)
UPDATE tasks t SET state = 'waiting', {_BACK} FROM lost WHERE t.id = lost.id RETURNING {_T}
"""
PREPARED["reset_in_flight"] = f"""
WITH {_expire("FOR UPDATE")}, queued AS (
    UPDATE tasks SET state = 'waiting', {_BACK} WHERE {_IN_FLIGHT} AND state = 'queued' RETURNING id
), emptied AS (
    DELETE FROM outbox
)
SELECT (SELECT count(*) FROM expired) + (SELECT count(*) FROM queued)
"""
PREPARED["count_queued"] = f"""
SELECT queue, kind, count(*) FROM tasks WHERE {_IN_FLIGHT} AND state = 'queued' GROUP BY queue, kind
"""

# A walk by the primary key: there is no index by the end of a task, which every task would have to pay for.
PREPARED["delete_finished"] = """
WITH seen AS MATERIALIZED (
    SELECT id, created_at < now() - make_interval(secs => $1) AS is_old FROM tasks WHERE id > $2 ORDER BY id LIMIT $3
), deleted AS (
    DELETE FROM tasks t USING seen
    WHERE t.id = seen.id AND seen.is_old AND t.finished_at < now() - make_interval(secs => $1) RETURNING t.id
), logs AS (
    DELETE FROM task_log l USING deleted WHERE l.task_id = deleted.id
), attempts AS (
    DELETE FROM task_attempts a USING deleted WHERE a.task_id = deleted.id
)
SELECT (SELECT count(*) FROM deleted),
    (SELECT CASE WHEN count(*) = $3 AND bool_and(is_old) THEN max(id) END FROM seen)
"""

# -- reading

# `+ 0`: found by their ids, never by walking all tasks of the user.
PREPARED["find_tasks"] = f"SELECT {_ALL} FROM tasks WHERE id = ANY ($1::bigint[])"
PREPARED["get_tasks"] = f"SELECT {_ALL} FROM tasks WHERE id = ANY ($2::bigint[]) AND user_id + 0 = $1"


def list_in_flight(condition: str) -> str:
    """Queued or running tasks of a user. Parameters: user, before, those of the condition, limit."""
    return f"""
SELECT {_LISTED} FROM tasks t WHERE {_IN_FLIGHT} AND user_id + 0 = %s AND id + 0 < %s AND {condition}
ORDER BY id DESC LIMIT %s
"""


def _walk(statuses: int) -> str:
    # The inner bound and order are the whole key of tasks_list: the planner can take no other index, however wrong
    # its statistics. There is no lower bound in there, because an index scan does not stop at one on several
    # columns but filters on; it stops after as many entries as are wanted, be the last of them another list's.
    one = """
SELECT id FROM (
    SELECT user_id, status, id FROM tasks WHERE (user_id, status, id) < (%s, %s, %s)
    ORDER BY user_id DESC, status DESC, id DESC LIMIT %s) AS s WHERE user_id = %s AND status = %s
"""
    return f"SELECT id FROM ({' UNION ALL '.join([one] * statuses)}) AS w ORDER BY id DESC LIMIT %s"


def list_walk(statuses: int) -> str:
    """The newest of some statuses. Parameters: (user, status, before, limit, user, status) a status, limit."""
    return f"SELECT {_LISTED} FROM ({_walk(statuses)}) AS w JOIN tasks t USING (id) ORDER BY id DESC"


def list_filtered(statuses: int, condition: str) -> str:
    """What passes a condition among the newest of some statuses; it stops at the last row of the page.

    Before a task come two columns: whether it passes, and whether it is the last that may be looked at. That one
    comes in any case, since where the walk ends must be told by the statement that walks: another one would walk
    among other rows.
    Parameters: those of the condition, look at, (user, status, before, look at, user, status) a status, look at, limit.
    """
    return f"""
SELECT * FROM (
    SELECT {condition} AS passes, w.n = %s AS is_last, {_LISTED}
    FROM (SELECT id, row_number() OVER (ORDER BY id DESC) AS n FROM ({_walk(statuses)}) AS w) AS w
        JOIN tasks t USING (id)) AS looked_at
WHERE passes OR is_last ORDER BY id DESC LIMIT %s
"""
