"""Claims tasks again whose claim a crash of the database has undone."""

from __future__ import annotations

from collections.abc import Sequence

from taskd.events.publisher import Publisher
from taskd.ports.attempts import Held
from taskd.ports.store import IStore
from taskd.worker.held import HeldState, HeldTask, HeldTasks
from taskd.worker.identity import Identity


class Reclaim:
    """Claims do not wait for the disk, so a crash of the database may undo them. Then the task is queued as before."""

    def __init__(self, store: IStore, publisher: Publisher, held: HeldTasks, identity: Identity) -> None:
        self._store = store
        self._publisher = publisher
        self._held = held
        self._identity = identity

    async def reclaim(self, missing: Sequence[HeldTask]) -> set[HeldTask]:
        """Those of these tasks that belong to this worker after all. Raises Unavailable."""
        name = self._identity.name
        missing = [held for held in missing if held.worker == name and held.state is not HeldState.DROPPED]
        if not missing:
            return set()
        claimed = await self._store.claim(name, [held.claim for held in missing])
        ours = {Held(task.id, task.dispatch, task.attempt) for task in claimed}
        known = {held.in_store for held in self._held.running.values()}
        # The crash undid an earlier attempt as well, so this claim got another number: any worker may begin it anew.
        if anew := [held for held in ours - known if held.task_id not in self._held.claiming]:
            self._publisher.publish(await self._store.release(name, anew))
        return {held for held in missing if held.in_store in ours}
