"""Deletes sessions, invitations, known networks and rows of the audit that are past."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from taskd.ports.store import IStore

REST = 3600.0
"""Seconds of rest when nothing more is past. What is past has no effect any more, so there is no hurry."""


class SweepAccounts:
    """Deletes some thousand rows of each a round until nothing is past. Rows of the audit go after ``audit_days``,
    logins ``session_idle`` seconds after their last use."""

    name = "sweep accounts"

    def __init__(self, clock: IReactorTime, store: IStore, audit_days: float, session_idle: float) -> None:
        self._clock = clock
        self._store = store
        self._audit_days = audit_days
        self._session_idle = session_idle
        self._not_before = clock.seconds()

    async def run(self) -> None:
        """Raises Unavailable."""
        if self._clock.seconds() < self._not_before:
            return
        if not await self._store.sweep_accounts(self._audit_days, self._session_idle):
            self._not_before = self._clock.seconds() + REST
