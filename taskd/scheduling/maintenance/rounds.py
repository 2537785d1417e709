"""Runs the duties of maintenance, one after the other, once a second."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from taskd.model.errors import Unavailable
from taskd.ports.store import IStore
from taskd.scheduling.maintenance.duty import Duty

ROUND = 1.0
"""Seconds between rounds."""


class MaintenanceRounds:
    """A round runs the duties in their order. It does nothing while the store is away, and it ends early when the store
    cannot be reached. A defect in one duty does not stop the others."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, store: IStore, duties: Sequence[Duty]) -> None:
        self._store = store
        self._duties = duties
        self._loop = LoopingCall(self._start_round)
        self._loop.clock = clock

    def start(self) -> None:
        """Begin the rounds."""
        self._loop.start(ROUND)

    def stop(self) -> None:
        """End the rounds."""
        if self._loop.running:
            self._loop.stop()

    def _start_round(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.round())

    async def round(self) -> None:
        """One round. Never fails."""
        if not self._store.ready:
            return
        for duty in self._duties:
            try:
                await duty.run()
            except Unavailable as e:
                self._log.debug("maintenance ended its round early: {why}", why=str(e))
                return
            except Exception:
                self._log.failure("maintenance: {duty} failed", duty=duty.name)
