"""The backlog, the queued tasks and the outbox in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from taskd.model.tasks import Route, Task
from taskd.ports.scheduling import Dispatch, Dispatched, OutboxBatch
from taskd.store.limits import OUTBOX_KEEP_SECONDS
from taskd.store.postgres.arrays import ids
from taskd.store.postgres.database import PostgresDatabase
from taskd.store.postgres.outbox import DELETE_SETTLED, KEEP_SETTLED, run_batch
from taskd.store.postgres.rows import IN_FLIGHT, RELAXED_COMMIT, TO_WAITING, T, to_task, to_tasks

PREPARED: dict[str, str] = {}

# The condition of the index tasks_backlog. PostgreSQL uses the index only for a query that repeats it.
_BACKLOG = "dispatched_at IS NULL AND finished_at IS NULL AND due"

# A walk over the users who have a backlog, from key to key of the index. It reads at most about 4 * limit rows.
# - A round that needs several turns gives every user one task. With more, the few users of its last turn would share a
#   whole turn.
# - A round that fits into one turn gives equal shares. What is left goes in equal shares to the users who used up
#   theirs, then once more in the same way, and the rest to the first of them. So a turn that is not full leaves no
#   backlog behind.
# Each pass continues where the pass before it ended. At the start of a user's backlog the index may still have the
# entries of thousands of tasks that were dispatched since the last vacuum; a turn steps over them only once.
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
    """The CTEs of a pass over the users who used up their share in pass ``k - 1``."""
    picked = " + ".join(f"(SELECT count(*) FROM pick{i})" for i in range(k))
    return f"""
), hungry{k} AS MATERIALIZED (
    SELECT user_id, run_at, id FROM pick{k - 1} WHERE n = (SELECT each FROM share{k - 1}) ORDER BY user_id
), share{k} AS MATERIALIZED (
    SELECT free, {each} AS each
    FROM (SELECT CASE $5 WHEN 0 THEN $4 - ({picked}) ELSE 0 END AS free,
        greatest((SELECT count(*) FROM hungry{k}), 1) AS users) AS c
), pick{k} AS MATERIALIZED ({_PICK.format(users=f"hungry{k}", behind=">", share=f"share{k}")}"""


# The first column tells two cases apart: a repetition that found nothing left to move, and a turn that found nothing.
# Neither writes an outbox row.
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
    WHERE {RELAXED_COMMIT} AND t.id = picked.id
    RETURNING {T}
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

# The caller does not repeat this: a second run could not return the same rows. The state does not change, so the
# version does not either.
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
WITH settled AS ({DELETE_SETTLED.format(ids="$1::uuid[]")}) {KEEP_SETTLED.format(ids="$1::uuid[]")}
"""
PREPARED["adopt_stale"] = f"""
WITH gone AS (
    DELETE FROM outbox WHERE published_at = 'infinity' AND created_at < now() - interval '{OUTBOX_KEEP_SECONDS} s'
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

PREPARED["requeue_lost"] = f"""
WITH lost AS (
    SELECT id FROM tasks
    WHERE {IN_FLIGHT} AND queue = $1 AND kind = $2 AND dispatched_at <= now() - make_interval(secs => $3)
        AND state = 'queued'
    ORDER BY dispatched_at LIMIT $4 FOR UPDATE SKIP LOCKED
)
UPDATE tasks t SET state = 'waiting', {TO_WAITING} FROM lost WHERE t.id = lost.id RETURNING {T}
"""
PREPARED["count_queued"] = f"""
SELECT queue, kind, count(*) FROM tasks WHERE {IN_FLIGHT} AND state = 'queued' GROUP BY queue, kind
"""


class PostgresScheduling(PostgresDatabase):
    """ISchedulingStore on PostgreSQL."""

    async def dispatch(self, batch: str, route: Route, limit: int, after_user: int | None) -> Dispatched:
        known, rows = await self._call(run_batch, "dispatch", batch, batch, *route, limit, after_user or 0)
        if not known and rows[0][0]:
            known, rows = True, await self._call("batch", batch)
        if known:
            # where the walk ended is not stored: the next turn begins after the last user of this one
            tasks = to_tasks(rows)
            return Dispatched(tasks, max((t.user_id for t in tasks), default=None), len(tasks) == limit)
        tasks = [to_task(row[2:-1]) for row in rows if row[2] is not None]
        return Dispatched(tasks, rows[0][1], len(tasks) == limit)

    async def promote(self, limit: int) -> Sequence[tuple[Route, int]]:
        rows = await self._call("promote", limit, repeat=False)
        return [(Route(queue, kind), user) for queue, kind, user in rows]

    async def mark_published(self, batches: Sequence[str]) -> None:
        await self._call("mark_published", ids(batches))

    async def adopt_stale(self, older_than: float, limit: int) -> Sequence[OutboxBatch]:
        rows = await self._call("adopt_stale", older_than, limit, repeat=False)
        batches: dict[str, dict[Route, list[Dispatch]]] = {}
        for batch, queue, kind, task_id, number in rows:
            messages = batches.setdefault(batch, {})
            if task_id is not None:
                messages.setdefault(Route(queue, kind), []).append(Dispatch(task_id, number))
        return [OutboxBatch(batch, messages) for batch, messages in batches.items()]

    async def requeue_lost(self, route: Route, older_than: float, limit: int) -> Sequence[Task]:
        return to_tasks(await self._call("requeue_lost", *route, older_than, limit, repeat=False))

    async def count_queued(self) -> Mapping[Route, int]:
        return {Route(queue, kind): count for queue, kind, count in await self._call("count_queued")}
