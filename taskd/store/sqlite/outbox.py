"""Outbox rows in SQLite, which make it harmless to run a batch twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from sqlite3 import Cursor

from taskd.model.tasks import Task
from taskd.store.sqlite.rows import ALL, FOREVER, to_tasks

CREATE_BATCH = "INSERT INTO outbox VALUES (?, ?, ?, NULL)"
FIND_BATCH = "SELECT task_ids FROM outbox WHERE id = ?"
TASKS_BY_ID = f"SELECT {ALL} FROM tasks WHERE id IN (SELECT value FROM json_each(?))"
DELETE_SETTLED = "DELETE FROM outbox WHERE id IN (SELECT value FROM json_each(?)) AND published_at IS NULL"
# A row that was adopted is kept for OUTBOX_KEEP_SECONDS.
KEEP_SETTLED = "UPDATE outbox SET published_at = ? WHERE id IN (SELECT value FROM json_each(?))"


def settle(db: Cursor, batches: Sequence[str]) -> None:
    """Delete the rows whose messages were all confirmed, or mark them for deletion."""
    ids = json.dumps(list(batches))
    db.execute(DELETE_SETTLED, (ids,))
    db.execute(KEEP_SETTLED, (FOREVER, ids))


def tasks_in_order(db: Cursor, ids: str) -> list[Task]:
    """The tasks of a JSON list of ids, in its order, without those that were deleted since."""
    found = {task.id: task for task in to_tasks(db.execute(TASKS_BY_ID, (ids,)))}
    return [found[task_id] for task_id in json.loads(ids) if task_id in found]
