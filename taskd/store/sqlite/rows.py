"""How SQLite stores tasks and times. Times are microseconds since 1970."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from taskd.model.tasks import Task
from taskd.store.rows import ALL, STATES, listed_columns

LISTED = listed_columns()
TASKS_BY_ID = f"SELECT {ALL} FROM tasks WHERE id IN (SELECT value FROM json_each(?))"

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(0, 0, 1)


def from_micros(micros: int) -> datetime:
    """The time in a column."""
    # timedelta takes positions three times as fast as names
    return _EPOCH + timedelta(0, 0, micros)


def to_micros(moment: datetime) -> int:
    """An aware time as a column stores it."""
    return (moment - _EPOCH) // _MICROSECOND


def micros_of(seconds: float) -> int:
    """A duration in microseconds; a negative one counts as none."""
    return max(0, round(seconds * 1_000_000))


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
