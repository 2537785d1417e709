"""The errors that both stores raise."""

from __future__ import annotations

from taskd.model.errors import Conflict, KeyTaken, NotFound, Unavailable, UsernameInUse
from taskd.model.states import State
from taskd.model.tasks import Task

RETRYABLE = frozenset({State.FAILED, State.CANCELLED})
"""The states in which an owner may retry a task."""


def closed() -> Unavailable:
    """The store has been stopped."""
    return Unavailable("the store is closed")


def username_in_use(username: str) -> UsernameInUse:
    """Another user has this name."""
    return UsernameInUse(f"the username {username} is taken; choose another", field="username")


def key_taken() -> KeyTaken:
    """Another task of the same user has this idempotency key."""
    return KeyTaken("the key is taken", field="key")


def no_such_task(task_id: int) -> NotFound:
    """The task does not exist or belongs to another user; both get the same answer."""
    return NotFound(f"you have no task {task_id}", field="task_id")


def not_cancellable(task: Task) -> Conflict:
    """The task has ended."""
    return Conflict(f"task {task.id} is {task.state.value}: too late to cancel it", field="task_id")


def not_retryable(task: Task) -> Conflict:
    """The task is in none of the states of :data:`RETRYABLE`."""
    text = f"task {task.id} is {task.state.value}: only a failed or cancelled task can be tried again"
    return Conflict(text, field="task_id")
