"""How PostgreSQL stores tasks, and the outbox rows, which make it harmless to run a batch twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import psycopg2

from taskd.model.tasks import Task
from taskd.store.postgres.connection import PostgresConnection, Rows
from taskd.store.refusals import key_taken
from taskd.store.rows import STATES, columns

T = columns("t")

# The condition of the index tasks_in_flight. PostgreSQL uses the index only for a query that repeats it.
IN_FLIGHT = "dispatched_at IS NOT NULL AND finished_at IS NULL"

# Always true; makes this commit return before the disk flush. Only for changes that are not confirmed to a client: the
# next commit that waits flushes them too, and changes that a crash of the database undoes are made again by a later
# dispatch or claim. PostgreSQL evaluates the subquery once, before the commit.
RELAXED_COMMIT = "(SELECT set_config('synchronous_commit', 'off', true)) = 'off'"


DELETE_SETTLED = """
DELETE FROM outbox WHERE id = ANY({ids}) AND published_at IS NULL
"""
# A row that was repeated or adopted is kept for OUTBOX_KEEP_SECONDS.
KEEP_SETTLED = """
UPDATE outbox SET published_at = 'infinity' WHERE id = ANY({ids}) AND published_at IS NOT NULL
"""

PREPARED = {
    # Only a caller that repeats the batch asks for it. The row is marked, so that it is kept for OUTBOX_KEEP_SECONDS.
    "batch": f"""
WITH o AS (
    UPDATE outbox SET published_at = coalesce(published_at, now()) WHERE id = $1::uuid RETURNING task_ids
)
SELECT {T} FROM o, unnest(o.task_ids) WITH ORDINALITY AS i (id, n) JOIN tasks t USING (id) ORDER BY i.n
""",
}


def to_task(row: Sequence[Any]) -> Task:
    """The task in a row of :func:`taskd.store.rows.columns`."""
    fields = list(row)
    fields[5] = STATES[row[5]]
    return Task(*fields)


def to_tasks(rows: Iterable[Sequence[Any]]) -> list[Task]:
    """The tasks in these rows."""
    return [to_task(row) for row in rows]


async def run_batch(
    connection: PostgresConnection, again: bool, name: str, batch: str, *args: Any
) -> tuple[bool, Rows]:
    """The rows of a statement that inserts the outbox row ``batch``: (False, rows), or (True, the tasks of the batch)
    if an earlier run did that. The last parameter of the statement is ``again``. Raises KeyTaken."""
    try:
        return False, await connection.call(name, *args, again)
    except psycopg2.errors.UniqueViolation as e:
        violated = e.diag.constraint_name
        if violated not in ("outbox_pkey", "tasks_key"):
            raise
    rows = await connection.call("batch", batch)
    if violated == "tasks_key" and not rows:
        raise key_taken()
    return True, rows
