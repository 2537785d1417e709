"""Deletes finished tasks that are old enough, with their logs and attempts."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from taskd.ports.store import IStore

BATCH = 200
"""Tasks that one round looks at."""

REST = 10.0
"""Seconds of rest after a walk over all tasks that are old enough."""


class DeleteFinished:
    """Walks the tasks in the order of their ids. Deletes what ended more than ``keep`` seconds ago; 0 keeps all."""

    name = "delete finished tasks"
    _log = Logger()

    def __init__(self, clock: IReactorTime, store: IStore, keep: float) -> None:
        self._clock = clock
        self._store = store
        self._keep = keep
        self._last_id = 0
        self._not_before = clock.seconds()

    async def run(self) -> None:
        """Raises Unavailable."""
        if not self._keep or self._clock.seconds() < self._not_before:
            return
        count, last = await self._store.delete_finished(self._keep, self._last_id, BATCH)
        if count:
            self._log.debug("{count} finished tasks were deleted", count=count)
        if last is None:
            self._last_id = 0
            self._not_before = self._clock.seconds() + REST
        else:
            self._last_id = last
