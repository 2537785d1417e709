"""How SQLite stores tasks and times, and the outbox rows, which make it harmless to run a batch twice.

Times are microseconds since 1970.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from sqlite3 import Cursor
from typing import Any

from taskd.model.tasks import Task
from taskd.store.rows import ALL, STATES

FOREVER = 2**62
"""A time that never comes."""

CREATE_BATCH = "INSERT INTO outbox VALUES (?, ?, ?, NULL)"
FIND_BATCH = "SELECT task_ids FROM outbox WHERE id = ?"
TASKS_BY_ID = f"SELECT {ALL} FROM tasks WHERE id IN (SELECT value FROM json_each(?))"
DELETE_SETTLED = "DELETE FROM outbox WHERE id IN (SELECT value FROM json_each(?)) AND published_at IS NULL"
# A row that was adopted is kept for OUTBOX_KEEP_SECONDS.
KEEP_SETTLED = "UPDATE outbox SET published_at = ? WHERE id IN (SELECT value FROM json_each(?))"

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(0, 0, 1)


def from_micros(micros: int) -> datetime:
    """The time in a column."""
    # timedelta takes positions three times as fast as names
    return _EPOCH + timedelta(0, 0, micros)


def to_micros(moment: datetime) -> int:
    """An aware time as a column stores it."""
    return (moment - _EPOCH) // _MICROSECOND


def to_task(row: Sequence[Any]) -> Task:
    """The task in a row of :func:`taskd.store.rows.columns`."""
    fields = list(row)
    fields[5] = STATES[row[5]]
    for i in (6, 7, 13, 14):
        if row[i] is not None:
            fields[i] = _EPOCH + timedelta(0, 0, row[i])
    return Task(*fields)


def to_tasks(rows: Iterable[Sequence[Any]]) -> list[Task]:
    """The tasks in these rows."""
    return [to_task(row) for row in rows]


def tasks_in_order(db: Cursor, ids: str) -> list[Task]:
    """The tasks of a JSON list of ids, in its order, without those that were deleted since."""
    found = {task.id: task for task in to_tasks(db.execute(TASKS_BY_ID, (ids,)))}
    return [found[task_id] for task_id in json.loads(ids) if task_id in found]
