"""The second factors of users in PostgreSQL. What decides about one follows a lock on its user."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from taskd.model.users import User
from taskd.ports.accounts import Entry, Factor
from taskd.store.postgres.arrays import byte_strings
from taskd.store.postgres.audit import note, noted
from taskd.store.postgres.connection import PostgresConnection
from taskd.store.postgres.database import PostgresDatabase
from taskd.store.postgres.sessions import accepted, locked
from taskd.store.postgres.users import USER, to_user
from taskd.store.refusals import check_text

_FORGET = "UPDATE users u SET totp_secret = NULL, totp_at = NULL, totp_step = NULL"

_FORGOTTEN = f"""
codes AS (
    DELETE FROM recovery_codes r USING changed WHERE r.user_id = changed.id
), shown AS (
    UPDATE sessions s SET totp = false FROM changed WHERE s.user_id = changed.id AND s.totp
), noted AS ({noted("(SELECT id, username_key FROM changed)")})
"""

PREPARED = {
    "begin_totp": """
UPDATE users SET totp_secret = $2 WHERE id = $1 AND totp_at IS NULL AND deleted_at IS NULL RETURNING 1
""",
    # A second run finds the recovery codes.
    "confirm_totp": f"""
WITH changed AS (
    UPDATE users SET totp_at = now(), totp_step = $4
    WHERE id = $2 AND totp_secret = $3 AND totp_at IS NULL AND deleted_at IS NULL
        AND EXISTS (SELECT FROM sessions WHERE token_hash = $6 AND user_id = $2)
    RETURNING id, username_key
), codes AS (
    INSERT INTO recovery_codes (user_id, code_hash) SELECT id, unnest($5::bytea[]) FROM changed
), shown AS (
    UPDATE sessions SET totp = true WHERE token_hash = $6 AND EXISTS (SELECT FROM changed)
), noted AS ({noted("(SELECT id, username_key FROM changed)")})
SELECT EXISTS (SELECT FROM changed)
    OR EXISTS (SELECT FROM recovery_codes WHERE user_id = $2 AND code_hash = ANY ($5::bytea[]))
""",
    "end_totp": f"""
WITH changed AS (
    {_FORGET} WHERE u.id = $2 AND {accepted("$3", "$4", "$5")} RETURNING u.id, u.username_key
), {_FORGOTTEN}
SELECT EXISTS (SELECT FROM changed), totp_secret IS NULL FROM users WHERE id = $2
""",
    "reset_totp": f"""
WITH changed AS (
    {_FORGET} WHERE u.username_key = $2 AND deleted_at IS NULL AND totp_secret IS NOT NULL
    RETURNING u.id, u.username_key
), {_FORGOTTEN}
SELECT {USER} FROM users WHERE username_key = $2 AND deleted_at IS NULL
""",
}


class PostgresTotp(PostgresDatabase):
    """The part of IAccountStore on PostgreSQL that is about second factors."""

    async def begin_totp(self, user_id: int, secret: str) -> bool:
        return bool(await self._call("begin_totp", user_id, secret))

    async def confirm_totp(
        self, user_id: int, factor: Factor, recovery_codes: Sequence[bytes], session: bytes, entry: Entry | None = None
    ) -> bool:
        args = note(entry), user_id, factor.secret, factor.step, byte_strings(recovery_codes), session
        return await self._call(locked, [("lock_user", user_id)], "confirm_totp", *args) == [(True,)]

    async def end_totp(self, user_id: int, factor: Factor, entry: Entry | None = None) -> bool:
        return bool(await self._call(_end_totp, user_id, factor, entry))

    async def reset_totp(self, key: str, entry: Entry | None = None) -> User | None:
        rows = await self._call(locked, [("lock_key", check_text(key))], "reset_totp", note(entry), key)
        # the statement shows the user as it was before
        return replace(to_user(*rows[0]), totp=False) if rows else None


async def _end_totp(
    connection: PostgresConnection, again: bool, user_id: int, factor: Factor, entry: Entry | None
) -> bool:
    """Whether it was ended. If an earlier run may have been committed, that one has perhaps."""
    args = note(entry), user_id, factor.secret, factor.step, factor.recovery
    rows = await connection.call_locked([("lock_user", user_id)], "end_totp", *args)
    return any(ended or (again and gone) for ended, gone in rows)
