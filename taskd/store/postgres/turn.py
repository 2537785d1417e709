"""The turn of the dispatcher in PostgreSQL: who is next, and on which worker.

Parameters of the statement: the workers and their slots; queues, kinds and attempts of the routes; the costs as an
object with keys of user and kind; the user after whom the circle begins; the limit; the least cost. It returns no row,
because whoever reads slowly must not keep its lock: what it has done is in a setting of the session, as JSON.

No step joins two long lists, since the sessions have no hash joins: it looks costs up in an object, and puts lists side
by side with UNION ALL and GROUP BY.

- ``flight``: what each worker of the pool holds of the pool's kinds, in whatever queue: a worker may serve more queues
  than this server assigns, and its slots are the same. What ``waits`` among it was cancelled and retried.
- ``walk``: a loose scan of the backlog's index, from user to user, in all routes at the same time. It begins with round
  0, which has no user yet. In each round after the first, the half of the routes that is furthest behind in the circle
  goes on, so that all come about equally far. Where it breaks off (``edge``), everybody up to the least of their
  positions is known with all routes. It ends early when it has found users with nothing in flight that are ``enough``
  for all the room: nobody can have less. Without room, or with the limit 0, it takes one step, which tells whether
  there is a backlog.
- ``pair``: the users of this turn with their routes, what each has in flight, and the mean cost of its tasks over its
  routes. Next is the user with the least sum of what it has and half of such a task, by weight; but users with nothing
  come first. With half a task the rule is that of Webster, which favours neither small nor large shares; without it
  that of Adams, which gives each user half a task too much, so users with little weight get more than their share.
  Source: Balinski, Young, "Fair Representation", 1982. ``share`` is the level up to which
  the room would lift them if each had tasks enough: so many tasks are ``wanted`` of each, and some more are read
  because others may have less.
- ``known``: these tasks. One more is read, only to see whether there is one: it is ``beyond``.
- ``ranked``: the level of the user at each task. ``cut`` is the least level of those that are ``beyond``: what is not
  below it is left to the next run, because it may be the turn of an unknown task. Of one user, what comes after a task
  is never below its level.
- ``dealt``: each task in turn goes to the worker with the most room, until none has room: the places of these workers
  in ``names``. The function ``deal`` of the schema does it in less than half of the time of a recursive query.
- ``locked``: the rows of the tasks that are assigned now. The statement skips tasks that other transactions have
  locked, and takes the next ones in the line instead; ``matched`` numbers them again, as ``n``.
"""

from __future__ import annotations

from taskd.store.postgres.rows import ALL_ASSERTED, LISTED
from taskd.store.rows import WALKED_USERS

WALKED_PAIRS = 2000
"""About how many pairs of user and route a turn finds at most, where users have tasks in many routes."""

CANDIDATES = 1500
"""About how many tasks a turn reads at most, where users have tasks in many routes."""

SPARE_TASKS = 100
"""About how many tasks it reads beyond those that the room and its limit ask for."""

SPARE = 10
"""So many users and tasks more are read than the room can take. They show who is equal to the last user that gets a
task, and replace tasks that are locked."""

BACKLOG = "NOT held AND finished_at IS NULL AND due"
"""The condition of the index tasks_backlog. PostgreSQL uses the index only for a query that repeats it."""

IN_FLIGHT = """
SELECT t.worker, t.user_id, t.kind, count(*) AS number, bool_or(t.state = 'waiting') AS waits
FROM executor e, LATERAL (SELECT * FROM tasks WHERE held AND worker = e.name OFFSET 0) AS t
GROUP BY 1, 2, 3
"""
"""What each ``executor`` holds, by user and kind. Only kinds that are ``served`` take slots of the pool."""

SETTING = "taskd.turn"

_COST = """
coalesce(($6::jsonb -> (user_id || ' ' || kind))::float8, ($6::jsonb -> ('0 ' || kind))::float8, 1)
"""
_ROUNDING = "1e-9"
# Whole billionths: the same sum, added up in another order, is the same level. Nobody is before users without anything.
_LEVEL = f"CASE WHEN {{0}} > {_ROUNDING} THEN round((2 * {{0}} + mean) / weight * 1e9) ELSE 0 END"
_FREE = "(SELECT free FROM pool)"
_ENOUGH = "(SELECT enough FROM pool)"
# 1 for a user that has nothing in flight
_ZERO = "((SELECT users FROM flown) ? next.user_id::text IS NOT TRUE)::int"
_DONE = f"(steps > {WALKED_USERS} OR zeros >= {_ENOUGH})"
# Lap 0 of the circle has the users above $7, lap 1 has the others.
_USERS = f"""
WITH RECURSIVE step (n, lap, user_id, zeros) AS (
    SELECT 0, r.lap, r.user_id, r.zeros
    UNION ALL
    SELECT step.n + 1, next.*, step.zeros + {_ZERO}
    FROM step, LATERAL (
        (SELECT 0 AS lap, user_id FROM tasks
        WHERE step.lap = 0 AND queue = r.queue AND kind = r.kind AND user_id > step.user_id AND {BACKLOG}
        ORDER BY user_id LIMIT 1)
        UNION ALL
        (SELECT 1, user_id FROM tasks
        WHERE queue = r.queue AND kind = r.kind AND user_id > CASE step.lap WHEN 0 THEN 0 ELSE step.user_id END
            AND user_id <= $7 AND {BACKLOG}
        ORDER BY user_id LIMIT 1)
        LIMIT 1) AS next
    WHERE step.n < r.stride AND step.zeros < {_ENOUGH}
)
SELECT array_agg(lap ORDER BY n) AS laps, array_agg(user_id ORDER BY n) AS users, count(*)::int AS steps,
    max(zeros) AS zeros
FROM step WHERE n > 0 HAVING count(*) > 0
"""
"""The next users of a route, as many as its stride."""

ASSIGN = f"""
WITH RECURSIVE executor AS MATERIALIZED (
    SELECT e.name, CASE WHEN w.state = 'serving' AND {ALL_ASSERTED} THEN e.slots ELSE 0 END AS slots
    FROM unnest($1::text[], $2::int[]) AS e (name, slots) LEFT JOIN workers w ON w.name = e.name
), route AS MATERIALIZED (
    SELECT queue, kind, attempts FROM unnest($3::text[], $4::text[], $5::int[]) AS r (queue, kind, attempts)
), served AS MATERIALIZED (
    SELECT jsonb_object_agg(kind, true) AS kinds FROM route
), flight AS MATERIALIZED (
    SELECT worker, user_id, sum(number * {_COST}) AS cost, bool_or(waits) AS waits
    FROM ({IN_FLIGHT}) AS f
    WHERE (SELECT kinds FROM served) ? kind
    GROUP BY 1, 2
), room AS MATERIALIZED (
    SELECT name, sum(slots) AS free FROM (
        SELECT name, slots::float8 FROM executor UNION ALL SELECT worker, -cost FROM flight) AS r (name, slots)
    GROUP BY name
), pool AS MATERIALIZED (
    SELECT coalesce(sum(free) FILTER (WHERE free > {_ROUNDING} AND $8 > 0), 0) AS free,
        least(coalesce(sum(ceil(free / $9)) FILTER (WHERE free > {_ROUNDING}), 0), $8) + {SPARE} AS enough
    FROM room
), flown AS MATERIALIZED (
    SELECT jsonb_object_agg(user_id, cost) AS users FROM (
        SELECT user_id, sum(cost) AS cost FROM flight GROUP BY user_id) AS f
), walk AS (
    SELECT *, '{{}}'::int[] AS laps, '{{}}'::bigint[] AS users, 0 AS steps, 0 AS zeros, $7::bigint AS user_id, 0 AS lap,
        true AS open, 0 AS found, 0 AS round
    FROM route
    UNION ALL
    SELECT r.queue, r.kind, r.attempts, u.laps, u.users, r.steps + u.steps, coalesce(u.zeros, r.zeros),
        coalesce(u.users[u.steps], r.user_id), coalesce(u.laps[u.steps], r.lap),
        NOT behind OR u.steps = r.stride OR u.zeros >= {_ENOUGH}, r.found + (sum(u.steps) OVER ())::int, r.round + 1
    FROM (
        SELECT *, first_value({_DONE}) OVER up AS done,
            CASE WHEN {_FREE} > 0 THEN 1 + {WALKED_USERS} / count(*) OVER () ELSE 1 END AS stride,
            round = 0 OR row_number() OVER up <= (count(*) OVER () + 1) / 2 AND NOT {_DONE} AS behind
        FROM walk WHERE open WINDOW up AS (ORDER BY lap, user_id)) AS r,
        LATERAL (
            SELECT '{{}}'::int[] AS laps, '{{}}'::bigint[] AS users, 0 AS steps, NULL::int AS zeros
            WHERE NOT r.behind
            UNION ALL SELECT * FROM ({_USERS}) AS u WHERE r.behind) AS u
    WHERE found < {WALKED_PAIRS} AND NOT done AND (round = 0 OR {_FREE} > 0)
), edge AS MATERIALIZED (
    SELECT lap, user_id FROM (
        SELECT * FROM walk WHERE open AND round = (SELECT max(round) FROM walk) ORDER BY lap, user_id LIMIT 1) AS least
    WHERE found >= {WALKED_PAIRS} OR {_DONE}
), found AS MATERIALIZED (
    SELECT w.queue, w.kind, w.attempts, u.*, dense_rank() OVER (ORDER BY u.lap, u.user_id) AS place
    FROM walk w, LATERAL unnest(w.laps, w.users) AS u (lap, user_id) LEFT JOIN edge ON true
    WHERE {_FREE} > 0 AND (edge.lap IS NULL OR (u.lap, u.user_id) <= (edge.lap, edge.user_id))
), pair AS MATERIALIZED (
    SELECT *, avg(cost) OVER (PARTITION BY user_id) AS mean
    FROM (
        SELECT *, {_COST} AS cost, coalesce(((SELECT users FROM flown) -> user_id::text)::float8, 0) AS have,
            coalesce((SELECT weight FROM users WHERE users.id = w.user_id), 1) AS weight
        FROM found AS w WHERE place <= {WALKED_USERS}) AS p
), share AS MATERIALIZED (
    SELECT min(level) AS level FROM (
        SELECT ({_FREE} + sum(base) OVER up) / sum(weight) OVER up AS level
        FROM (SELECT max(have + mean / 2) AS base, max(weight) AS weight FROM pair GROUP BY user_id) AS head
        WINDOW up AS (ORDER BY base / weight ROWS UNBOUNDED PRECEDING)) AS s
), wish AS MATERIALIZED (
    SELECT *, ceil(greatest((SELECT level FROM share) * weight - have - mean / 2, 0) / cost) AS wanted,
        least(ceil({_FREE} / cost) + (SELECT count(*) FROM room), $8) + {SPARE} AS most
    FROM (SELECT *, dense_rank() OVER (ORDER BY {_LEVEL.format("have")}, place) AS rank FROM pair) AS p
    WHERE rank <= (
        SELECT least((SELECT sum(ceil(free / least)) FROM room WHERE free > {_ROUNDING}), $8) + {SPARE}
        FROM (SELECT min(cost) AS least FROM pair) AS p)
), known AS MATERIALIZED (
    SELECT w.place, w.user_id, w.attempts, w.cost, w.have, w.mean, w.weight, t.run_at, t.id, t.n > w.number AS beyond
    FROM (
        SELECT *, greatest(2, least(most, {SPARE_TASKS} / pairs + ceil(wanted * least(
            1, least($8 * pairs / users, {CANDIDATES}) / greatest(total, 1)))))::int AS number
        FROM (
            SELECT *, count(*) OVER () AS pairs, max(rank) OVER () AS users, sum(wanted) OVER () AS total
            FROM wish) AS w) AS w,
        LATERAL (
            SELECT run_at, id, row_number() OVER (ORDER BY run_at, id) AS n FROM tasks
            WHERE queue = w.queue AND kind = w.kind AND user_id = w.user_id AND {BACKLOG}
            ORDER BY run_at, id LIMIT w.number + 1) AS t
), ranked AS MATERIALIZED (
    SELECT place, user_id, attempts, cost, run_at, id, beyond, {_LEVEL.format("load")} AS level
    FROM (
        SELECT *, have + coalesce(sum(cost) OVER before, 0) AS load FROM known
        WINDOW before AS (PARTITION BY user_id ORDER BY run_at, id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
    ) AS k
), cut AS MATERIALIZED (
    SELECT min(level) AS level FROM ranked WHERE beyond
), line AS MATERIALIZED (
    SELECT id, user_id, attempts, cost, level, row_number() OVER up AS n,
        level IN (lag(level) OVER up, lead(level) OVER up) AS equal
    FROM ranked
    WHERE level < coalesce((SELECT level FROM cut), 'infinity')
    WINDOW up AS (ORDER BY level, place, run_at, id)
), dealt AS MATERIALIZED (
    SELECT array_agg(name ORDER BY name) AS names, deal(array_agg(free ORDER BY name),
        (SELECT array_agg(cost ORDER BY n) FROM line WHERE n <= $8), {_ROUNDING}) AS lanes
    FROM room WHERE free > {_ROUNDING}
), locked AS MATERIALIZED (
    SELECT l.* FROM (SELECT * FROM line ORDER BY n OFFSET 0) AS l
        JOIN tasks t ON t.id = l.id AND t.state = 'waiting' AND t.held IS FALSE AND t.due IS TRUE
    ORDER BY l.n LIMIT (SELECT coalesce(cardinality(lanes), 0) FROM dealt) FOR UPDATE OF t SKIP LOCKED
), matched AS MATERIALIZED (
    SELECT *, (SELECT names FROM dealt)[(SELECT lanes FROM dealt)[n]] AS worker
    FROM (SELECT id, user_id, attempts, cost, level, equal, row_number() OVER (ORDER BY n) AS n FROM locked) AS l
), assigned AS (
    UPDATE tasks t SET state = 'queued', worker = m.worker, held = true, dispatch = t.dispatch + 1,
        attempt = t.attempt + 1, version = t.version + 1, error = NULL,
        max_attempts = CASE t.max_attempts WHEN 0 THEN m.attempts ELSE t.max_attempts END
    FROM matched m WHERE t.id = m.id
), seen AS MATERIALIZED (
    SELECT NOT EXISTS (SELECT FROM edge) AND coalesce(max(place), 0) <= {WALKED_USERS} AS complete,
        (array_agg(user_id ORDER BY place DESC) FILTER (WHERE place <= {WALKED_USERS}))[1] AS last
    FROM found
), left_room AS MATERIALIZED (
    SELECT name, sum(free) AS free FROM (
        SELECT name, free FROM room UNION ALL SELECT worker, -cost FROM matched) AS r
    GROUP BY name
), done AS MATERIALIZED (
    SELECT count(*) AS number, coalesce(json_agg(id ORDER BY n), '[]') AS ids,
        (array_agg(user_id ORDER BY n DESC) FILTER (WHERE equal))[1] AS last_equal
    FROM matched
)
SELECT WHERE set_config('{SETTING}', (SELECT json_build_object(
    'ids', ids,
    'room', (SELECT coalesce(json_object_agg(name, free), '{{}}') FROM left_room),
    'backlog', CASE WHEN {_FREE} > 0
        THEN (SELECT count(*) FROM known) > number OR NOT complete
            OR (SELECT count(*) FROM pair) > (SELECT count(*) FROM wish)
        ELSE EXISTS (SELECT FROM walk WHERE round > 0) END,
    'returning', (SELECT coalesce(bool_or(waits), false) FROM flight),
    'cut_short', (SELECT level FROM cut) IS NOT NULL AND number BETWEEN 1 AND $8 - 1
        AND (SELECT max(free) FROM left_room) > {_ROUNDING},
    'after_user', coalesce(
        CASE WHEN NOT complete AND (
            SELECT count(*) FROM line WHERE level = (SELECT min(level) FROM line)) = (
            SELECT nullif(count(*), 0) FROM matched WHERE level = (SELECT min(level) FROM line)) THEN last END,
        last_equal, $7)
)::text FROM done, seen), false) IS NULL
"""

# Read after the commit, in the same message.
TOLD = f"""
SELECT CASE WHEN n IS NULL OR n = 1 THEN told.turn::text END, {LISTED}
FROM (SELECT current_setting('{SETTING}')::json AS turn) AS told
    LEFT JOIN LATERAL json_array_elements_text(told.turn -> 'ids') WITH ORDINALITY AS i (id, n) ON true
    LEFT JOIN tasks t ON t.id = i.id::bigint
ORDER BY n
"""
