"""Claims tasks again whose claim a crash of the database has undone."""

from __future__ import annotations

from collections.abc import Sequence

from taskd.events.publisher import Publisher
from taskd.ports.attempts import Claim
from taskd.ports.store import IStore
from taskd.worker.held import HeldTask, HeldTasks


class Reclaim:
    """Claims do not wait for the disk, so a crash of the database may undo them. Then the task is queued as before."""

    def __init__(self, store: IStore, publisher: Publisher, held: HeldTasks, name: str, lease: float) -> None:
        self._store = store
        self._publisher = publisher
        self._held = held
        self._name = name
        self._lease = lease

    async def reclaim(self, fenced: Sequence[HeldTask]) -> set[HeldTask]:
        """Those of the fenced tasks that belong to this worker after all. Raises Unavailable."""
        if not fenced:
            return set()
        claims = [held.claim._replace(redelivered=False, alone=True) for held in fenced]
        claimed = await self._store.claim(self._name, self._lease, claims)
        ours = {(task.id, task.dispatch, task.attempt) for task in claimed}
        here = [held.attempt.task for held in self._held.running.values() if held.attempt is not None]
        known = {(task.id, task.dispatch, task.attempt) for task in here}
        # The crash undid an earlier attempt as well, so this claim got another number: any worker may begin it anew.
        anew = [
            task
            for task in claimed
            if (task.id, task.dispatch, task.attempt) not in known and task.id not in self._held.claiming
        ]
        if anew:
            released = await self._store.release(self._name, [Claim(t.id, t.dispatch, False) for t in anew])
            self._publisher.publish(released)
        tasks = ((held, held.attempt.task) for held in fenced if held.attempt is not None)
        return {held for held, task in tasks if (task.id, task.dispatch, task.attempt) in ours}
