"""The audit in SQLite, and the deletion of what is past."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Cursor

from msgspec.structs import astuple, replace

from taskd.ports.accounts import DEVICE_SECONDS, Audited, Entry
from taskd.store.audit import ENTRY, SWEPT, WRONG_GUESS, storable
from taskd.store.refusals import MAX_ID, check_text
from taskd.store.sqlite.database import SqliteDatabase, transaction
from taskd.store.sqlite.rows import from_micros, micros_of

NOTE = f"INSERT INTO audit (at, {ENTRY}) VALUES (?{', ?' * len(Entry.__struct_fields__)})"
COUNT_REFUSALS = f"SELECT coalesce(sum(number), 0) FROM audit WHERE subject = ? AND at > ? AND {WRONG_GUESS}"
_PAGE = f"SELECT id, at, {ENTRY} FROM audit WHERE id < :before"
_NEWEST = "ORDER BY id DESC LIMIT :limit"
LIST_ALL = f"{_PAGE} {_NEWEST}"
LIST_ACTION = f"{_PAGE} AND action = :action {_NEWEST}"
# Two walks along an index, each cut: an OR would walk the whole audit for a user who seldom occurs.
LIST_SUBJECT = f"""
SELECT * FROM ({_PAGE} AND subject = :subject AND coalesce(action = :action, 1) {_NEWEST})
UNION
SELECT * FROM (
    {_PAGE} AND actor_id = (SELECT id FROM users WHERE username_key = :subject)
        AND coalesce(action = :action, 1) {_NEWEST})
{_NEWEST}
"""
SWEEPS = {
    "sessions": f"""
DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE expires_at <= ? LIMIT {SWEPT})
""",
    "idle": f"""
DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE name IS NULL AND used_at <= ? LIMIT {SWEPT})
""",
    "invitations": f"""
DELETE FROM invitations WHERE id IN (SELECT id FROM invitations WHERE uses_left = 0 OR expires_at <= ? LIMIT {SWEPT})
""",
    "devices": f"""
DELETE FROM devices WHERE (user_id, network) IN (
    SELECT user_id, network FROM devices WHERE seen_at <= ? LIMIT {SWEPT})
""",
    "audit": f"DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE at < ? ORDER BY at LIMIT {SWEPT})",
}


class SqliteAudit(SqliteDatabase):
    """The part of IAccountStore on SQLite that is about the audit and about what is past."""

    @transaction
    def audit(self, db: Cursor, now: int, entries: Sequence[Entry]) -> None:
        for entry in entries:
            note(db, now, entry)

    @transaction
    def count_refusals(self, db: Cursor, now: int, subjects: Sequence[str], seconds: float) -> Sequence[int]:
        since = now - micros_of(seconds)
        return [db.execute(COUNT_REFUSALS, (check_text(subject), since)).fetchone()[0] for subject in subjects]

    @transaction
    def list_audit(
        self,
        db: Cursor,
        now: int,
        before_id: int | None,
        limit: int,
        subject: str | None = None,
        action: str | None = None,
    ) -> Sequence[Audited]:
        statement = LIST_SUBJECT if subject is not None else LIST_ALL if action is None else LIST_ACTION
        before = MAX_ID if before_id is None else min(before_id, MAX_ID)
        rows = db.execute(statement, {"before": before, "limit": limit, "subject": subject, "action": action})
        return [Audited(audit_id, from_micros(at), Entry(*entry)) for audit_id, at, *entry in rows]

    @transaction
    def sweep_accounts(self, db: Cursor, now: int, audit_days: float, idle: float) -> bool:
        before = {
            "idle": now - micros_of(idle),
            "devices": now - micros_of(DEVICE_SECONDS),
            "audit": now - micros_of(max(audit_days, 1) * 86_400),
        }
        counts = [db.execute(statement, (before.get(name, now),)).rowcount for name, statement in SWEEPS.items()]
        return max(counts) >= SWEPT


def note(db: Cursor, now: int, entry: Entry | None, user_id: int = 0, key: str = "") -> None:
    """Add an entry, if there is one. ``user_id`` and ``key`` are the subject of an entry that names none."""
    if entry is not None:
        stored = storable(entry)
        stored = replace(stored, subject_id=stored.subject_id or user_id, subject=stored.subject or key)
        db.execute(NOTE, (now, *astuple(stored)))
