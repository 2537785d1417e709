"""Users and their sessions in the store."""

from __future__ import annotations

from collections.abc import Awaitable

import msgspec
from zope.interface import Interface

from taskd.model.users import User


class Account(msgspec.Struct, frozen=True):
    """A user with the bcrypt hash of its password. Only the code that checks passwords may see it."""

    user: User
    password: str


class IAccountStore(Interface):
    """Users, password hashes and session tokens."""

    def create_user(username: str, key: str, password: str) -> Awaitable[User]:
        """Store a user under a unique ``key``. ``password`` is a bcrypt hash. Repeating the call with the same hash
        returns the same user. Raises UsernameInUse."""

    def find_user(key: str) -> Awaitable[Account | None]:
        """The account with this key, None if there is none."""

    def open_session(user_id: int, token_hash: bytes, seconds: int) -> Awaitable[None]:
        """Store the hash of a session token for this many seconds; delete the user's expired sessions."""

    def find_session(token_hash: bytes) -> Awaitable[User | None]:
        """The user of this session, None if it has expired or does not exist."""

    def close_session(token_hash: bytes) -> Awaitable[None]:
        """Delete a session, if it exists."""

    def set_weight(key: str, weight: float) -> Awaitable[bool]:
        """Set a user's share of the slots, compared with the weights of the others (1 at first). False if there is no
        such user."""
