"""The backlog in SQLite, and the turn that assigns its tasks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from heapq import merge
from sqlite3 import Cursor
from statistics import fmean

from taskd.model.tasks import Route, Task
from taskd.ports.scheduling import Pool, Turn, cost_in
from taskd.store.refusals import MAX_ID
from taskd.store.rows import WALKED_USERS
from taskd.store.sqlite.database import SqliteDatabase, transaction
from taskd.store.sqlite.rows import LISTED, to_task
from taskd.store.sqlite.turn import NO_ROOM, Costs, Loads, Waiting, Walk, share_out

# The conditions of the indexes. SQLite uses a partial index only for a query that repeats its condition.
BACKLOG = "NOT held AND finished_at IS NULL AND due"
DELAYED = "NOT due AND finished_at IS NULL"

SERVING = "SELECT name FROM workers WHERE state = 'serving'"
IN_FLIGHT = """
SELECT worker, kind, user_id, count(*), max(state = 'waiting') FROM tasks INDEXED BY tasks_held
WHERE held AND worker IN (SELECT value FROM json_each(?)) GROUP BY worker, kind, user_id
"""
WEIGHTS = "SELECT id, weight FROM users WHERE id IN (SELECT value FROM json_each(?))"
NEXT_USER = f"""
SELECT user_id FROM tasks INDEXED BY tasks_backlog
WHERE queue = ? AND kind = ? AND user_id > ? AND user_id <= ? AND {BACKLOG} ORDER BY user_id LIMIT 1
"""
OLDEST = f"""
SELECT run_at, id FROM tasks INDEXED BY tasks_backlog
WHERE queue = ? AND kind = ? AND user_id = ? AND (run_at, id) > (?, ?) AND {BACKLOG} ORDER BY run_at, id LIMIT ?
"""
ASSIGN = f"""
UPDATE tasks SET state = 'queued', version = version + 1, worker = ?, held = true, dispatch = dispatch + 1,
    attempt = attempt + 1, error = NULL, max_attempts = CASE max_attempts WHEN 0 THEN ? ELSE max_attempts END
WHERE id = ? RETURNING {LISTED}
"""
HAS_BACKLOG = f"SELECT 1 FROM tasks INDEXED BY tasks_backlog WHERE queue = ? AND kind = ? AND {BACKLOG} LIMIT 1"

COUNT_DUE = f"""
SELECT count(*) FROM (SELECT 1 FROM tasks INDEXED BY tasks_delayed WHERE {DELAYED} AND run_at <= ? LIMIT ?)
"""
# The state does not change, so the version does not either.
_PROMOTE = """
UPDATE tasks SET due = true WHERE id IN (SELECT id FROM tasks INDEXED BY {index} WHERE {which} ORDER BY run_at LIMIT ?)
RETURNING queue, kind, user_id
"""
PROMOTE = _PROMOTE.format(index="tasks_delayed", which=f"{DELAYED} AND run_at <= ?")
PROMOTE_USER = _PROMOTE.format(index="tasks_delayed_user", which=f"{DELAYED} AND user_id = ? AND run_at <= ?")
NEXT_DELAYED = f"""
SELECT user_id, run_at FROM tasks INDEXED BY tasks_delayed_user WHERE {DELAYED} AND user_id > ?
ORDER BY user_id, run_at LIMIT 1
"""

_LARGEST_PIECE = 256
"""So many tasks of a user and route are read at a time, at most."""


class SqliteScheduling(SqliteDatabase):
    """ISchedulingStore on SQLite."""

    @transaction
    def assign(self, db: Cursor, now: int, pool: Pool, limit: int, after_user: int, patient: bool = False) -> Turn:
        db.execute("BEGIN IMMEDIATE")
        attempts = {Route(s.queue, s.kind): s.max_attempts for s in pool.served}
        costs = {(c.user_id, c.kind): c.cost for c in pool.costs}
        room, loads, returning = _in_flight(db, pool, costs)
        tasks: list[Task] = []
        if max(room.values(), default=0.0) > NO_ROOM:
            walk = _walk(db, list(attempts), after_user, loads, costs)
            picks, after_user = share_out(walk, room, costs, limit, after_user)
            for worker, (_, task_id, route) in picks:
                tasks.append(to_task(db.execute(ASSIGN, (worker, attempts[route], task_id)).fetchone()))
        backlog = any(db.execute(HAS_BACKLOG, route).fetchone() for route in attempts)
        return Turn(tasks, room, backlog, after_user, returning)

    @transaction
    def promote(self, db: Cursor, now: int, limit: int) -> Sequence[tuple[Route, int]]:
        db.execute("BEGIN IMMEDIATE")
        [(due,)] = db.execute(COUNT_DUE, (now, limit + 1)).fetchall()
        if due <= limit:
            rows = set(db.execute(PROMOTE, (now, limit)))
        else:
            users = list(_users_with_due(db, now))
            part = max(1, limit // len(users))
            rows = {row for user in users for row in db.execute(PROMOTE_USER, (user, now, part)).fetchall()}
        return [(Route(queue, kind), user) for queue, kind, user in sorted(rows)]


def _in_flight(db: Cursor, pool: Pool, costs: Costs) -> tuple[dict[str, float], Loads, bool]:
    """The room of each worker of the pool, what each user has in flight there, and whether some of it waits again."""
    serving = {name for (name,) in db.execute(SERVING)}
    room = {place.worker: float(place.slots if place.worker in serving else 0) for place in pool.places}
    # not of their queues alone: a worker may serve more of them than this server assigns
    kinds = {s.kind for s in pool.served}
    loads: Loads = {}
    returning = False
    for worker, kind, user, count, waits in db.execute(IN_FLIGHT, (json.dumps(list(room)),)):
        # the other executors of a worker belong to other pools
        if kind in kinds:
            load = count * cost_in(costs, user, kind)
            room[worker] -= load
            loads[user] = loads.get(user, 0.0) + load
            returning = returning or bool(waits)
    return room, loads, returning


def _walk(db: Cursor, routes: Sequence[Route], after_user: int, loads: Loads, costs: Costs) -> Walk:
    """The users with a backlog, in a circle after ``after_user``."""
    found: dict[int, list[Route]] = {}
    complete = True
    for _, user, route in merge(*(_users_of(db, route, after_user) for route in routes)):
        if user not in found and len(found) == WALKED_USERS:
            complete = False
            break
        found.setdefault(user, []).append(route)
    weights = dict(db.execute(WEIGHTS, (json.dumps(list(found)),)).fetchall())
    walk = Walk(complete)
    for user, its_routes in found.items():
        waiting = merge(*(_oldest(db, route, user) for route in its_routes))
        mean = fmean(cost_in(costs, user, route.kind) for route in its_routes)
        walk.add(user, loads.get(user, 0.0), mean, weights[user], waiting)
    return walk


def _users_of(db: Cursor, route: Route, after_user: int) -> Iterator[tuple[int, int, Route]]:
    """The users with a backlog in a route, each with 0 if it is above ``after_user``, else 1."""
    for part, (last, end) in enumerate(((after_user, MAX_ID), (0, after_user))):
        while row := db.execute(NEXT_USER, (*route, last, end)).fetchone():
            last = row[0]
            yield part, last, route


def _oldest(db: Cursor, route: Route, user: int) -> Iterator[Waiting]:
    """The backlog of a user in a route, oldest first: at first one task, then pieces that grow."""
    place, size = (-MAX_ID, 0), 1
    while rows := db.execute(OLDEST, (*route, user, *place, size)).fetchall():
        yield from ((run_at, task_id, route) for run_at, task_id in rows)
        place, size = rows[-1], min(2 * size, _LARGEST_PIECE)


def _users_with_due(db: Cursor, now: int) -> Iterator[int]:
    user = 0
    while row := db.execute(NEXT_DELAYED, (user,)).fetchone():
        user, run_at = row
        if run_at <= now:
            yield user
