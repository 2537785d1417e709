"""How PostgreSQL stores users."""

from __future__ import annotations

from taskd.model.users import Role, User

USER = "id, username, role, disabled_at IS NOT NULL, totp_at IS NOT NULL"
"""The columns of a user."""


def to_user(user_id: int, username: str, role: str, disabled: bool, totp: bool) -> User:
    """The user in these columns."""
    return User(user_id, username, Role(role), disabled, totp)
