"""What users have used of their quotas, in SQLite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from sqlite3 import Cursor

from taskd.model.quotas import Quota
from taskd.ports.accounts import Entry
from taskd.ports.quotas import HOURS, Usage, UsageDelta
from taskd.store.refusals import valid_ids
from taskd.store.sqlite.audit import note
from taskd.store.sqlite.database import SqliteDatabase, transaction
from taskd.store.sqlite.users import find_by_key

HOUR = 3_600_000_000
"""Microseconds."""

ADD = """
INSERT INTO user_usage (user_id, hour, tasks, bytes) VALUES (?, ?, ?, ?)
ON CONFLICT (user_id, hour) DO UPDATE SET tasks = tasks + excluded.tasks, bytes = bytes + excluded.bytes
"""
QUOTA = "SELECT quota_open, quota_daily, quota_bytes FROM users WHERE id = ? AND deleted_at IS NULL"
# An entry of the index is read for each task that is counted, and no row.
COUNT_OPEN = """
SELECT count(*) FROM (
    SELECT 1 FROM tasks INDEXED BY tasks_list WHERE user_id = ? AND status = 'Procesando' LIMIT ?)
"""
SUMS = """
SELECT coalesce(sum(bytes), 0), coalesce(sum(tasks) FILTER (WHERE hour > ?), 0),
    min(hour) FILTER (WHERE hour > ? AND tasks > 0)
FROM user_usage WHERE user_id = ?
"""
PASSED = "SELECT user_id, hour, bytes FROM user_usage WHERE hour > 0 AND hour <= ? ORDER BY hour, user_id LIMIT ?"
# No user gets below 0, however much was lost before what was deleted: the row is at least what the hours make up for.
FLOOR = """
UPDATE user_usage SET bytes = max(bytes, (
    SELECT -coalesce(sum(bytes), 0) FROM user_usage AS u WHERE u.user_id = user_usage.user_id AND hour > 0))
WHERE user_id = ? AND hour = 0
"""


class SqliteQuotas(SqliteDatabase):
    """IQuotaStore on SQLite."""

    @transaction
    def add_usage(self, db: Cursor, now: int, deltas: Sequence[UsageDelta]) -> None:
        db.executemany(ADD, [(user_id, now - now % HOUR, tasks, size) for user_id, tasks, size in deltas])

    @transaction
    def read_usage(
        self, db: Cursor, now: int, user_ids: Sequence[int], open_limit: int, unlimited: int = 0
    ) -> Mapping[int, Usage]:
        found = {}
        passed = _passed(now)
        for user_id in valid_ids(user_ids):
            row = db.execute(QUOTA, (user_id,)).fetchone()
            if row is None:
                continue
            quota = Quota(*row)
            limit = open_limit if quota.open is None else quota.open
            counted = limit + 1 if limit else unlimited
            [(open_tasks,)] = db.execute(COUNT_OPEN, (user_id, counted)).fetchall()
            [(size, daily, first)] = db.execute(SUMS, (passed, passed, user_id)).fetchall()
            frees_in = None if first is None else (first + HOURS * HOUR - now) / 1_000_000
            found[user_id] = Usage(quota, open_tasks, daily, max(0, size), frees_in)
        return found

    @transaction
    def set_quota(
        self, db: Cursor, now: int, key: str, changes: Mapping[str, int | None], entry: Entry | None = None
    ) -> Quota | None:
        user = find_by_key(db, key)
        if user is None:
            return None
        before = Quota(*db.execute(QUOTA, (user.id,)).fetchone())
        after = before._replace(**changes)
        if after != before:
            statement = "UPDATE users SET quota_open = ?, quota_daily = ?, quota_bytes = ? WHERE id = ?"
            db.execute(statement, (*after, user.id))
            note(db, now, entry, user.id, key)
        return after

    @transaction
    def fold_usage(self, db: Cursor, now: int, limit: int) -> int:
        rows = db.execute(PASSED, (_passed(now), limit)).fetchall()
        for user_id, hour, size in rows:
            db.execute("DELETE FROM user_usage WHERE user_id = ? AND hour = ?", (user_id, hour))
            if db.execute(QUOTA, (user_id,)).fetchone() is None:
                db.execute("DELETE FROM user_usage WHERE user_id = ?", (user_id,))
            elif size:
                db.execute(ADD, (user_id, 0, 0, size))
        for user_id in {user_id for user_id, _, _ in rows}:
            db.execute(FLOOR, (user_id,))
        return len(rows)


def _passed(now: int) -> int:
    """The beginning of the last hour that does not count for the daily limit any more."""
    return now - now % HOUR - HOURS * HOUR
