"""How PostgreSQL stores tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from taskd.model.tasks import Task
from taskd.store.rows import CUT_RESULT, LISTED_RESULT, STATES, listed_columns

# A large result stands outside the row, compressed. To cut it means to read and to decompress all of it, which costs 20
# times as much as the rest of the row. A result that even so has more bytes than a listed one (and the 4 of its header)
# is not read: any text of that length shows that it is too large.
LISTED = listed_columns(
    "t",
    f"CASE WHEN pg_column_size(result) >= {LISTED_RESULT + 4} THEN repeat(' ', {LISTED_RESULT}) ELSE {CUT_RESULT} END",
)
"""A task without its payload."""

HELD = "t.held IS TRUE"
"""For statements that know the ids. Without `IS TRUE`, PostgreSQL might walk the index tasks_held instead, which seems
to be empty when its statistics are old."""

# Always true; makes this commit return before the disk flush. Only for changes that are not confirmed to a client: the
# next commit that waits flushes them too, and what a crash of the database undoes is said again. PostgreSQL evaluates
# the subquery once, before the commit.
RELAXED_COMMIT = "(SELECT set_config('synchronous_commit', 'off', true)) = 'off'"

TIMELINE = "(SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8))"
"""The timeline that PostgreSQL writes to: another one after each failover and each restore from an archive. What it had
committed before may be lost then. See "Timelines" in PostgreSQL's manual, "Continuous Archiving"."""

ALL_ASSERTED = f"""
((SELECT count(*) FROM workers WHERE state IN ('serving', 'draining') AND timeline <> {TIMELINE}) = 0)
"""
"""Whether all living workers have said what they hold since a failover: what seems to wait may run at one of them."""


def to_task(row: Sequence[Any]) -> Task:
    """The task in a row of :func:`taskd.store.rows.columns`."""
    fields = list(row)
    fields[5] = STATES[row[5]]
    return Task(*fields)


def to_tasks(rows: Iterable[Sequence[Any]]) -> list[Task]:
    """The tasks in these rows."""
    return [to_task(row) for row in rows]
