"""Users and sessions in PostgreSQL."""

from __future__ import annotations

from taskd.model.users import User
from taskd.ports.accounts import Account
from taskd.store.postgres.database import PostgresDatabase
from taskd.store.refusals import check_text, username_in_use

PREPARED = {
    # Returns no row when the key is taken, also by an earlier run of the same registration.
    "create_user": """
INSERT INTO users (username, username_key, password) VALUES ($1, $2, $3)
ON CONFLICT (username_key) DO NOTHING RETURNING id
""",
    "find_user": "SELECT id, username, password FROM users WHERE username_key = $1",
    "open_session": """
WITH expired AS (DELETE FROM sessions WHERE user_id = $1 AND expires_at <= now())
INSERT INTO sessions (token_hash, user_id, expires_at) VALUES ($2, $1, now() + make_interval(secs => $3))
ON CONFLICT (token_hash) DO NOTHING
""",
    "find_session": """
SELECT u.id, u.username FROM sessions s JOIN users u ON u.id = s.user_id
WHERE s.token_hash = $1 AND s.expires_at > now()
""",
    "set_weight": "UPDATE users SET weight = $2 WHERE username_key = $1 RETURNING id",
    "close_session": "DELETE FROM sessions WHERE token_hash = $1",
}


class PostgresAccounts(PostgresDatabase):
    """IAccountStore on PostgreSQL."""

    async def create_user(self, username: str, key: str, password: str) -> User:
        if rows := await self._call("create_user", check_text(username), check_text(key), password):
            return User(rows[0][0], username)
        account = await self.find_user(key)
        if account is None or account.password != password:
            raise username_in_use(username)
        return account.user

    async def find_user(self, key: str) -> Account | None:
        rows = await self._call("find_user", check_text(key))
        return Account(User(*rows[0][:2]), rows[0][2]) if rows else None

    async def open_session(self, user_id: int, token_hash: bytes, seconds: int) -> None:
        await self._call("open_session", user_id, token_hash, seconds)

    async def find_session(self, token_hash: bytes) -> User | None:
        rows = await self._call("find_session", token_hash)
        return User(*rows[0]) if rows else None

    async def close_session(self, token_hash: bytes) -> None:
        await self._call("close_session", token_hash)

    async def set_weight(self, key: str, weight: float) -> bool:
        return bool(await self._call("set_weight", check_text(key), weight))
