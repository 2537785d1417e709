"""Reading a user's own tasks, and no more of them than a reply has."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from taskd.model.errors import NotFound
from taskd.model.tasks import Task
from taskd.ports.store import IStore
from taskd.protocol.limits import MAX_PAGE_CHARS

PIECE = 100
"""Tasks to read at a time when many are asked for. Each may bring 20 KiB of text and listed result."""


async def own_task(store: IStore, user_id: int, task_id: int) -> Task:
    """This user's task with its payload and its whole result. Raises NotFound, Unavailable."""
    for task in await store.get_tasks(user_id, [task_id]):
        return task
    raise _not_found(task_id, "task_id")


async def own_listed(store: IStore, user_id: int, ids: Sequence[int], field: str) -> AsyncIterator[Task]:
    """This user's tasks of these ids as a list has them, in their order, read in pieces. Raises NotFound, which names
    the request's ``field``, and Unavailable."""
    for start in range(0, len(ids), PIECE):
        piece = ids[start : start + PIECE]
        found = {task.id: task for task in await store.get_listed(user_id, piece)}
        for task_id in piece:
            if task_id not in found:
                raise _not_found(task_id, field)
            yield found[task_id]


def that_fit(tasks: Sequence[Task]) -> Sequence[Task]:
    """The first of the tasks, as many as one reply should hold; at least one if there is one."""
    chars = 0
    for n, task in enumerate(tasks):
        chars += len(task.task) + len(task.result or "") + len(task.error or "")
        if chars > MAX_PAGE_CHARS and n:
            return tasks[:n]
    return tasks


def _not_found(task_id: int, field: str) -> NotFound:
    return NotFound(f"you have no task {task_id}", field=field)
