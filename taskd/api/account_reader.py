"""Reads what the store has of an account before its password is checked."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from taskd.batching import Batcher
from taskd.ports.accounts import Account, IAccountStore

MOST_READ = 200
"""Accounts in one statement at most."""


class AccountReader:
    """All who log in at the same time share a statement. If each had one of its own, a flood of logins would take all
    connections to the database from the tasks. Guesses are those of the last ``seconds``."""

    def __init__(self, clock: IReactorTime, store: IAccountStore, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._accounts: Batcher[tuple[str, str], Account | None] = Batcher(
            clock, self._find, max_weight=MOST_READ, at_once=True
        )
        self._guesses: Batcher[str, int] = Batcher(clock, self._count, max_weight=MOST_READ, at_once=True)

    def account(self, key: str, network: str) -> Deferred[Account | None]:
        """See :meth:`IAccountStore.find_user`. Fails with Unavailable."""
        return self._accounts.submit((key, network))

    def guesses(self, key: str) -> Deferred[int]:
        """See :meth:`IAccountStore.count_refusals`. Fails with Unavailable."""
        return self._guesses.submit(key)

    async def _find(self, asked: list[tuple[str, str]]) -> Sequence[Account | None]:
        return await self._store.find_users(asked)

    async def _count(self, keys: list[str]) -> Sequence[int]:
        return await self._store.count_refusals(keys, self._seconds)
