"""The audit in PostgreSQL, and the deletion of what is past."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from taskd.ports.accounts import DEVICE_SECONDS, Audited, Entry
from taskd.store.audit import ENTRY, SWEPT, WRONG_GUESS, storable
from taskd.store.postgres.arrays import texts
from taskd.store.postgres.database import PostgresDatabase
from taskd.store.refusals import MAX_ID, check_text

_TYPES = """
(id bigint, action text, actor_id bigint, actor text, subject_id bigint, subject text, address text, outcome text,
    number integer, details text)
"""


def noted(source: str) -> str:
    """An INSERT that adds the entry $1, a JSON list of one or none, for each row of ``source``: the id and the key of
    its subject, if the entry names none."""
    return f"""
INSERT INTO audit ({ENTRY})
SELECT e.action, e.actor_id, e.actor, coalesce(nullif(e.subject_id, 0), c.id),
    coalesce(nullif(e.subject, ''), c.username_key), e.address, e.outcome, e.number, e.details
FROM {source} AS c (id, username_key), json_to_recordset($1::json) AS e {_TYPES}
"""


def _sweep(table: str, key: str, condition: str) -> str:
    """Deletes some of the rows, and returns how many. Rows that another server is deleting are left to it."""
    match = " AND ".join(f"t.{column} = past.{column}" for column in key.split(", "))
    return f"""
WITH past AS MATERIALIZED (
    SELECT {key} FROM {table} WHERE {condition} LIMIT {SWEPT} FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {table} t USING past WHERE {match}
)
SELECT count(*) FROM past
"""


_PAGE = f"SELECT id, at, {ENTRY} FROM audit WHERE id < $1::bigint"
_NEWEST = "ORDER BY id DESC LIMIT $2"
_SUBJECT = "($4::text IS NULL OR action = $4)"

PREPARED = {
    # The id makes a second run harmless. It is drawn before by a statement whose commit waits for the disk: a crash
    # does not draw it again.
    "draw_audit_ids": """
SELECT nextval('audit_id_seq') FROM generate_series(1, $1) WHERE pg_current_xact_id() IS NOT NULL
""",
    "audit": f"""
INSERT INTO audit (id, {ENTRY}) OVERRIDING SYSTEM VALUE
SELECT id, {ENTRY} FROM json_to_recordset($1::json) AS e {_TYPES}
ON CONFLICT (id) DO NOTHING
""",
    "count_refusals": f"""
SELECT (
    SELECT coalesce(sum(number), 0) FROM audit
    WHERE audit.subject = k.subject AND at > now() - make_interval(secs => $2) AND {WRONG_GUESS})
FROM unnest($1::text[]) WITH ORDINALITY AS k (subject, n) ORDER BY n
""",
    "list_audit": f"{_PAGE} {_NEWEST}",
    "list_audit_action": f"{_PAGE} AND action = $3 {_NEWEST}",
    # Two walks along an index, each cut: an OR would walk the whole audit for a user who seldom occurs.
    "list_audit_subject": f"""
({_PAGE} AND subject = $3 AND {_SUBJECT} {_NEWEST})
UNION
({_PAGE} AND actor_id = (SELECT id FROM users WHERE username_key = $3) AND {_SUBJECT} {_NEWEST})
{_NEWEST}
""",
    "sweep_sessions": _sweep("sessions", "token_hash", "expires_at <= now()"),
    "sweep_idle": _sweep("sessions", "token_hash", "name IS NULL AND used_at <= now() - make_interval(secs => $1)"),
    "sweep_invitations": _sweep("invitations", "token_hash", "uses_left = 0 OR expires_at <= now()"),
    "sweep_devices": _sweep("devices", "user_id, network", "seen_at <= now() - make_interval(secs => $1)"),
    # The role of the daemons may not delete rows of the audit; this function may.
    "sweep_audit": "SELECT forget_audit($1)",
}


class PostgresAudit(PostgresDatabase):
    """The part of IAccountStore on PostgreSQL that is about the audit and about what is past."""

    async def audit(self, entries: Sequence[Entry]) -> None:
        if entries:
            ids = await self._call("draw_audit_ids", len(entries))
            rows = zip(ids, entries, strict=True)
            stored = [{"id": audit_id, **msgspec.structs.asdict(storable(entry))} for (audit_id,), entry in rows]
            await self._call("audit", msgspec.json.encode(stored).decode())

    async def count_refusals(self, subjects: Sequence[str], seconds: float) -> Sequence[int]:
        rows = await self._call("count_refusals", texts([check_text(subject) for subject in subjects]), seconds)
        return [int(count) for (count,) in rows]

    async def list_audit(
        self, before_id: int | None, limit: int, subject: str | None = None, action: str | None = None
    ) -> Sequence[Audited]:
        page = MAX_ID if before_id is None else min(before_id, MAX_ID), limit
        if subject is not None:
            rows = await self._call("list_audit_subject", *page, subject, action)
        elif action is not None:
            rows = await self._call("list_audit_action", *page, action)
        else:
            rows = await self._call("list_audit", *page)
        return [Audited(audit_id, at, Entry(*entry)) for audit_id, at, *entry in rows]

    async def sweep_accounts(self, audit_days: float, idle: float) -> bool:
        counts = [
            (await self._call(statement, *args))[0][0]
            for statement, *args in (
                ("sweep_sessions",),
                ("sweep_idle", idle),
                ("sweep_invitations",),
                ("sweep_devices", DEVICE_SECONDS),
                ("sweep_audit", audit_days),
            )
        ]
        return max(counts) >= SWEPT


def note(entry: Entry | None) -> str:
    """An entry, or none, as :func:`noted` takes it."""
    return "[]" if entry is None else msgspec.json.encode([storable(entry)]).decode()
