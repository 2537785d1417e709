"""Attempts in PostgreSQL: how a worker claims, ends and releases a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.ports.attempts import Claim, Finished, Held, Outcome
from taskd.store.postgres.arrays import array, texts
from taskd.store.postgres.connection import PostgresConnection, Rows
from taskd.store.postgres.database import PostgresDatabase
from taskd.store.postgres.rows import IN_FLIGHT, RELAXED_COMMIT, T, to_tasks
from taskd.store.refusals import sanitize

# A task that this worker holds already is returned unchanged.
_HELD = "t.state = 'running' AND t.worker = $1"

PREPARED = {
    # PostgreSQL evaluates the condition on the worker once. A fence that is committed at the same moment may come too
    # late for it: the next take_back finds these tasks.
    "claim": f"""
UPDATE tasks t SET state = 'running', worker = $1,
    attempt = CASE WHEN {_HELD} THEN t.attempt ELSE t.attempt + 1 END,
    max_attempts = CASE t.max_attempts WHEN 0 THEN c.max_attempts ELSE t.max_attempts END,
    version = CASE WHEN {_HELD} THEN t.version ELSE t.version + 1 END,
    started_at = CASE WHEN {_HELD} THEN t.started_at ELSE now() END,
    begun = CASE WHEN {_HELD} THEN t.begun ELSE t.losses = 0 END,
    progress = CASE WHEN {_HELD} THEN t.progress END, note = CASE WHEN {_HELD} THEN t.note END,
    error = NULL
FROM unnest($2::bigint[], $3::int[], $4::int[]) AS c (id, dispatch, max_attempts)
WHERE {RELAXED_COMMIT}
    AND EXISTS (SELECT FROM workers WHERE name = $1 AND workers.state IN ('serving', 'draining'))
    AND t.id = c.id AND t.dispatch = c.dispatch AND (t.state = 'queued' OR {_HELD})
RETURNING {T}
""",
    "begin": """
UPDATE tasks t SET begun = true
FROM unnest($2::bigint[], $3::int[], $4::int[]) AS c (id, dispatch, attempt)
WHERE t.id = c.id AND t.dispatch = c.dispatch AND t.attempt = c.attempt AND t.worker = $1 AND t.state = 'running'
RETURNING t.id, t.dispatch, t.attempt
""",
    # Most attempts end this way, so it has a separate, cheaper statement.
    "complete": """
UPDATE tasks t SET state = 'completed', version = t.version + 1, finished_at = now(), losses = 0,
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
    finished_at = CASE WHEN o.for_good THEN now() END, losses = 0, error = nullif(o.error, ''),
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
UPDATE tasks t SET state = 'waiting', dispatched_at = NULL, started_at = NULL, progress = NULL, note = NULL,
    attempt = c.attempt - 1,
    version = CASE t.state WHEN 'running' THEN t.version + 1 ELSE t.version END,
    returns = CASE t.state WHEN 'running' THEN t.returns + $5::bool::int ELSE t.returns END
FROM unnest($2::bigint[], $3::int[], $4::int[]) AS c (id, dispatch, attempt)
WHERE t.id = c.id AND t.dispatch = c.dispatch AND t.worker = $1
    AND (t.state = 'running' AND t.attempt = c.attempt OR t.state = 'waiting' AND t.attempt = c.attempt - 1)
RETURNING {T}
""",
    "held_by": f"""
SELECT id, dispatch, attempt FROM tasks WHERE {IN_FLIGHT} AND state = 'running' AND worker = $1
""",
}


class PostgresAttempts(PostgresDatabase):
    """What workers do of IAttemptStore, on PostgreSQL. Every batch is sorted by task id, so that two batches lock rows
    in the same order and cannot deadlock."""

    async def claim(self, worker: str, claims: Sequence[Claim]) -> Sequence[Task]:
        if not claims:
            return []
        # one array for each field of Claim
        columns = [array(column) for column in zip(*sorted(claims), strict=True)]
        return to_tasks(await self._call("claim", worker, *columns))

    async def begin(self, worker: str, held: Sequence[Held]) -> Sequence[Held]:
        if not held:
            return []
        columns = [array(column) for column in zip(*sorted(held), strict=True)]
        return [Held(*row) for row in await self._call("begin", worker, *columns)]

    async def finish(self, worker: str, outcomes: Sequence[Outcome], again: bool = False) -> Mapping[int, Finished]:
        outcomes = sorted(outcomes, key=lambda o: o.task_id)
        completed = [o for o in outcomes if o.state is State.COMPLETED]
        failed = [o for o in outcomes if o.state is not State.COMPLETED]
        # all arrays first: a text that cannot be stored leaves every outcome of the batch for another try
        results = texts([o.result or "" for o in completed])
        columns = (
            array([o.state is State.FAILED for o in failed]),
            texts([o.result or "" for o in failed]),
            texts([sanitize(o.error) for o in failed]),
            texts([sanitize(o.trace) for o in failed]),
            array([o.delay for o in failed]),
        )
        rows: Rows = []
        if completed:
            rows += await self._call(_end, again, "complete", worker, completed, results)
        if failed:
            rows += await self._call(_end, again, "fail", worker, failed, *columns)
        return {task_id: Finished(*row) for task_id, *row in rows}

    async def release(self, worker: str, held: Sequence[Held], stopping: bool = False) -> Sequence[Task]:
        if not held:
            return []
        # one array for each field of Held
        columns = [array(column) for column in zip(*sorted(held), strict=True)]
        return to_tasks(await self._call("release", worker, *columns, stopping))

    async def held_by(self, worker: str) -> Sequence[Held]:
        return [Held(*row) for row in await self._call("held_by", worker)]


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
