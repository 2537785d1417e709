"""Pages of a user's tasks in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taskd.ports.tasks import Page, TaskQuery
from taskd.store.listing import Filter
from taskd.store.postgres.connection import Rows
from taskd.store.postgres.database import PostgresDatabase
from taskd.store.postgres.rows import LISTED, to_tasks


class PostgresListing(PostgresDatabase):
    """The part of ITaskStore that lists."""

    async def list_tasks(self, user_id: int, query: TaskQuery) -> Page:
        wanted = Filter(query, now="now()", placeholder="%s")
        if not wanted.statuses:
            return Page((), None)
        each, count, lists = wanted.each, query.limit + 1, len(wanted.statuses)
        walk = [v for status in wanted.statuses for v in (user_id, status, wanted.before, each, user_id, status)]
        page: tuple[str, Sequence[Any]]
        if wanted.in_flight:
            page = _in_flight(wanted.condition), (user_id, wanted.before, *wanted.args, count)
        elif wanted.scans:
            page = _filtered(lists, wanted.condition), (*wanted.args, each, *walk, each, count)
        else:
            page = _walk(lists), (*walk, count)
        rows: Rows = await self._call(lambda connection, again: connection.query(*page))
        more, end = len(rows) > query.limit, None
        if wanted.scans:
            # a last row that does not match was returned only for its id, where the next page begins
            end = rows[-1][2] if rows and rows[-1][1] else None
            rows = [row[2:] for row in rows if row[0]]
        tasks = to_tasks(rows[: query.limit])
        return Page(tasks, tasks[-1].id if more else end)


def _in_flight(condition: str) -> str:
    """Queued or running tasks of a user: workers hold all of them. Parameters: user, before, those of the condition,
    limit."""
    return f"""
SELECT {LISTED} FROM tasks t WHERE held AND user_id + 0 = %s AND id + 0 < %s AND {condition}
ORDER BY id DESC LIMIT %s
"""


def _walk(statuses: int) -> str:
    """The newest tasks of several statuses. Parameters: (user, status, before, limit, user, status) for every status,
    limit."""
    return f"SELECT {LISTED} FROM ({_newest(statuses)}) AS w JOIN tasks t USING (id) ORDER BY id DESC"


def _filtered(statuses: int, condition: str) -> str:
    """The tasks that match a condition among the newest of several statuses; it stops at the last row of the page.

    Two columns come before those of the task: whether the row matches, and whether it is the last that may be read.
    That last row is always returned, because the statement that reads must also tell where it stopped: a second
    statement would read other rows.
    Parameters: those of the condition, scan limit, (user, status, before, scan limit, user, status) for every status,
    scan limit, limit.
    """
    return f"""
SELECT * FROM (
    SELECT {condition} AS passes, w.n = %s AS is_last, {LISTED}
    FROM (SELECT id, row_number() OVER (ORDER BY id DESC) AS n FROM ({_newest(statuses)}) AS w) AS w
        JOIN tasks t USING (id)) AS looked_at
WHERE passes OR is_last ORDER BY id DESC LIMIT %s
"""


def _newest(statuses: int) -> str:
    # The inner condition and order are the whole key of tasks_list: so the planner can use no other index, even when
    # its statistics are wrong. There is no lower bound inside, because an index scan does not stop at a bound on
    # several columns but reads on and filters. It stops after the wanted number of entries; some of them may belong to
    # another list.
    one = """
SELECT id FROM (
    SELECT user_id, status, id FROM tasks WHERE (user_id, status, id) < (%s, %s, %s)
    ORDER BY user_id DESC, status DESC, id DESC LIMIT %s) AS s WHERE user_id = %s AND status = %s
"""
    return f"SELECT id FROM ({' UNION ALL '.join([one] * statuses)}) AS w ORDER BY id DESC LIMIT %s"
