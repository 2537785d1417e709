"""Users and sessions in SQLite."""

from __future__ import annotations

from sqlite3 import Cursor

from taskd.model.users import User
from taskd.ports.accounts import Account
from taskd.store.refusals import check_text, username_in_use
from taskd.store.sqlite.database import SqliteDatabase, transaction

# Returns no row when the key is taken, also by an earlier run of the same registration.
CREATE_USER = """
INSERT INTO users (username, username_key, password, created_at) VALUES (?, ?, ?, ?)
ON CONFLICT (username_key) DO NOTHING RETURNING id
"""
FIND_USER = "SELECT id, username, password FROM users WHERE username_key = ?"
DROP_EXPIRED_SESSIONS = "DELETE FROM sessions WHERE user_id = ? AND expires_at <= ?"
OPEN_SESSION = "INSERT INTO sessions VALUES (?, ?, ?, ?) ON CONFLICT (token_hash) DO NOTHING"
FIND_SESSION = """
SELECT u.id, u.username FROM sessions s JOIN users u ON u.id = s.user_id
WHERE s.token_hash = ? AND s.expires_at > ?
"""
CLOSE_SESSION = "DELETE FROM sessions WHERE token_hash = ?"
SET_WEIGHT = "UPDATE users SET weight = ? WHERE username_key = ?"


class SqliteAccounts(SqliteDatabase):
    """IAccountStore on SQLite."""

    @transaction
    def create_user(self, db: Cursor, now: int, username: str, key: str, password: str) -> User:
        if row := db.execute(CREATE_USER, (check_text(username), check_text(key), password, now)).fetchone():
            return User(row[0], username)
        row = db.execute(FIND_USER, (key,)).fetchone()
        if row[2] != password:
            raise username_in_use(username)
        return User(*row[:2])

    @transaction
    def find_user(self, db: Cursor, now: int, key: str) -> Account | None:
        row = db.execute(FIND_USER, (check_text(key),)).fetchone()
        return Account(User(*row[:2]), row[2]) if row else None

    @transaction
    def open_session(self, db: Cursor, now: int, user_id: int, token_hash: bytes, seconds: int) -> None:
        db.execute(DROP_EXPIRED_SESSIONS, (user_id, now))
        db.execute(OPEN_SESSION, (token_hash, user_id, now, now + seconds * 1_000_000))

    @transaction
    def find_session(self, db: Cursor, now: int, token_hash: bytes) -> User | None:
        row = db.execute(FIND_SESSION, (token_hash, now)).fetchone()
        return User(*row) if row else None

    @transaction
    def close_session(self, db: Cursor, now: int, token_hash: bytes) -> None:
        db.execute(CLOSE_SESSION, (token_hash,))

    @transaction
    def set_weight(self, db: Cursor, now: int, key: str, weight: float) -> bool:
        return db.execute(SET_WEIGHT, (weight, check_text(key))).rowcount > 0
