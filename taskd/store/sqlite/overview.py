"""Counts of tasks in SQLite."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from sqlite3 import Cursor

from taskd.model.tasks import Route, Task
from taskd.ports.overview import Line, Overview
from taskd.ports.scheduling import Pool
from taskd.store import overview
from taskd.store.overview import Tally, bounds, line, users_in_line
from taskd.store.refusals import MAX_ID
from taskd.store.sqlite.database import SqliteDatabase, transaction
from taskd.store.sqlite.rows import to_micros
from taskd.store.sqlite.scheduling import BACKLOG, DELAYED, IN_FLIGHT, NEXT_USER, WEIGHTS

# Two statements: for (queue, kind) > (?, ?), SQLite would read all tasks of the route before.
_NEXT_KIND = f"""
SELECT queue, kind FROM tasks INDEXED BY tasks_backlog WHERE queue = ? AND kind > ? AND {BACKLOG} ORDER BY kind LIMIT 1
"""
_NEXT_QUEUE = f"""
SELECT queue, kind FROM tasks INDEXED BY tasks_backlog WHERE queue > ? AND {BACKLOG} ORDER BY queue, kind LIMIT 1
"""
_WAITING = f"""
SELECT count(*), min(run_at) FROM (
    SELECT run_at FROM tasks INDEXED BY tasks_backlog WHERE queue = ? AND kind = ? AND {BACKLOG} LIMIT ?)
"""
_WAITING_OF_USER = f"""
SELECT count(*), min(run_at) FROM (
    SELECT run_at FROM tasks INDEXED BY tasks_backlog WHERE queue = ? AND kind = ? AND user_id = ? AND {BACKLOG}
    ORDER BY run_at LIMIT ?)
"""
_NEXT_HEAD = f"""
SELECT user_id, run_at FROM tasks INDEXED BY tasks_backlog
WHERE queue = ? AND kind = ? AND user_id > ? AND {BACKLOG} ORDER BY user_id, run_at LIMIT 1
"""
_DELAYED = f"""
SELECT queue, kind, count(*) FROM (
    SELECT queue, kind FROM tasks INDEXED BY tasks_delayed WHERE {DELAYED} ORDER BY run_at LIMIT ?)
GROUP BY queue, kind
"""
_DELAYED_OF_USER = f"""
SELECT queue, kind, count(*) FROM (
    SELECT queue, kind FROM tasks INDEXED BY tasks_delayed_user WHERE user_id = ? AND {DELAYED}
    ORDER BY run_at LIMIT ?)
GROUP BY queue, kind
"""
_HELD = """
SELECT queue, kind, state, count(*) FROM tasks INDEXED BY tasks_held
WHERE held AND state IN ('queued', 'running') {} GROUP BY queue, kind, state
"""

_BEFORE = f"""
SELECT count(*), min(run_at) FROM (
    SELECT run_at FROM tasks INDEXED BY tasks_backlog
    WHERE queue = ? AND kind = ? AND user_id = ? AND (run_at, id) < (?, ?) AND {BACKLOG} ORDER BY run_at, id LIMIT ?)
"""


class SqliteOverview(SqliteDatabase):
    """IOverviewStore on SQLite."""

    @transaction
    def count_tasks(self, db: Cursor, now: int, user_id: int | None, routes: Sequence[Route]) -> Overview:
        db.execute("BEGIN")
        tally = Tally(routes)
        found = list(_routes(db))
        if user_id is None:
            has_tasks = found
        else:
            has_tasks = [route for route in found if db.execute(_WAITING_OF_USER, (*route, user_id, 1)).fetchone()[0]]
        looked_at = list(dict.fromkeys([*routes, *has_tasks]))
        limit, users = bounds(len(looked_at))
        for route in looked_at:
            if user_id is None:
                number, run_at = db.execute(_WAITING, (*route, limit + 1)).fetchone()
            else:
                number, run_at = db.execute(_WAITING_OF_USER, (*route, user_id, limit + 1)).fetchone()
            tally.add("waiting", route, number, limit)
            complete = True
            if user_id is None and number > limit:
                run_at, complete = _oldest(db, route, users)
            if number:
                tally.oldest(route, (now - run_at) / 1_000_000, complete)
        owner = () if user_id is None else (user_id,)
        delayed = db.execute(_DELAYED_OF_USER if owner else _DELAYED, (*owner, overview.DELAYED + 1))
        tally.delayed([(Route(queue, kind), number) for queue, kind, number in delayed])
        for queue, kind, state, number in db.execute(_HELD.format("AND user_id = ?" if owner else ""), owner):
            tally.add(state, Route(queue, kind), number)
        return tally.overview(len(found) >= overview.MAX_ROUTES)

    @transaction
    def count_line(self, db: Cursor, now: int, task: Task, pool: Pool) -> Line:
        db.execute("BEGIN")
        routes = [Route(s.queue, s.kind) for s in pool.served]
        before: Counter[str] = Counter()
        left = overview.COUNTED + 1
        oldest = to_micros(task.run_at)
        place = task.user_id, oldest, task.id
        for route in routes:
            number, run_at = db.execute(_BEFORE, (*route, *place, left)).fetchone()
            if number:
                before[route.kind] += number
                oldest = min(oldest, run_at)
                left -= number
        kinds = {route.kind for route in routes}
        held: Counter[int] = Counter()
        for _, kind, user, count, _ in db.execute(IN_FLIGHT, (json.dumps([place.worker for place in pool.places]),)):
            if kind in kinds:
                held[user] += count
        waiting, complete = _users(db, routes)
        share = None
        if complete:
            weights = dict(db.execute(WEIGHTS, (json.dumps([*{*waiting, *held, task.user_id}]),)).fetchall())
            share = weights[task.user_id] / sum(weights.values())
        others_wait = bool(waiting - {task.user_id})
        waits = (now - oldest) / 1_000_000
        return line(before, held.total(), held[task.user_id], others_wait, share, waits)


def _users(db: Cursor, routes: Sequence[Route]) -> tuple[set[int], bool]:
    """The users with a backlog in these routes, and whether there are no others."""
    found: set[int] = set()
    complete = True
    most = users_in_line(len(routes))
    for route in routes:
        last = 0
        for _ in range(most):
            row = db.execute(NEXT_USER, (*route, last, MAX_ID)).fetchone()
            if row is None:
                break
            last = row[0]
            found.add(last)
        else:
            complete = False
    return found, complete


def _routes(db: Cursor) -> Iterator[Route]:
    """The routes that have a backlog, in their order."""
    row = ("", "")
    for _ in range(overview.MAX_ROUTES):
        row = db.execute(_NEXT_KIND, row).fetchone() or db.execute(_NEXT_QUEUE, row[:1]).fetchone()
        if row is None:
            return
        yield Route(*row)


def _oldest(db: Cursor, route: Route, users: int) -> tuple[int, bool]:
    """The first ``run_at`` among so many users, and whether there are no others."""
    user = 0
    oldest: list[int] = []
    while len(oldest) < users:
        row = db.execute(_NEXT_HEAD, (*route, user)).fetchone()
        if row is None:
            return min(oldest), True
        user, run_at = row
        oldest.append(run_at)
    return min(oldest), False
