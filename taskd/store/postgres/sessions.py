"""Sessions, API tokens and invitations in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from taskd.model.errors import Unavailable, code_missing, code_refused
from taskd.model.users import Role, User
from taskd.ports.accounts import MAX_SESSIONS, Entry, Invitation, NewSession, Session
from taskd.store.audit import touch_after
from taskd.store.postgres.arrays import byte_strings
from taskd.store.postgres.audit import note, noted
from taskd.store.postgres.connection import PostgresConnection, Rows
from taskd.store.postgres.database import PostgresDatabase
from taskd.store.postgres.rows import RELAXED_COMMIT
from taskd.store.refusals import MAX_ID, account_ended, check_text, sanitize

_SESSION = """
s.id, s.token_hash, s.created_at, s.used_at, s.expires_at, s.address, s.name, s.ending, s.scopes, s.totp, u.id,
u.username, u.role, u.totp_at IS NOT NULL
"""


def _valid(idle: str) -> str:
    """A login that nobody has used for so long has ended; an API token has not."""
    return f"""
u.disabled_at IS NULL AND s.expires_at > now()
AND (s.name IS NOT NULL OR s.used_at > now() - make_interval(secs => {idle}))
"""


def accepted(secret: str, step: str, recovery: str) -> str:
    """Whether these parameters show the second factor of the user ``u``. Follows lock_user; may be NULL."""
    return f"""
u.totp_at IS NOT NULL AND u.totp_secret = {secret}::text AND (u.totp_step < {step}::bigint
    OR EXISTS (SELECT FROM recovery_codes r WHERE r.user_id = u.id AND r.code_hash = {recovery}::bytea))
"""


_OWNER_OF_GONE = "(SELECT u.id, u.username_key FROM gone JOIN users u ON u.id = gone.user_id LIMIT 1)"

PREPARED = {
    # Locks the user, so that the statements about one user's password, sessions and rights follow each other. Logins
    # wait for nobody else's: a foreign key does not conflict with this lock.
    "lock_user": "SELECT FROM users WHERE id = $1 FOR NO KEY UPDATE",
    # Follows lock_user. The new session is not in this statement's snapshot: with it, as many are left as may be. A
    # second run finds the hash and changes nothing; what shows the second factor is used up then.
    "open_session": f"""
WITH owner AS MATERIALIZED (
    SELECT id, username_key, EXISTS (SELECT FROM sessions WHERE token_hash = $3::bytea) AS is_open,
        CASE WHEN $12::text IS NULL THEN ($10::text IS NULL AND $15::bigint IS NULL) OR totp_at IS NULL
            ELSE coalesce({accepted("$12", "$13", "$14")}, false) END AS admitted
    FROM users u
    WHERE id = $2 AND disabled_at IS NULL AND ($10::text IS NULL OR password = $10)
        AND ($15::bigint IS NULL OR local_uid = $15)
        AND ($11::bytea IS NULL OR EXISTS (SELECT FROM sessions WHERE token_hash = $11 AND user_id = $2))
), expired AS (
    DELETE FROM sessions WHERE user_id = $2 AND expires_at <= now()
), made AS (
    INSERT INTO sessions (user_id, token_hash, expires_at, address, name, ending, scopes, totp)
    SELECT id, $3, now() + make_interval(secs => $4), $5::text, $6::text, $7::text, $8::json,
        $12 IS NOT NULL OR EXISTS (SELECT FROM sessions WHERE token_hash = $11 AND totp)
    FROM owner WHERE admitted AND NOT is_open
    ON CONFLICT (token_hash) DO NOTHING RETURNING user_id
), step AS (
    UPDATE users SET totp_step = $13 FROM made WHERE users.id = made.user_id AND $13 IS NOT NULL
), recovery AS (
    DELETE FROM recovery_codes r USING made WHERE r.user_id = made.user_id AND r.code_hash = $14
), dropped AS (
    DELETE FROM sessions s USING (
        SELECT o.token_hash FROM made JOIN sessions o ON o.user_id = made.user_id
        WHERE (o.name IS NULL) = ($6::text IS NULL) AND o.expires_at > now()
        ORDER BY o.id DESC OFFSET {MAX_SESSIONS - 1}) AS oldest
    WHERE s.token_hash = oldest.token_hash
), device AS (
    INSERT INTO devices (user_id, network) SELECT user_id, $9::text FROM made WHERE $9::text <> ''
    ON CONFLICT (user_id, network) DO UPDATE SET seen_at = now()
), noted AS ({noted("(SELECT id, username_key FROM owner WHERE EXISTS (SELECT FROM made))")})
SELECT admitted OR is_open FROM owner
""",
    # Reads only: this is asked every few seconds for every connection.
    "find_sessions": f"""
SELECT {_SESSION}, s.used_at < now() - make_interval(secs => $3) FROM unnest($1::bytea[]) AS k (token_hash)
    JOIN sessions s ON s.token_hash = k.token_hash JOIN users u ON u.id = s.user_id
WHERE {_valid("$2")}
""",
    # Two servers may have the same sessions, in another order: neither waits. The time is exact to an hour and need not
    # survive a crash.
    "touch_sessions": f"""
WITH stale AS MATERIALIZED (
    SELECT token_hash FROM sessions
    WHERE token_hash = ANY ($1::bytea[]) AND used_at < now() - make_interval(secs => $2) AND {RELAXED_COMMIT}
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE sessions s SET used_at = now() FROM stale WHERE s.token_hash = stale.token_hash
""",
    "list_sessions": f"""
SELECT {_SESSION} FROM sessions s JOIN users u ON u.id = s.user_id
WHERE s.user_id = $1 AND {_valid("$2")} ORDER BY s.id DESC
""",
    "close_session": f"""
WITH gone AS (
    DELETE FROM sessions WHERE token_hash = $2 RETURNING user_id
), noted AS ({noted(_OWNER_OF_GONE)})
SELECT count(*) FROM gone
""",
    "end_session": f"""
WITH gone AS (
    DELETE FROM sessions WHERE user_id = $2 AND id = $3 RETURNING user_id
), noted AS ({noted(_OWNER_OF_GONE)})
SELECT count(*) FROM gone
""",
    # Follows lock_user.
    "end_sessions": f"""
WITH gone AS (
    DELETE FROM sessions WHERE user_id = $2 AND token_hash IS DISTINCT FROM $3::bytea RETURNING user_id
), noted AS ({noted(_OWNER_OF_GONE)})
SELECT count(*) FROM gone
""",
    # An earlier run may have stored it.
    "create_invitation": f"""
WITH made AS (
    INSERT INTO invitations (token_hash, uses_left, expires_at, created_by)
    VALUES ($2, $3, now() + make_interval(secs => $4), $5) ON CONFLICT (token_hash) DO NOTHING RETURNING id
), noted AS ({noted("(SELECT 0, '' FROM made)")})
SELECT id FROM made UNION ALL SELECT id FROM invitations WHERE token_hash = $2
""",
    "is_invited": "SELECT 1 FROM invitations WHERE token_hash = $1 AND uses_left > 0 AND expires_at > now()",
    "list_invitations": """
SELECT id, uses_left, created_by, created_at, expires_at FROM invitations
WHERE uses_left > 0 AND expires_at > now() ORDER BY id DESC LIMIT 1000
""",
    "end_invitation": f"""
WITH gone AS (
    DELETE FROM invitations WHERE id = $2 RETURNING id
), noted AS ({noted("(SELECT 0, '' FROM gone)")})
SELECT count(*) FROM gone
""",
}


class PostgresSessions(PostgresDatabase):
    """The part of IAccountStore on PostgreSQL that is about sessions and invitations."""

    async def open_session(self, user_id: int, session: NewSession, entry: Entry | None = None) -> None:
        factor = session.factor
        rows = await self._call(
            locked,
            [("lock_user", user_id)],
            "open_session",
            note(entry),
            user_id,
            session.token_hash,
            session.seconds,
            sanitize(session.address),
            session.name if session.name is None else check_text(session.name),
            session.ending,
            None if session.scopes is None else json.dumps(list(session.scopes)),
            check_text(session.network),
            session.password,
            session.asked_by,
            None if factor is None else factor.secret,
            None if factor is None else factor.step,
            None if factor is None else factor.recovery,
            session.local_uid,
        )
        if not rows:
            raise account_ended()
        if rows != [(True,)]:
            raise code_missing() if factor is None else code_refused()

    async def find_sessions(self, token_hashes: Sequence[bytes], idle: float) -> Mapping[bytes, Session]:
        stale_after = touch_after(idle)
        rows = await self._call("find_sessions", byte_strings(token_hashes), idle, stale_after)
        found = {session.token_hash: session for session in map(_to_session, rows)}
        if stale := [bytes(row[1]) for row in rows if row[-1]]:
            # The next call notes it if this one cannot
            with suppress(Unavailable):
                await self._call("touch_sessions", byte_strings(stale), stale_after)
        return found

    async def list_sessions(self, user_id: int, idle: float) -> Sequence[Session]:
        return [_to_session(row) for row in await self._call("list_sessions", user_id, idle)]

    async def close_session(self, token_hash: bytes, entry: Entry | None = None) -> None:
        await self._call("close_session", note(entry), token_hash)

    async def end_session(self, user_id: int, session_id: int, entry: Entry | None = None) -> bool:
        return session_id <= MAX_ID and await self._call(_deleted, "end_session", note(entry), user_id, session_id)

    async def end_sessions(self, user_id: int, keep: bytes | None, entry: Entry | None = None) -> int:
        args = note(entry), user_id, keep
        return int((await self._call(locked, [("lock_user", user_id)], "end_sessions", *args))[0][0])

    async def create_invitation(self, token_hash: bytes, uses: int, seconds: float, entry: Entry) -> int:
        args = note(entry), token_hash, uses, seconds, sanitize(entry.actor)
        return int((await self._call("create_invitation", *args))[0][0])

    async def is_invited(self, token_hash: bytes) -> bool:
        return bool(await self._call("is_invited", token_hash))

    async def list_invitations(self) -> Sequence[Invitation]:
        return [Invitation(*row) for row in await self._call("list_invitations")]

    async def end_invitation(self, invitation_id: int, entry: Entry | None = None) -> bool:
        return invitation_id <= MAX_ID and await self._call(_deleted, "end_invitation", note(entry), invitation_id)


async def locked(
    connection: PostgresConnection, again: bool, locks: Sequence[tuple[str, Any]], statement: str, *args: Any
) -> Rows:
    """Run the statement after those that take its locks."""
    return await connection.call_locked(locks, statement, *args)


async def _deleted(connection: PostgresConnection, again: bool, statement: str, *args: Any) -> bool:
    """Whether the statement has deleted a row. If an earlier run may have been committed, that one has."""
    [(count,)] = await connection.call(statement, *args)
    return bool(count) or again


def _to_session(row: Sequence[Any]) -> Session:
    number, token_hash, created, used, expires, address, name, ending, scopes, shown, *owner = row[:14]
    user_id, username, role, totp = owner
    user = User(user_id, username, Role(role), totp=totp)
    allowed = None if scopes is None else tuple(json.loads(scopes))
    return Session(number, user, bytes(token_hash), created, used, expires, address, name, ending, allowed, shown)
