"""The second factors of users in SQLite."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Cursor

from msgspec.structs import replace

from taskd.model.users import User
from taskd.ports.accounts import Entry, Factor
from taskd.store.sqlite.audit import note
from taskd.store.sqlite.database import SqliteDatabase, transaction
from taskd.store.sqlite.users import find_by_key

BEGIN_TOTP = "UPDATE users SET totp_secret = ? WHERE id = ? AND totp_at IS NULL AND deleted_at IS NULL"
CONFIRM_TOTP = """
UPDATE users SET totp_at = ?1, totp_step = ?4
WHERE id = ?2 AND totp_secret = ?3 AND totp_at IS NULL
    AND EXISTS (SELECT 1 FROM sessions WHERE token_hash = ?5 AND user_id = ?2)
RETURNING username_key
"""
ADD_RECOVERY_CODE = "INSERT INTO recovery_codes (user_id, code_hash) VALUES (?, ?)"
HAS_RECOVERY_CODE = "SELECT EXISTS (SELECT 1 FROM recovery_codes WHERE user_id = ? AND code_hash = ?)"
SHOW_TOTP = "UPDATE sessions SET totp = 1 WHERE token_hash = ?"
USE_STEP = """
UPDATE users SET totp_step = ?3 WHERE id = ?1 AND totp_at IS NOT NULL AND totp_secret = ?2 AND totp_step < ?3
"""
USE_RECOVERY_CODE = """
DELETE FROM recovery_codes WHERE user_id = ?1 AND code_hash = ?3
    AND EXISTS (SELECT 1 FROM users WHERE id = ?1 AND totp_at IS NOT NULL AND totp_secret = ?2)
"""
FORGET_TOTP = """
UPDATE users SET totp_secret = NULL, totp_at = NULL, totp_step = NULL WHERE id = ? AND totp_secret IS NOT NULL
RETURNING username_key
"""
FORGET_SHOWN = "UPDATE sessions SET totp = 0 WHERE user_id = ?"
DELETE_RECOVERY_CODES = "DELETE FROM recovery_codes WHERE user_id = ?"


class SqliteTotp(SqliteDatabase):
    """The part of IAccountStore on SQLite that is about second factors."""

    @transaction
    def begin_totp(self, db: Cursor, now: int, user_id: int, secret: str) -> bool:
        return bool(db.execute(BEGIN_TOTP, (secret, user_id)).rowcount)

    @transaction
    def confirm_totp(
        self,
        db: Cursor,
        now: int,
        user_id: int,
        factor: Factor,
        recovery_codes: Sequence[bytes],
        session: bytes,
        entry: Entry | None = None,
    ) -> bool:
        row = db.execute(CONFIRM_TOTP, (now, user_id, factor.secret, factor.step, session)).fetchone()
        if row is None:
            return bool(db.execute(HAS_RECOVERY_CODE, (user_id, recovery_codes[0])).fetchone()[0])
        db.executemany(ADD_RECOVERY_CODE, [(user_id, code) for code in recovery_codes])
        db.execute(SHOW_TOTP, (session,))
        note(db, now, entry, user_id, row[0])
        return True

    @transaction
    def end_totp(self, db: Cursor, now: int, user_id: int, factor: Factor, entry: Entry | None = None) -> bool:
        if not use_factor(db, user_id, factor):
            return False
        _forget(db, now, user_id, entry)
        return True

    @transaction
    def reset_totp(self, db: Cursor, now: int, key: str, entry: Entry | None = None) -> User | None:
        user = find_by_key(db, key)
        if user is None:
            return None
        _forget(db, now, user.id, entry)
        return replace(user, totp=False)


def use_factor(db: Cursor, user_id: int, factor: Factor) -> bool:
    """Use up what shows the second factor. False if it is not accepted."""
    if factor.recovery is not None:
        return bool(db.execute(USE_RECOVERY_CODE, (user_id, factor.secret, factor.recovery)).rowcount)
    return bool(db.execute(USE_STEP, (user_id, factor.secret, factor.step)).rowcount)


def _forget(db: Cursor, now: int, user_id: int, entry: Entry | None) -> None:
    row = db.execute(FORGET_TOTP, (user_id,)).fetchone()
    if row is not None:
        db.execute(DELETE_RECOVERY_CODES, (user_id,))
        db.execute(FORGET_SHOWN, (user_id,))
        note(db, now, entry, user_id, row[0])
