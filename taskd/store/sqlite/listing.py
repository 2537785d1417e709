"""Pages of a user's tasks in SQLite."""

from __future__ import annotations

from sqlite3 import Cursor

from taskd.ports.tasks import Page, TaskQuery
from taskd.store.listing import Filter, before_id, scan_limit
from taskd.store.rows import columns
from taskd.store.sqlite.database import SqliteDatabase, transaction
from taskd.store.sqlite.rows import to_tasks

_LISTED = columns(listed=True)


class SqliteListing(SqliteDatabase):
    """The part of ITaskStore that lists."""

    @transaction
    def list_tasks(self, db: Cursor, now: int, user_id: int, query: TaskQuery) -> Page:
        wanted = Filter(query, now=str(now), placeholder="?")
        if not wanted.statuses:
            return Page((), None)
        before = before_id(query)
        each = scan_limit(query) if wanted.scans else query.limit + 1
        walks = [value for status in wanted.statuses for value in (user_id, status, before, each)]
        if wanted.in_flight:
            db.execute(_in_flight(wanted.condition), (user_id, before, *wanted.args, query.limit + 1))
        else:
            text = _walk(len(wanted.statuses), wanted.condition)
            db.execute(text, (*walks, each, *wanted.args, query.limit + 1))
        tasks = to_tasks(db)
        if len(tasks) > query.limit:
            return Page(tasks[: query.limit], tasks[query.limit - 1].id)
        if not wanted.scans:
            return Page(tasks, None)
        row = db.execute(_end(len(wanted.statuses)), (*walks, each - 1)).fetchone()
        return Page(tasks, row[0] if row else None)


def _in_flight(condition: str) -> str:
    """Queued or running tasks of a user. Parameters: user, before, those of the condition, limit."""
    return f"""
SELECT {_LISTED} FROM tasks INDEXED BY tasks_in_flight
WHERE dispatched_at IS NOT NULL AND finished_at IS NULL AND user_id = ? AND id < ? AND {condition}
ORDER BY id DESC LIMIT ?
"""


def _walk(statuses: int, condition: str) -> str:
    """The newest tasks of several statuses, merged.

    Parameters: (user, status, before, each) for every status, all, those of the condition, limit.
    """
    walk = f"SELECT id FROM ({_newest(statuses)}) ORDER BY id DESC LIMIT ?"
    where = f"WHERE {condition}" if condition else ""
    return f"""
SELECT {_LISTED} FROM ({walk}) JOIN tasks USING (id) {where} ORDER BY id DESC LIMIT ?
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
