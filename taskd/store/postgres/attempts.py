"""Attempts in PostgreSQL: how a worker finds, begins, ends and gives back what is assigned to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from taskd.model.errors import Unavailable
from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.ports.attempts import Assigned, Begun, Claim, Finished, Held, Outcome, Standing, Started
from taskd.store.postgres.arrays import array, texts
from taskd.store.postgres.connection import PostgresConnection, Rows
from taskd.store.postgres.database import PostgresDatabase
from taskd.store.postgres.giving_back import given_back
from taskd.store.postgres.rows import ALL_ASSERTED, HELD, LISTED, RELAXED_COMMIT, TIMELINE, to_task, to_tasks
from taskd.store.refusals import sanitize
from taskd.store.rows import LOOKED_BYTES, LOOKED_TASKS, NOT_BEGUN, columns

_BEGIN = """
UPDATE tasks t SET state = 'running', version = CASE t.state WHEN 'queued' THEN t.version + 1 ELSE t.version END,
    started_at = CASE t.state WHEN 'queued' THEN now() - make_interval(secs => b.age) ELSE t.started_at END
FROM unnest($2::bigint[], $3::int[], $4::float8[]) AS b (id, dispatch, age)
WHERE {} AND t.id = b.id AND t.dispatch = b.dispatch AND t.worker = $1 AND t.state IN ('queued', 'running')
RETURNING t.id, t.version, t.started_at
"""
# Whether the begin was stored makes no difference to the version.
_ENDED = """
version = t.version + CASE t.state WHEN 'queued' THEN 2 ELSE 1 END, held = false, losses = 0
"""
_OPEN = """
JOIN tasks t ON t.id = o.id AND t.dispatch = o.dispatch AND t.attempt = o.attempt AND t.worker = $1
    AND t.state IN ('queued', 'running')
"""


def release(which: str, stopping: str) -> str:
    """CTEs that give back the tasks ``t`` for which ``which`` is true. The last, ``released``, returns those that wait
    now. The rows are locked in the order of every other batch. `+ 0` keeps the planner from walking all tasks by their
    primary key.
    """
    return f"""
given AS MATERIALIZED (
    SELECT t.id FROM {which} ORDER BY t.id + 0 FOR UPDATE OF t
), dropped AS (
    UPDATE tasks t SET {given_back(stopping)}
    FROM given WHERE t.id = given.id RETURNING {LISTED}
), released AS (
    SELECT * FROM dropped WHERE state = 'waiting'
)"""


PREPARED = {
    # NOT IN (SELECT ...) looks each id up in a hash table. A large payload is read alone.
    "look": f"""
SELECT username, weight, {columns("t")}
FROM (
    SELECT *, sum(octet_length(payload::text)) OVER up AS bytes, row_number() OVER up AS n
    FROM (
        SELECT * FROM tasks
        WHERE held AND worker = $1 AND state = 'queued' AND {ALL_ASSERTED} AND id NOT IN (SELECT unnest($2::bigint[]))
        ORDER BY id LIMIT {LOOKED_TASKS}) AS t
    WINDOW up AS (ORDER BY id)) AS t
    JOIN users u ON u.id = t.user_id
WHERE n = 1 OR bytes <= {LOOKED_BYTES}
ORDER BY t.id
""",
    "standing": f"""
SELECT t.id, t.dispatch, t.state IN ('queued', 'running'), w.timeline = {TIMELINE}
FROM workers w LEFT JOIN LATERAL (
    SELECT id, dispatch, state FROM tasks WHERE held AND worker = w.name OFFSET 0) AS t ON true
WHERE w.name = $1
""",
    "has_asserted": f"SELECT timeline = {TIMELINE} FROM workers WHERE name = $1",
    # The row of the worker says it in the same transaction: until then no turn assigns anything.
    "assert_held": f"""
WITH said AS MATERIALIZED (
    UPDATE workers SET timeline = {TIMELINE} WHERE name = $1 AND state IN ('serving', 'draining') RETURNING name
), known AS MATERIALIZED (
    SELECT c.*
    FROM said, unnest($2::bigint[], $3::int[], $4::int[], $5::int[], $6::int[], $7::timestamptz[])
        AS c (id, dispatch, attempt, max_attempts, version, created_at)
        JOIN tasks t ON t.id = c.id AND t.created_at = c.created_at AND (
            t.dispatch < c.dispatch AND t.state IN ('waiting', 'queued', 'running')
            OR t.dispatch = c.dispatch AND t.worker = $1 AND {HELD})
    ORDER BY t.id + 0 FOR UPDATE OF t
), made_again AS (
    UPDATE tasks t SET state = 'queued', worker = $1, held = true, due = true, dispatch = c.dispatch,
        attempt = c.attempt, max_attempts = c.max_attempts, version = greatest(t.version, c.version) + 1, {NOT_BEGUN}
    FROM known c WHERE t.id = c.id AND t.dispatch < c.dispatch
)
SELECT id FROM known
""",
    "begin": _BEGIN.format("true"),
    "mark_begun": _BEGIN.format(RELAXED_COMMIT),
    # Most attempts end this way, so it has a separate, cheaper statement.
    "complete": f"""
UPDATE tasks t SET state = 'completed', finished_at = now(), result = nullif(o.result, '')::json, error = NULL,
    started_at = coalesce(t.started_at, now() - make_interval(secs => o.age)), {_ENDED}
FROM unnest($2::bigint[], $3::int[], $4::int[], $5::float8[], $6::text[]) AS o (id, dispatch, attempt, age, result)
WHERE t.id = o.id AND t.dispatch = o.dispatch AND t.attempt = o.attempt AND t.worker = $1
    AND t.state IN ('queued', 'running')
RETURNING t.id, t.version, t.started_at, t.finished_at, NULL
""",
    # A failed task keeps its progress, a task that is retried begins again. The rows are locked before they change,
    # because the record describes the attempt as it was.
    "fail": f"""
WITH ended AS MATERIALIZED (
    SELECT o.*, coalesce(t.started_at, now() - make_interval(secs => o.age)) AS began
    FROM unnest($2::bigint[], $3::int[], $4::int[], $5::float8[], $6::bool[], $7::text[], $8::text[], $9::text[],
        $10::float8[]) AS o (id, dispatch, attempt, age, for_good, result, error, trace, delay)
        {_OPEN}
    FOR UPDATE OF t
), kept AS (
    INSERT INTO task_attempts (task_id, dispatch, attempt, worker, started_at, error, trace)
    SELECT id, dispatch, attempt, $1, began, error, nullif(trace, '') FROM ended ON CONFLICT DO NOTHING
)
UPDATE tasks t SET state = CASE WHEN o.for_good THEN 'failed' ELSE 'waiting' END, {_ENDED},
    finished_at = CASE WHEN o.for_good THEN now() END, error = nullif(o.error, ''),
    result = CASE WHEN o.for_good THEN nullif(o.result, '')::json END,
    run_at = CASE WHEN o.for_good THEN t.run_at ELSE now() + make_interval(secs => greatest(o.delay, 0)) END,
    due = o.for_good OR o.delay <= 0,
    started_at = CASE WHEN o.for_good THEN o.began END,
    progress = CASE WHEN o.for_good THEN t.progress END, note = CASE WHEN o.for_good THEN t.note END
FROM ended AS o WHERE t.id = o.id
RETURNING t.id, t.version, t.started_at, t.finished_at, CASE WHEN NOT o.for_good THEN t.run_at END
""",
    # The next two are separate statements: a statement that waited until the first run committed still has a snapshot
    # from before that commit.
    "find_recorded_end": """
SELECT t.id, t.version, t.started_at, t.finished_at, NULL
FROM unnest($2::bigint[], $3::int[], $4::int[], $5::text[]) AS o (id, dispatch, attempt, state) JOIN tasks t
    ON t.id = o.id AND t.dispatch = o.dispatch AND t.attempt = o.attempt AND t.worker = $1
    AND t.state = o.state
""",
    # A task that was to be retried may have moved on since then; its record in task_attempts shows that this attempt
    # did fail. Version 0 tells the caller not to announce the task.
    "find_recorded_retry": """
SELECT t.id, CASE WHEN t.state = 'waiting' AND t.dispatch = o.dispatch THEN t.version ELSE 0 END, NULL, NULL, t.run_at
FROM unnest($2::bigint[], $3::int[], $4::int[], $5::text[]) AS o (id, dispatch, attempt, error)
    JOIN task_attempts a ON a.task_id = o.id AND a.dispatch = o.dispatch AND a.attempt = o.attempt AND a.worker = $1
        AND a.error = o.error
    JOIN tasks t ON t.id = o.id
""",
    "release": "WITH"
    + release(
        "unnest($2::bigint[], $3::int[]) AS h (id, dispatch)"
        " JOIN tasks t ON t.id = h.id AND t.dispatch = h.dispatch AND t.worker = $1 AND " + HELD,
        "$4::bool",
    )
    + "SELECT * FROM released",
    # For a repetition: an earlier run has made them waiting, or has found them so.
    "find_released": f"""
SELECT {LISTED}
FROM unnest($1::bigint[], $2::int[]) AS h (id, dispatch) JOIN tasks t ON t.id = h.id AND t.dispatch = h.dispatch
WHERE t.state = 'waiting' AND NOT t.held AND t.due
""",
}


class PostgresAttempts(PostgresDatabase):
    """What workers do of IAttemptStore, on PostgreSQL. Every batch is sorted by task id, so that two batches lock rows
    in the same order and cannot deadlock."""

    async def look(self, worker: str, known: Sequence[int]) -> Sequence[Assigned]:
        rows = await self._call("look", worker, array(known), brief=True)
        return [Assigned(to_task(row), user, weight) for user, weight, *row in rows]

    async def standing(self, worker: str) -> Sequence[Standing]:
        rows = await self._call("standing", worker, brief=True)
        _check_asserted(row[3] for row in rows)
        return [Standing(*row[:3]) for row in rows if row[0] is not None]

    async def assert_held(self, worker: str, claims: Sequence[Claim]) -> Sequence[int]:
        # one array for each field of Claim
        columns = [array(column) for column in zip(*sorted(claims), strict=True)] or ["{}"] * len(Claim._fields)
        return [task_id for (task_id,) in await self._call(_assert_held, worker, *columns)]

    async def begin(self, worker: str, begun: Sequence[Begun], flush: bool) -> Mapping[int, Started]:
        if not begun:
            return {}
        # one array for each field of Begun
        columns = [array(column) for column in zip(*sorted(begun), strict=True)]
        rows = await self._call("begin" if flush else "mark_begun", worker, *columns)
        return {task_id: Started(*row) for task_id, *row in rows}

    async def finish(self, worker: str, outcomes: Sequence[Outcome], again: bool = False) -> Mapping[int, Finished]:
        outcomes = sorted(outcomes, key=lambda o: o.task_id)
        completed = [o for o in outcomes if o.state is State.COMPLETED]
        failed = [o for o in outcomes if o.state is not State.COMPLETED]
        # all arrays first: a text that cannot be stored leaves every outcome of the batch for another try
        results = array([o.age for o in completed]), texts([o.result or "" for o in completed])
        columns = (
            array([o.age for o in failed]),
            array([o.state is State.FAILED for o in failed]),
            texts([o.result or "" for o in failed]),
            texts([sanitize(o.error) for o in failed]),
            texts([sanitize(o.trace) for o in failed]),
            array([o.delay for o in failed]),
        )
        rows: Rows = []
        if completed:
            rows += await self._call(_end, again, "complete", worker, completed, *results)
        if failed:
            rows += await self._call(_end, again, "fail", worker, failed, *columns)
        return {task_id: Finished(*row) for task_id, *row in rows}

    async def release(self, worker: str, held: Sequence[Held], stopping: bool = False) -> Sequence[Task]:
        if not held:
            return []
        # one array for each field of Held
        columns = [array(column) for column in zip(*sorted(held), strict=True)]
        return to_tasks(await self._call(_release, worker, columns, stopping))


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
    if len(rows) < len(outcomes):
        _check_asserted(row[0] for row in await connection.call("has_asserted", worker))
        # the worker may just have said it
        rows += await connection.call(statement, worker, *_attempts(outcomes), *columns)
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


async def _assert_held(connection: PostgresConnection, again: bool, *args: Any) -> Rows:
    """Make lost assignments again. It fails soon while somebody locks their rows: meanwhile it locks that of the
    worker, for which the watchdog waits."""
    return await connection.call("assert_held", *args, brief=True, lock_timeout="1s")


def _check_asserted(asserted: Iterable[bool]) -> None:
    """Raise Unavailable if a worker has not yet said what it holds: the database does not know then what is its own."""
    if not all(asserted):
        raise Unavailable("the database has gone on from an older state, and does not know what the worker holds")


def _attempts(outcomes: Sequence[Outcome]) -> tuple[str, str, str]:
    """Task ids, dispatch numbers and attempt numbers as arrays."""
    return (
        array([o.task_id for o in outcomes]),
        array([o.dispatch for o in outcomes]),
        array([o.attempt for o in outcomes]),
    )


async def _release(
    connection: PostgresConnection, again: bool, worker: str, columns: Sequence[str], stopping: bool
) -> Rows:
    """Release tasks. The rows of those that wait now, also of those that an earlier run has released: its caller got
    no answer, so nobody has announced them."""
    rows = await connection.call("release", worker, *columns, stopping)
    if again:
        found = {row[0] for row in rows}
        rows += [row for row in await connection.call("find_released", *columns) if row[0] not in found]
    return rows
