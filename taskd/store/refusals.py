"""Why a store refuses what the owner of a task asks for."""

from __future__ import annotations

from taskd.model.errors import Conflict, NotFound
from taskd.model.states import State
from taskd.model.tasks import Task


def no_such_task(task_id: int) -> NotFound:
    """What a user gets for a foreign id and for a missing one."""
    return NotFound(f"you have no task {task_id}", field="task_id")


def too_late(task: Task) -> Conflict:
    """Why this task cannot be cancelled."""
    return Conflict(f"task {task.id} is {task.state.value}: too late to cancel it", field="task_id")


def not_retryable(task: Task) -> Conflict:
    """Why this task cannot be tried again."""
    text = f"task {task.id} is {task.state.value}: only a failed or cancelled task can be tried again"
    return Conflict(text, field="task_id")


RETRYABLE = frozenset({State.FAILED, State.CANCELLED})
"""The states from which an owner may have a task tried again."""
