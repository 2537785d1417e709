"""Users and sessions for benchmarks, made in the store itself: ``python -m bench.accounts USERS SESSIONS ROUNDS``.

It reads the settings of the daemons. All users have the same password, so this costs one hash. A server of the same
SQLite database must not run.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import bcrypt
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react

from bench.harness import PASSWORD
from taskd.config.reading import read_settings
from taskd.daemon import open_store
from taskd.model.tokens import token_hash
from taskd.ports.accounts import NewSession
from taskd.ports.store import IStore

SESSION_SECONDS = 86_400.0


def username(number: int) -> str:
    """The name of a user."""
    return f"user-{number}"


def token(user: int, session: int) -> str:
    """The token of a session of a user."""
    return f"session-{user}-{session}"


async def make(store: IStore, users: int, sessions: int, rounds: int) -> None:
    """Store so many users with so many sessions each."""
    password = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(rounds)).decode()
    for number in range(users):
        name = username(number)
        user = await store.create_user(name, name, password)
        tokens = [NewSession(token_hash(token(number, n)), SESSION_SECONDS) for n in range(sessions)]
        await gatherResults([Deferred.fromCoroutine(_open(store, user.id, each)) for each in tokens])


async def _open(store: IStore, user_id: int, session: NewSession) -> None:
    await store.open_session(user_id, session)


async def _main(reactor: Any, users: int, sessions: int, rounds: int) -> None:
    store = open_store(read_settings(os.devnull), reactor)
    await store.start_once()
    try:
        await make(store, users, sessions, rounds)
    finally:
        await store.stop()


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:4]]
    react(lambda reactor: Deferred.fromCoroutine(_main(reactor, *numbers)))
