"""Cancels and deletes the tasks of deleted users."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from taskd.events.publisher import Publisher
from taskd.model.tasks import Task
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore
from taskd.scheduling.dispatcher import Dispatcher

BATCH = 200
"""Tasks that one round cancels, and as many that it deletes."""

REST = 10.0
"""Seconds of rest when no deleted user has tasks."""


class PurgeDeleted:
    """Takes one deleted user a round, one after the other. A task that a worker holds is ordered to end, and deleted in
    a later round, when the worker has dropped it."""

    name = "purge deleted users"
    _log = Logger()

    def __init__(
        self, clock: IReactorTime, store: IStore, broker: IBroker, publisher: Publisher, dispatcher: Dispatcher
    ) -> None:
        self._clock = clock
        self._store = store
        self._broker = broker
        self._publisher = publisher
        self._dispatcher = dispatcher
        self._users: list[int] = []
        self._not_before = clock.seconds()

    async def run(self) -> None:
        """Raises Unavailable."""
        if self._clock.seconds() < self._not_before:
            return
        if not self._users:
            self._users = list(await self._store.deleted_users())
        if not self._users:
            self._not_before = self._clock.seconds() + REST
            return
        user_id = self._users.pop(0)
        self._cancelled(await self._store.cancel_deleted(user_id, BATCH))
        if await self._store.purge_deleted(user_id, BATCH):
            self._log.info("the deleted user {user_id} has no tasks any more", user_id=user_id)

    def _cancelled(self, tasks: Sequence[Task]) -> None:
        if tasks:
            self._publisher.publish(tasks)
            self._broker.hint({task.worker for task in tasks if task.worker is not None}, orders=True)
            self._dispatcher.changed(tasks)
