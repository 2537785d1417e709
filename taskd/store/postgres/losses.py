"""What PostgreSQL does with the tasks of dead workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from taskd.model.tasks import FailedAttempt, Task
from taskd.ports.handler import IN_PROCESS
from taskd.store.postgres.arrays import array, texts
from taskd.store.postgres.database import PostgresDatabase
from taskd.store.postgres.rows import HELD, LISTED, to_tasks
from taskd.store.rows import FAILED_ATTEMPTS_LISTED, UNSPENT_LOSSES


def _take_back(seen: str, culprit: str, together: str) -> str:
    """CTEs that take back the tasks of ``seen``, a statement that returns id, worker and dispatch. The last,
    ``taken``, returns those that have changed their state. ``culprit`` is what their worker's record says,
    ``together`` is what those share that died together. What the record says is read once, not for each task.

    The rows are locked, in the order of every other batch, before they are judged: a task that is just being finished
    is no suspect any more. It waits for them instead of leaving them to the next call, where another suspect of the
    same worker would seem to be the only one. While it waited, a task may have been taken back and assigned to a worker
    that this statement's snapshot does not know: so it must still be the assignment that was seen. `+ 0` keeps the
    planner from walking the primary key of all tasks.
    """
    return f"""
seen AS MATERIALIZED (
    {seen}
), held AS MATERIALIZED (
    SELECT t.id, t.kind, t.worker, t.dispatch, t.attempt, t.max_attempts, t.losses, t.started_at, t.state
    FROM seen JOIN tasks t ON t.id = seen.id AND t.worker = seen.worker AND t.dispatch = seen.dispatch AND {HELD}
    ORDER BY t.id + 0 FOR UPDATE OF t
), dropped AS (
    UPDATE tasks t SET held = false FROM held WHERE t.id = held.id AND held.state NOT IN ('queued', 'running')
), death AS MATERIALIZED (
    SELECT w.name, w.state, w.kinds, {culprit} - 'among' AS culprit, {culprit} ? 'among' AS has_among
    FROM workers w WHERE w.name IN (SELECT worker FROM held)
), among AS MATERIALIZED (
    SELECT w.name, a.key::bigint AS id, a.value::int AS dispatch
    FROM workers w, jsonb_each({culprit} -> 'among') AS a WHERE w.name IN (SELECT worker FROM held)
), known AS MATERIALIZED (
    SELECT held.*, culprit, (held.state = 'running' OR losses = 0 AND max_attempts <> 1)
        AND CASE WHEN has_among
            THEN (held.worker, held.id, held.dispatch) IN (SELECT name, id, dispatch FROM among) ELSE true END
        AND coalesce((
            SELECT k ->> 'isolation' FROM json_array_elements(death.kinds) AS k WHERE k ->> 'kind' = held.kind LIMIT 1
            ), '{IN_PROCESS[0]}') IN {IN_PROCESS} AS candidate,
        CASE WHEN death.state <> 'gone' THEN 'its worker stopped answering' ELSE 'its worker died' END AS reason
    FROM held LEFT JOIN death ON death.name = held.worker
    WHERE held.state IN ('queued', 'running')
), suspected AS MATERIALIZED (
    SELECT *, coalesce((culprit ->> 'task_id')::bigint = id AND (culprit ->> 'dispatch')::int = dispatch, false)
            AS guilty,
        count(*) FILTER (WHERE candidate AND losses > 0) OVER ({together}) AS suspects
    FROM known
), judged AS MATERIALIZED (
    SELECT *, guilty OR state = 'running' AND max_attempts = 1 OR candidate AND (losses >= {UNSPENT_LOSSES}
            OR losses > 0 AND suspects = 1 AND culprit ->> 'task_id' IS NULL) AS spent,
        format('attempt %s of %s was lost: %s', attempt, max_attempts,
            CASE WHEN guilty THEN culprit ->> 'reason' ELSE reason END) AS error
    FROM suspected
), kept AS (
    INSERT INTO task_attempts (task_id, dispatch, attempt, worker, started_at, error)
    SELECT id, dispatch, attempt, worker, started_at, error FROM judged WHERE spent ON CONFLICT DO NOTHING
), ended AS MATERIALIZED (
    SELECT *, spent AND attempt >= max_attempts AS final FROM judged
), taken AS (
    UPDATE tasks t SET state = CASE WHEN e.final THEN 'failed' ELSE 'waiting' END, version = t.version + 1,
        attempt = CASE WHEN e.spent THEN t.attempt ELSE t.attempt - 1 END, losses = t.losses + e.candidate::int,
        worker = NULL, held = false,
        started_at = CASE WHEN e.final THEN t.started_at END,
        finished_at = CASE WHEN e.final THEN now() END,
        progress = CASE WHEN e.final THEN t.progress END, note = CASE WHEN e.final THEN t.note END,
        error = CASE WHEN e.spent THEN e.error END
    FROM ended AS e WHERE t.id = e.id RETURNING {LISTED}
)
"""


PREPARED = {
    # It steps from holder to holder in the index: there are few of them, and this runs at every poll. A worker whose
    # record changes at the same moment is left to the next call.
    "take_back": f"""
WITH RECURSIVE fenced AS MATERIALIZED (
    UPDATE workers w SET state = 'fenced' FROM unnest($1::text[], $2::bigint[]) AS d (name, beat)
    WHERE w.name = d.name AND w.beat = d.beat AND w.state IN ('serving', 'draining') RETURNING w.name
), holder (name) AS (
    (SELECT worker FROM tasks WHERE held ORDER BY worker LIMIT 1)
    UNION ALL
    SELECT next.worker FROM holder, LATERAL (
        SELECT worker FROM tasks WHERE held AND worker > holder.name ORDER BY worker LIMIT 1) AS next
), dead AS MATERIALIZED (
    SELECT name FROM holder WHERE NOT EXISTS (
        SELECT FROM workers w WHERE w.name = holder.name AND w.state IN ('serving', 'draining')
            AND NOT EXISTS (SELECT FROM fenced WHERE fenced.name = w.name))
), {
        _take_back(
            "SELECT t.* FROM dead, LATERAL ("
            "SELECT id, worker, dispatch FROM tasks WHERE held AND worker = dead.name OFFSET 0) AS t",
            "w.culprit",
            "PARTITION BY worker",
        )
    } SELECT * FROM taken
""",
    "reset_in_flight": f"""
WITH {_take_back("SELECT id, worker, dispatch FROM tasks WHERE held", "NULL::jsonb", "")}, forgotten AS (
    DELETE FROM workers
)
SELECT count(*) FROM taken
""",
    "failed_attempts": """
SELECT dispatch, attempt, worker, started_at, ended_at, error, trace FROM task_attempts
WHERE task_id = $1 ORDER BY dispatch DESC, attempt DESC LIMIT $2
""",
}


class PostgresLosses(PostgresDatabase):
    """The part of IAttemptStore on PostgreSQL that takes tasks back from dead workers."""

    async def take_back(self, dead: Mapping[str, int]) -> Sequence[Task]:
        # in one order, so that two servers that fence the same workers cannot deadlock
        names = sorted(dead)
        args = texts(names), array([dead[name] for name in names])
        return to_tasks(await self._call("take_back", *args, repeat=False))

    async def reset_in_flight(self) -> int:
        return int((await self._call("reset_in_flight"))[0][0])

    async def failed_attempts(self, task_id: int) -> Sequence[FailedAttempt]:
        rows = await self._call("failed_attempts", task_id, FAILED_ATTEMPTS_LISTED)
        return [FailedAttempt(*row) for row in reversed(rows)]
