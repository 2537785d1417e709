"""Reading a user's own tasks, in pieces that fit into a reply."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from taskd.model.errors import NotFound
from taskd.model.tasks import Task
from taskd.ports.store import IStore
from taskd.protocol.limits import MAX_PAGE_CHARS

PIECE = 50
"""Tasks to read at a time when many are asked for: each may bring a result of 256 KiB."""


async def own_tasks(store: IStore, user_id: int, ids: Sequence[int], field: str) -> Sequence[Task]:
    """This user's tasks of these ids, in their order. Raises NotFound, which names the request's ``field``, and
    Unavailable."""
    found = {task.id: task for task in await store.get_tasks(user_id, ids)}
    for task_id in ids:
        if task_id not in found:
            raise NotFound(f"you have no task {task_id}", field=field)
    return [found[task_id] for task_id in ids]


def in_pieces(ids: Sequence[int]) -> Iterable[Sequence[int]]:
    """The ids in pieces of PIECE."""
    return (ids[start : start + PIECE] for start in range(0, len(ids), PIECE))


def that_fit(tasks: Sequence[Task]) -> Sequence[Task]:
    """The first of the tasks, as many as one reply should hold; at least one if there is one."""
    chars = 0
    for n, task in enumerate(tasks):
        chars += len(task.task) + len(task.result or "") + len(task.error or "")
        if chars > MAX_PAGE_CHARS and n:
            return tasks[:n]
    return tasks
