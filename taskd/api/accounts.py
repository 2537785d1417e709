"""Accounts: registration, login and session tokens.

bcrypt runs in its own thread pool, so that a burst of logins delays neither the reactor nor name resolution.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import bcrypt
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from taskd.model.errors import AuthRequired, Forbidden, NoUser, RateLimited, WrongCredentials, quote
from taskd.model.limits import MAX_PASSWORD_BYTES
from taskd.model.users import User, check_new_password, normalize_username, password_bytes
from taskd.ports.store import IStore

RunHash = Callable[..., Awaitable[Any]]
"""Runs a blocking function in another thread; its result comes later."""

MAX_HASHES_PENDING = 200
"""A hash takes about a quarter of a second. In a longer queue every client would give up before its turn."""


class HashPool:
    """Threads for bcrypt, which releases the GIL. At most as many calls as threads are in the pool; the others wait
    outside, so that :meth:`stop` waits only for the hashes under way."""

    def __init__(self, reactor: IReactorFromThreads, threads: int = 2) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(1, threads, "bcrypt")
        self._free = DeferredSemaphore(threads)

    def start(self) -> None:
        """Start the threads."""
        self._pool.start()

    def stop(self) -> None:
        """End the threads after the hashes under way; waiting calls are never run."""
        self._pool.stop()

    def __call__(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        return self._free.run(deferToThreadPool, self._reactor, self._pool, function, *args)


class Accounts:
    """``rounds`` is bcrypt's cost, ``session_seconds`` how long a session token is valid. ``admins`` are the keys of
    the users who are admins, whether they exist or not."""

    _log = Logger()

    def __init__(
        self,
        store: IStore,
        run_hash: RunHash,
        rounds: int,
        session_seconds: int,
        new_token: Callable[[], str] = lambda: secrets.token_urlsafe(32),
        admins: Collection[str] = (),
    ) -> None:
        self.session_seconds = session_seconds
        self._store = store
        self._run_hash = run_hash
        self._rounds = rounds
        self._new_token = new_token
        self._admins = frozenset(admins)
        self._pending = 0

    async def register(self, username: str, password: str) -> User:
        """Create an account. Raises BadRequest, Forbidden, UsernameInUse, RateLimited, Unavailable."""
        name, key = normalize_username(username)
        if key in self._admins:
            # whoever came first would be an admin
            text = "is the name of an admin; an admin registers before the setting TASKD_ADMINS has the name"
            raise Forbidden(f"{quote(name)} {text}", field="username")
        secret = check_new_password(password)
        return await self._store.create_user(name, key, await self._hashing(_hash, secret, self._rounds))

    async def login(self, username: str, password: str) -> tuple[User, str]:
        """The user and a new session token. Raises NoUser, WrongCredentials, RateLimited, Unavailable."""
        name, key = normalize_username(username)
        secret = password_bytes(password)
        account = await self._store.find_user(key)
        if account is None:
            raise NoUser(f"nobody is registered as {quote(name)}; register first", field="username")
        # An overlong password cannot be right. It costs a hash as well, so that the time reveals nothing.
        good = await self._hashing(self._check, secret[:MAX_PASSWORD_BYTES], account.password)
        if not good or len(secret) > MAX_PASSWORD_BYTES:
            raise WrongCredentials("the password is not right for this username", field="password")
        token = self._new_token()
        await self._store.open_session(account.user.id, token_hash(token), self.session_seconds)
        return account.user, token

    async def resume(self, token: str) -> User:
        """The user of an earlier login. Raises AuthRequired, Unavailable."""
        user = await self._store.find_session(token_hash(token))
        if user is None:
            raise AuthRequired(
                "the session is unknown or has expired; log in with username and password", field="token"
            )
        return user

    async def forget(self, token: str) -> None:
        """End a session. Raises Unavailable."""
        await self._store.close_session(token_hash(token))

    def is_admin(self, user: User) -> bool:
        """Whether the settings name this user as an admin."""
        return normalize_username(user.username)[1] in self._admins

    async def set_weight(self, username: str, weight: float) -> str:
        """Set a user's share of the slots. Returns the name. Raises BadRequest, NoUser, Unavailable."""
        name, key = normalize_username(username)
        if not await self._store.set_weight(key, weight):
            raise NoUser(f"nobody is registered as {quote(name)}", field="username")
        return name

    async def _hashing(self, function: Callable[..., Any], *args: Any) -> Any:
        if self._pending >= MAX_HASHES_PENDING:
            raise RateLimited("too many logins at once; try again in a few seconds", retry_after=5)
        self._pending += 1
        try:
            return await self._run_hash(function, *args)
        finally:
            self._pending -= 1

    def _check(self, secret: bytes, stored: str) -> bool:
        try:
            return bcrypt.checkpw(secret, stored.encode())
        except BaseException as e:  # a corrupt hash raises pyo3's PanicException, which is no Exception
            self._log.error("a stored password hash cannot be read: {error}", error=repr(e))
            return False


def token_hash(token: str) -> bytes:
    """What the store keeps of a token. Tokens are random, so one round of SHA-256 is enough."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def _hash(secret: bytes, rounds: int) -> str:
    return bcrypt.hashpw(secret, bcrypt.gensalt(rounds)).decode()
