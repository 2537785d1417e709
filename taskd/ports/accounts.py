"""Users and their sessions in the store."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence

import msgspec
from zope.interface import Interface

from taskd.model.users import User


class Account(msgspec.Struct, frozen=True):
    """A user with its bcrypt hash, for the accounts room only."""

    user: User
    password: str


class IAccountStore(Interface):
    """Users, password hashes and session tokens."""

    def create_user(username: str, key: str, password: str) -> Awaitable[User]:
        """Store a user under its unique ``key``. Raises UsernameInUse."""

    def find_user(key: str) -> Awaitable[Account | None]:
        """The account under this key."""

    def open_session(user_id: int, token_hash: bytes, seconds: int) -> Awaitable[None]:
        """Remember a session token's hash for this long; drops the user's expired ones."""

    def find_session(token_hash: bytes) -> Awaitable[User | None]:
        """Whose unexpired session this is."""

    def close_session(token_hash: bytes) -> Awaitable[None]:
        """Forget a session, if it is there."""

    def usernames(user_ids: Sequence[int]) -> Awaitable[Mapping[int, str]]:
        """The names of these users, as far as they exist."""
