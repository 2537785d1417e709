"""How SQLite stores tasks and times, and what several statements share. Times are microseconds since 1970."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from sqlite3 import Cursor
from typing import Any

from taskd.model.tasks import Task
from taskd.store.rows import STATES, columns

FOREVER = 2**62
"""A time that never comes."""

ALL = columns()

TO_WAITING = """
dispatched_at = NULL, started_at = NULL, lease_until = NULL, progress = NULL, note = NULL, version = version + 1
"""

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
    """The task in a row of :data:`taskd.store.rows.COLUMNS`."""
    fields = list(row)
    fields[5] = STATES[row[5]]
    for i in (6, 7, 13, 14):
        if row[i] is not None:
            fields[i] = _EPOCH + timedelta(0, 0, row[i])
    return Task(*fields)


def to_tasks(cursor: Cursor) -> list[Task]:
    """The tasks in all rows that are left."""
    return [to_task(row) for row in cursor.fetchall()]
