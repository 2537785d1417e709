"""Accounts and sessions in SQLite."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence

from taskd.model.errors import UsernameInUse
from taskd.model.users import User
from taskd.ports.accounts import Account
from taskd.store.paging import possible
from taskd.store.sqlite import statements as sql
from taskd.store.sqlite.database import SqliteBase
from taskd.store.texts import check_storable


class SqliteAccounts(SqliteBase):
    """The part of IStore that knows users."""

    async def create_user(self, username: str, key: str, password: str) -> User:
        return await self._run(self._create_user, check_storable(username), check_storable(key), password)

    def _create_user(self, db: sqlite3.Cursor, username: str, key: str, password: str) -> User:
        if row := db.execute(sql.CREATE_USER, (username, key, password, self._now())).fetchone():
            return User(row[0], username)
        row = db.execute(sql.FIND_USER, (key,)).fetchone()
        if row[2] != password:
            raise UsernameInUse(f"the username {username} is taken; choose another", field="username")
        return User(row[0], row[1])

    async def find_user(self, key: str) -> Account | None:
        row = await self._run(lambda db: db.execute(sql.FIND_USER, (check_storable(key),)).fetchone())
        return Account(User(row[0], row[1]), row[2]) if row else None

    async def open_session(self, user_id: int, token_hash: bytes, seconds: int) -> None:
        await self._run(self._open_session, user_id, token_hash, seconds)

    def _open_session(self, db: sqlite3.Cursor, user_id: int, token_hash: bytes, seconds: int) -> None:
        now = self._now()
        db.execute(sql.DROP_EXPIRED_SESSIONS, (user_id, now))
        db.execute(sql.OPEN_SESSION, (token_hash, user_id, now, now + seconds * 1_000_000))

    async def find_session(self, token_hash: bytes) -> User | None:
        row = await self._run(lambda db: db.execute(sql.FIND_SESSION, (token_hash, self._now())).fetchone())
        return User(*row) if row else None

    async def close_session(self, token_hash: bytes) -> None:
        await self._run(lambda db: db.execute(sql.CLOSE_SESSION, (token_hash,)) and None)

    async def usernames(self, user_ids: Sequence[int]) -> Mapping[int, str]:
        ids = json.dumps(possible(user_ids))
        return await self._run(lambda db: dict(db.execute(sql.USERNAMES, (ids,)).fetchall()))
