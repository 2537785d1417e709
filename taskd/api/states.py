"""Reading the states of tasks: a few bytes of a task each, for many requests in one statement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twisted.internet.interfaces import IReactorTime

from taskd.batching import Batcher
from taskd.model.errors import NotFound
from taskd.model.states import State
from taskd.ports.store import IStore
from taskd.ports.tasks import TaskState
from taskd.protocol.limits import MAX_BATCH


class StateReader:
    """All waits and follows of a server read here. However many look at once, at most two statements run: the other
    connections to the database stay free for other requests."""

    def __init__(self, clock: IReactorTime, store: IStore) -> None:
        self._store = store
        self._batcher: Batcher[Sequence[int], Mapping[int, TaskState]] = Batcher(
            clock, self._read, max_weight=MAX_BATCH, weigh=len
        )

    async def own_states(self, user_id: int, ids: Sequence[int], field: str) -> Mapping[int, State]:
        """The states of this user's tasks. Raises NotFound, which names the request's ``field``, and Unavailable."""
        found = await self._batcher.submit(ids)
        states = {}
        for task_id in ids:
            task = found.get(task_id)
            if task is None or task.user_id != user_id:
                raise NotFound(f"you have no task {task_id}", field=field)
            states[task_id] = task.state
        return states

    async def owner(self, task_id: int) -> int | None:
        """Whose task it is, None if there is no such task. Raises Unavailable."""
        task = (await self._batcher.submit([task_id])).get(task_id)
        return None if task is None else task.user_id

    async def _read(self, requests: list[Sequence[int]]) -> Sequence[Mapping[int, TaskState]]:
        ids = list(dict.fromkeys(task_id for ids in requests for task_id in ids))
        # each request looks up its own ids in what all have asked for
        found = {task.task_id: task for task in await self._store.find_states(ids)}
        return [found] * len(requests)
