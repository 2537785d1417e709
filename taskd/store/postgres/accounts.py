"""Accounts and sessions in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from taskd.model.errors import UsernameInUse
from taskd.model.users import User
from taskd.ports.accounts import Account
from taskd.store.paging import possible
from taskd.store.postgres.arrays import numbers
from taskd.store.postgres.database import PostgresBase
from taskd.store.texts import check_storable


class PostgresAccounts(PostgresBase):
    """The part of IStore that knows users."""

    async def create_user(self, username: str, key: str, password: str) -> User:
        args = check_storable(username), check_storable(key), password
        if rows := await self._call("create_user", *args):
            return User(rows[0][0], username)
        account = await self.find_user(key)
        if account is None or account.password != password:
            raise UsernameInUse(f"the username {username} is taken; choose another", field="username")
        return account.user

    async def find_user(self, key: str) -> Account | None:
        rows = await self._call("find_user", check_storable(key))
        return Account(User(*rows[0][:2]), rows[0][2]) if rows else None

    async def open_session(self, user_id: int, token_hash: bytes, seconds: int) -> None:
        await self._call("open_session", user_id, token_hash, seconds)

    async def find_session(self, token_hash: bytes) -> User | None:
        rows = await self._call("find_session", token_hash)
        return User(*rows[0]) if rows else None

    async def close_session(self, token_hash: bytes) -> None:
        await self._call("close_session", token_hash)

    async def usernames(self, user_ids: Sequence[int]) -> Mapping[int, str]:
        return dict(await self._call("usernames", numbers(possible(user_ids))))
