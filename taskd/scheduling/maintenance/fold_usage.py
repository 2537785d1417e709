"""Folds the counters of hours that have passed."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from taskd.ports.store import IStore

BATCH = 1000
"""Rows in one round."""

REST = 600.0
"""Seconds of rest when no old rows are left: they are harmless, they only take up space."""


class FoldUsage:
    """Moves what users did more than a day ago into one row a user."""

    name = "fold the use of users"

    def __init__(self, clock: IReactorTime, store: IStore) -> None:
        self._clock = clock
        self._store = store
        self._not_before = clock.seconds() + REST

    async def run(self) -> None:
        """Raises Unavailable."""
        if self._clock.seconds() < self._not_before:
            return
        if await self._store.fold_usage(BATCH) < BATCH:
            self._not_before = self._clock.seconds() + REST
