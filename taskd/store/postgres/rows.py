"""How PostgreSQL stores tasks, and what several statements share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from taskd.model.tasks import Task
from taskd.store.rows import STATES, columns

Rows = list[tuple[Any, ...]]

ALL = columns()
T = columns("t")

# The condition of the index tasks_in_flight. PostgreSQL uses the index only for a query that repeats it.
IN_FLIGHT = "dispatched_at IS NOT NULL AND finished_at IS NULL"

# Always true; makes this commit return before the disk flush. Only for changes that are not confirmed to a client: the
# next commit that waits flushes them too, and changes that a crash of the database undoes are made again by a later
# dispatch or claim. PostgreSQL evaluates the subquery once, before the commit.
RELAXED_COMMIT = "(SELECT set_config('synchronous_commit', 'off', true)) = 'off'"

TO_WAITING = """
dispatched_at = NULL, started_at = NULL, lease_until = NULL, progress = NULL, note = NULL, version = version + 1
"""


def to_task(row: Sequence[Any]) -> Task:
    """The task in a row of :data:`taskd.store.rows.COLUMNS`."""
    fields = list(row)
    fields[5] = STATES[row[5]]
    return Task(*fields)


def to_tasks(rows: Iterable[Sequence[Any]]) -> list[Task]:
    """The tasks in these rows."""
    return [to_task(row) for row in rows]
