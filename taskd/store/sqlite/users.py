"""How SQLite stores users."""

from __future__ import annotations

from sqlite3 import Cursor

from taskd.model.users import Role, User
from taskd.store.refusals import check_text

USER = "id, username, role, disabled_at, totp_at"
"""The columns of a user."""

FIND_USER = f"SELECT {USER} FROM users WHERE username_key = ? AND deleted_at IS NULL"


def to_user(user_id: int, username: str, role: str, disabled_at: int | None, totp_at: int | None) -> User:
    """The user in these columns."""
    return User(user_id, username, Role(role), disabled_at is not None, totp_at is not None)


def find_by_key(db: Cursor, key: str) -> User | None:
    """The user with this key."""
    row = db.execute(FIND_USER, (check_text(key),)).fetchone()
    return to_user(*row) if row else None
