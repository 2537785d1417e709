"""Attempts in PostgreSQL: how a worker claims, keeps, ends and releases a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twisted.internet.task import deferLater

from taskd.model.states import State
from taskd.model.tasks import FailedAttempt, Task
from taskd.ports.attempts import Claim, Finished, Outcome
from taskd.store.opening import MIN_DELAY
from taskd.store.postgres.arrays import array, texts
from taskd.store.postgres.connection import PostgresConnection, Rows
from taskd.store.postgres.database import PostgresDatabase
from taskd.store.postgres.rows import IN_FLIGHT, RELAXED_COMMIT, T, to_tasks
from taskd.store.refusals import sanitize
from taskd.store.rows import FAILED_ATTEMPTS_LISTED, TO_WAITING

# A task that this worker holds already is returned unchanged. A redelivered message takes a task over from a worker
# that lost its channel. The last attempt is not taken over: its lease decides. A failed attempt leaves an error, an
# attempt that was lost with its worker does not: only after a lost attempt must the last attempt run alone.
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


def _expire(which: str) -> str:
    """CTEs; the last, ``expired``, returns the running tasks that were moved back to waiting or failed."""
    return f"""
dead AS MATERIALIZED (
    SELECT id, dispatch, attempt, worker, started_at, format(
        'lease expired on attempt %s of %s: the worker stopped answering', attempt, max_attempts) AS error
    FROM tasks WHERE {IN_FLIGHT} AND state = 'running' {which}
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
    FROM dead WHERE t.id = dead.id RETURNING {T}
)
"""


PREPARED = {
    "claim": f"{_CLAIM} FROM {_CLAIMS} WHERE {RELAXED_COMMIT} AND {_CLAIMABLE} RETURNING {T}",
    # The same where attempts may be taken over: those are recorded as lost. The rows are locked before they change,
    # because the record describes the attempt as it was.
    "claim_redelivered": f"""
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
{_CLAIM} FROM had AS c WHERE {RELAXED_COMMIT} AND t.id = c.id RETURNING {T}
""",
    # Most attempts end this way, so it has a separate, cheaper statement.
    "complete": """
UPDATE tasks t SET state = 'completed', version = t.version + 1, finished_at = now(), lease_until = NULL,
    result = nullif(o.result, '')::json, error = NULL
FROM unnest($2::bigint[], $3::int[], $4::int[], $5::text[]) AS o (id, dispatch, attempt, result)
WHERE t.id = o.id AND t.dispatch = o.dispatch AND t.attempt = o.attempt AND t.worker = $1
    AND t.state = 'running'
RETURNING t.id, t.version, t.finished_at, NULL
""",
    # A failed task keeps its progress, a task that is retried begins again. The rows are locked before they change,
    # because the record describes the attempt as it was.
    "fail": """
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
""",
    # The next two are separate statements: a statement that waited until the first run committed still has a snapshot
    # from before that commit.
    "find_recorded_end": """
SELECT t.id, t.version, t.finished_at, NULL
FROM unnest($2::bigint[], $3::int[], $4::int[], $5::text[]) AS o (id, dispatch, attempt, state) JOIN tasks t
    ON t.id = o.id AND t.dispatch = o.dispatch AND t.attempt = o.attempt AND t.worker = $1
    AND t.state = o.state
""",
    # A task that was to be retried may have moved on since then; its record in task_attempts shows that this attempt
    # did fail. Version 0 tells the caller not to announce the task.
    "find_recorded_retry": """
SELECT t.id, CASE WHEN t.state = 'waiting' AND t.dispatch = o.dispatch THEN t.version ELSE 0 END, NULL, t.run_at
FROM unnest($2::bigint[], $3::int[], $4::int[], $5::text[]) AS o (id, dispatch, attempt, error)
    JOIN task_attempts a ON a.task_id = o.id AND a.dispatch = o.dispatch AND a.attempt = o.attempt AND a.worker = $1
        AND a.error = o.error
    JOIN tasks t ON t.id = o.id
""",
    "release": f"""
UPDATE tasks t SET state = 'waiting', dispatched_at = NULL, started_at = NULL, lease_until = NULL,
    progress = NULL, note = NULL,
    attempt = CASE t.state WHEN 'running' THEN t.attempt - 1 ELSE t.attempt END,
    version = CASE t.state WHEN 'running' THEN t.version + 1 ELSE t.version END
FROM unnest($2::bigint[], $3::int[]) AS c (id, dispatch)
WHERE t.id = c.id AND t.dispatch = c.dispatch AND t.worker = $1 AND t.state IN ('running', 'waiting')
RETURNING {T}
""",
    # Writes only leases that have less than three quarters left, so that short tasks cost nothing here. It skips rows
    # that another statement is finishing or reporting on: waiting for them could deadlock. Each id comes with a flag:
    # the lease was due and its row was skipped.
    "renew": """
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
""",
    "expire_leases": f"""
WITH {_expire("AND lease_until <= now() LIMIT $1 FOR UPDATE SKIP LOCKED")} SELECT * FROM expired
""",
    "reset_in_flight": f"""
WITH {_expire("FOR UPDATE")}, queued AS (
    UPDATE tasks SET state = 'waiting', {TO_WAITING} WHERE {IN_FLIGHT} AND state = 'queued' RETURNING id
), emptied AS (
    DELETE FROM outbox
)
SELECT (SELECT count(*) FROM expired) + (SELECT count(*) FROM queued)
""",
    "failed_attempts": """
SELECT dispatch, attempt, worker, started_at, ended_at, error, trace FROM task_attempts
WHERE task_id = $1 ORDER BY dispatch DESC, attempt DESC LIMIT $2
""",
}


class PostgresAttempts(PostgresDatabase):
    """IAttemptStore on PostgreSQL. Every batch is sorted by task id, so that two batches lock rows in the same order
    and cannot deadlock."""

    async def claim(self, worker: str, lease: float, claims: Sequence[Claim]) -> Sequence[Task]:
        if not claims:
            return []
        statement = "claim_redelivered" if any(c.redelivered for c in claims) else "claim"
        # one array for each field of Claim
        columns = [array(column) for column in zip(*sorted(claims), strict=True)]
        return to_tasks(await self._call(statement, worker, lease, *columns))

    async def finish(self, worker: str, outcomes: Sequence[Outcome], again: bool = False) -> Mapping[int, Finished]:
        outcomes = sorted(outcomes, key=lambda o: o.task_id)
        completed = [o for o in outcomes if o.state is State.COMPLETED]
        failed = [o for o in outcomes if o.state is not State.COMPLETED]
        rows: Rows = []
        if completed:
            results = texts([o.result or "" for o in completed])
            rows += await self._call(_end, again, "complete", worker, completed, results)
        if failed:
            rows += await self._call(
                _end,
                again,
                "fail",
                worker,
                failed,
                array([o.state is State.FAILED for o in failed]),
                texts([o.result or "" for o in failed]),
                texts([sanitize(o.error) for o in failed]),
                texts([sanitize(o.trace) for o in failed]),
                array([o.delay for o in failed]),
            )
        return {task_id: Finished(*row) for task_id, *row in rows}

    async def release(self, worker: str, held: Sequence[Claim]) -> Sequence[Task]:
        held = sorted(held)
        args = array([c.task_id for c in held]), array([c.dispatch for c in held])
        return to_tasks(await self._call("release", worker, *args))

    async def renew(self, worker: str, lease: float, task_ids: Sequence[int]) -> frozenset[int]:
        args = worker, lease, array(task_ids)
        rows = await self._call("renew", *args)
        if any(skipped for _, skipped in rows):
            # the statement that holds the lock ends soon; the lease must be renewed all the same
            await deferLater(self._clock, MIN_DELAY)
            rows = await self._call("renew", *args)
        return frozenset(task_id for task_id, _ in rows)

    async def expire_leases(self, limit: int) -> Sequence[Task]:
        return to_tasks(await self._call("expire_leases", limit, repeat=False))

    async def reset_in_flight(self) -> int:
        return int((await self._call("reset_in_flight"))[0][0])

    async def failed_attempts(self, task_id: int) -> Sequence[FailedAttempt]:
        rows = await self._call("failed_attempts", task_id, FAILED_ATTEMPTS_LISTED)
        return [FailedAttempt(*row) for row in reversed(rows)]


async def _end(
    connection: PostgresConnection,
    repeated: bool,
    again: bool,
    statement: str,
    worker: str,
    outcomes: Sequence[Outcome],
    *columns: str,
) -> Rows:
    """Finish attempts; ``columns`` are the arrays of the statement beside worker, tasks, dispatches and attempts."""
    rows = await connection.call(statement, worker, *_attempts(outcomes), *columns)
    if (again or repeated) and len(rows) < len(outcomes):
        ended = [o for o in outcomes if o.state is not State.WAITING]
        retried = [o for o in outcomes if o.state is State.WAITING]
        states = texts([o.state.value for o in ended])
        rows += await connection.call("find_recorded_end", worker, *_attempts(ended), states)
        done = {row[0] for row in rows}
        errors = texts([sanitize(o.error) for o in retried])
        recorded = await connection.call("find_recorded_retry", worker, *_attempts(retried), errors)
        rows += [row for row in recorded if row[0] not in done]
    return rows


def _attempts(outcomes: Sequence[Outcome]) -> tuple[str, str, str]:
    """Task ids, dispatch numbers and attempt numbers as arrays."""
    return (
        array([o.task_id for o in outcomes]),
        array([o.dispatch for o in outcomes]),
        array([o.attempt for o in outcomes]),
    )
