"""Pages of a user's tasks in SQLite."""

from __future__ import annotations

from sqlite3 import Cursor

from taskd.ports.tasks import Page, TaskQuery
from taskd.store.listing import Filter
from taskd.store.sqlite.database import SqliteDatabase, transaction
from taskd.store.sqlite.rows import LISTED, to_tasks


class SqliteListing(SqliteDatabase):
    """The part of ITaskStore that lists."""

    @transaction
    def list_tasks(self, db: Cursor, now: int, user_id: int, query: TaskQuery) -> Page:
        wanted = Filter(query, now=str(now), placeholder="?")
        if not wanted.statuses:
            return Page((), None)
        count = query.limit + 1
        walks = [v for status in wanted.statuses for v in (user_id, status, wanted.before, wanted.each)]
        if wanted.in_flight:
            rows = db.execute(_in_flight(wanted.condition), (user_id, wanted.before, *wanted.args, count))
        else:
            text = _walk(len(wanted.statuses), wanted.condition)
            rows = db.execute(text, (*walks, wanted.each, *wanted.args, count))
        tasks = to_tasks(rows)
        if len(tasks) > query.limit:
            return Page(tasks[: query.limit], tasks[query.limit - 1].id)
        if not wanted.scans:
            return Page(tasks, None)
        row = db.execute(_end(len(wanted.statuses)), (*walks, wanted.each - 1)).fetchone()
        return Page(tasks, row[0] if row else None)


def _in_flight(condition: str) -> str:
    """Queued or running tasks of a user. Parameters: user, before, those of the condition, limit."""
    return f"""
SELECT {LISTED} FROM tasks INDEXED BY tasks_held
WHERE held AND user_id = ? AND id < ? AND {condition}
ORDER BY id DESC LIMIT ?
"""


def _walk(statuses: int, condition: str) -> str:
    """The newest tasks of several statuses, merged.

    Parameters: (user, status, before, each) for every status, all, those of the condition, limit.
    """
    walk = f"SELECT id FROM ({_newest(statuses)}) ORDER BY id DESC LIMIT ?"
    where = f"WHERE {condition}" if condition else ""
    return f"""
SELECT {LISTED} FROM ({walk}) JOIN tasks USING (id) {where} ORDER BY id DESC LIMIT ?
"""


def _end(statuses: int) -> str:
    """The last id that such a walk has read.

    Parameters: (user, status, before, each) for every status, how many rows come before that id.
    """
    return f"SELECT id FROM ({_newest(statuses)}) ORDER BY id DESC LIMIT 1 OFFSET ?"


def _newest(statuses: int) -> str:
    one = (
        "SELECT * FROM (SELECT id FROM tasks INDEXED BY tasks_list WHERE user_id = ? AND status = ? AND id < ?"
        " ORDER BY id DESC LIMIT ?)"
    )
    return " UNION ALL ".join([one] * statuses)
