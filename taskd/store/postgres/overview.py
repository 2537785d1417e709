"""Counts of tasks in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from taskd.model.tasks import Route, Task
from taskd.ports.overview import Line, Overview
from taskd.ports.scheduling import Pool
from taskd.store import overview
from taskd.store.overview import Tally, bounds, line, users_in_line
from taskd.store.postgres.arrays import texts
from taskd.store.postgres.database import PostgresDatabase
from taskd.store.postgres.turn import BACKLOG, IN_FLIGHT

_DELAYED = "NOT due AND finished_at IS NULL"

# For a route whose tasks are not all counted: the first task of each of its users, as many as $4.
_HEADS = f"""
WITH RECURSIVE head (user_id, run_at, n) AS (
    (SELECT user_id, run_at, 1 FROM tasks WHERE queue = w.queue AND kind = w.kind AND {BACKLOG}
    ORDER BY user_id, run_at, id LIMIT 1)
    UNION ALL
    SELECT next.user_id, next.run_at, head.n + 1 FROM head, LATERAL (
        SELECT user_id, run_at FROM tasks
        WHERE queue = w.queue AND kind = w.kind AND user_id > head.user_id AND {BACKLOG}
        ORDER BY user_id, run_at, id LIMIT 1) AS next
    WHERE head.n < $4
)
SELECT min(run_at) AS oldest, max(n) < $4 AS complete FROM head
"""


def _counts(waiting: str, delayed: str, held: str, heads: bool) -> str:
    """The counts of the routes $1 and $2: of waiting tasks up to $3, of delayed ones up to $5. All parts see the same
    moment, so that a task is not counted twice."""
    oldest = "SELECT queue, kind, number, oldest, true AS complete FROM waiting WHERE number > 0"
    if heads:
        oldest = f"""
    SELECT queue, kind, number, oldest, true AS complete FROM waiting WHERE number BETWEEN 1 AND $3
    UNION ALL
    SELECT w.queue, w.kind, w.number, h.* FROM waiting w, LATERAL ({_HEADS}) AS h WHERE w.number > $3
"""
    return f"""
WITH route AS MATERIALIZED (
    SELECT queue, kind FROM unnest($1::text[], $2::text[]) AS r (queue, kind)
), waiting AS MATERIALIZED (
    SELECT r.queue, r.kind, w.* FROM route r, LATERAL (
        SELECT count(*) AS number, min(run_at) AS oldest FROM (
            SELECT run_at FROM tasks WHERE queue = r.queue AND kind = r.kind AND {waiting} LIMIT $3 + 1) AS t) AS w
), delayed AS MATERIALIZED (
    SELECT queue, kind, count(*) AS number FROM (SELECT queue, kind FROM tasks WHERE {delayed} LIMIT $5 + 1) AS t
    GROUP BY 1, 2
), held AS MATERIALIZED (
    SELECT queue, kind, state, count(*) AS number FROM (SELECT * FROM tasks WHERE held {held} OFFSET 0) AS t
    WHERE state IN ('queued', 'running') GROUP BY 1, 2, 3
)
SELECT 'waiting', queue, kind, number, extract(epoch FROM now() - oldest)::float8, complete FROM ({oldest}) AS o
UNION ALL SELECT 'delayed', queue, kind, number, NULL, NULL FROM delayed
UNION ALL SELECT state, queue, kind, number, NULL, NULL FROM held
"""


# The line of the task $6, of the owner $4 and due at $5, in the pool of the workers $1 and the routes $2 and $3. Counts
# up to $7 tasks before it, and walks from user to user, up to $8 of each route.
_LINE = f"""
WITH RECURSIVE executor AS MATERIALIZED (
    SELECT name FROM unnest($1::text[]) AS e (name)
), route AS MATERIALIZED (
    SELECT queue, kind FROM unnest($2::text[], $3::text[]) AS r (queue, kind)
), served AS MATERIALIZED (
    SELECT jsonb_object_agg(kind, true) AS kinds FROM route
), before AS MATERIALIZED (
    SELECT kind, count(*) AS number, min(run_at) AS oldest FROM (
        SELECT r.kind, t.run_at FROM route r, LATERAL (
            SELECT run_at FROM tasks
            WHERE queue = r.queue AND kind = r.kind AND user_id = $4::bigint
                AND (run_at, id) < ($5::timestamptz, $6::bigint) AND {BACKLOG}
            ORDER BY run_at, id LIMIT $7 + 1) AS t
        LIMIT $7 + 1) AS b
    GROUP BY kind
), flight AS MATERIALIZED (
    SELECT user_id, sum(number)::bigint AS number FROM ({IN_FLIGHT}) AS f WHERE (SELECT kinds FROM served) ? kind
    GROUP BY user_id
), head AS (
    SELECT r.queue, r.kind, first.user_id, 1 AS n FROM route r, LATERAL (
        SELECT user_id FROM tasks WHERE queue = r.queue AND kind = r.kind AND {BACKLOG}
        ORDER BY user_id, run_at, id LIMIT 1) AS first
    UNION ALL
    SELECT head.queue, head.kind, next.user_id, head.n + 1 FROM head, LATERAL (
        SELECT user_id FROM tasks
        WHERE queue = head.queue AND kind = head.kind AND user_id > head.user_id AND {BACKLOG}
        ORDER BY user_id, run_at, id LIMIT 1) AS next
    WHERE head.n < $8
), crowd AS MATERIALIZED (
    SELECT user_id, coalesce((SELECT weight FROM users WHERE users.id = c.user_id), 1) AS weight FROM (
        SELECT user_id FROM head UNION SELECT user_id FROM flight UNION SELECT $4) AS c
)
SELECT (SELECT coalesce(jsonb_object_agg(kind, number), '{{}}')::text FROM before),
    (SELECT coalesce(sum(number), 0)::bigint FROM flight),
    coalesce((SELECT number FROM flight WHERE user_id = $4), 0),
    EXISTS (SELECT FROM head WHERE user_id <> $4),
    CASE WHEN (SELECT coalesce(max(n), 0) FROM head) < $8
        THEN (SELECT sum(weight) FILTER (WHERE user_id = $4) / sum(weight) FROM crowd) END::float8,
    extract(epoch FROM now() - least((SELECT min(oldest) FROM before), $5::timestamptz))::float8
"""

PREPARED = {
    # The routes that have a backlog, up to $1, and whether user $2 has tasks there; user 0 stands for all users. The
    # whole key of tasks_backlog in the order: so the planner can use no other index.
    "overview_routes": f"""
WITH RECURSIVE walk (queue, kind, n) AS (
    (SELECT queue, kind, 1 FROM tasks WHERE {BACKLOG} ORDER BY queue, kind LIMIT 1)
    UNION ALL
    SELECT next.queue, next.kind, walk.n + 1 FROM walk, LATERAL (
        SELECT queue, kind FROM tasks WHERE (queue, kind) > (walk.queue, walk.kind) AND {BACKLOG}
        ORDER BY queue, kind LIMIT 1) AS next
    WHERE walk.n < $1
)
SELECT queue, kind, $2::bigint = 0 OR coalesce((
    SELECT true FROM tasks WHERE queue = w.queue AND kind = w.kind AND user_id = $2 AND {BACKLOG}
    ORDER BY run_at, id LIMIT 1), false)
FROM walk w
""",
    "overview_all": _counts(
        f"{BACKLOG} ORDER BY user_id, run_at, id", f"{_DELAYED} AND run_at > '-infinity' ORDER BY run_at", "", True
    ),
    # "+ 0": not by an index of the user's tasks
    "overview_own": _counts(
        f"user_id = $4::bigint AND {BACKLOG} ORDER BY run_at, id",
        f"user_id = $4 AND {_DELAYED} ORDER BY run_at",
        "AND user_id + 0 = $4",
        False,
    ),
    "count_line": _LINE,
}


class PostgresOverview(PostgresDatabase):
    """IOverviewStore on PostgreSQL."""

    async def count_tasks(self, user_id: int | None, routes: Sequence[Route]) -> Overview:
        tally = Tally(routes)
        found = await self._call("overview_routes", overview.MAX_ROUTES, user_id or 0)
        looked_at = dict.fromkeys([*routes, *(Route(queue, kind) for queue, kind, has_tasks in found if has_tasks)])
        limit, users = bounds(len(looked_at))
        queues, kinds = texts([queue for queue, _ in looked_at]), texts([kind for _, kind in looked_at])
        if user_id is None:
            rows = await self._call("overview_all", queues, kinds, limit, users, overview.DELAYED)
        else:
            rows = await self._call("overview_own", queues, kinds, limit, user_id, overview.DELAYED)
        delayed = []
        for field, queue, kind, number, age, complete in rows:
            route = Route(queue, kind)
            if field == "waiting":
                tally.add(field, route, number, limit)
                tally.oldest(route, age, complete)
            elif field == "delayed":
                delayed.append((route, number))
            else:
                tally.add(field, route, number)
        tally.delayed(delayed)
        return tally.overview(len(found) >= overview.MAX_ROUTES)

    async def count_line(self, task: Task, pool: Pool) -> Line:
        workers = texts([place.worker for place in pool.places])
        queues, kinds = texts([s.queue for s in pool.served]), texts([s.kind for s in pool.served])
        place = task.user_id, task.run_at, task.id
        users = users_in_line(len(pool.served))
        rows = await self._call("count_line", workers, queues, kinds, *place, overview.COUNTED, users)
        before, *rest = rows[0]
        return line(msgspec.json.decode(before, type=dict[str, int]), *rest)
