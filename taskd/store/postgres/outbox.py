"""Outbox rows in PostgreSQL, which make it harmless to run a batch twice."""

from __future__ import annotations

from typing import Any

import psycopg2

from taskd.store.postgres.connection import PostgresConnection
from taskd.store.postgres.rows import Rows, T
from taskd.store.refusals import key_taken

PREPARED: dict[str, str] = {}

DELETE_SETTLED = """
DELETE FROM outbox WHERE id = ANY({ids}) AND published_at IS NULL
"""
# A row that was repeated or adopted is kept for OUTBOX_KEEP_SECONDS.
KEEP_SETTLED = """
UPDATE outbox SET published_at = 'infinity' WHERE id = ANY({ids}) AND published_at IS NOT NULL
"""

# Only a caller that repeats the batch asks for it. The row is marked, so that it is kept for OUTBOX_KEEP_SECONDS.
PREPARED["batch"] = f"""
WITH o AS (
    UPDATE outbox SET published_at = coalesce(published_at, now()) WHERE id = $1::uuid RETURNING task_ids
)
SELECT {T} FROM o, unnest(o.task_ids) WITH ORDINALITY AS i (id, n) JOIN tasks t USING (id) ORDER BY i.n
"""


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
