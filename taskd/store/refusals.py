"""What both stores refuse: ids, texts and changes that cannot be. Also how they make other texts storable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from taskd.model.errors import (
    AuthRequired,
    BadRequest,
    Conflict,
    Forbidden,
    KeyTaken,
    LastAdmin,
    NotFound,
    Unavailable,
    UsernameInUse,
)
from taskd.model.states import State
from taskd.model.tasks import Task

MAX_ID = 2**63 - 1
"""The greatest id that a database can hold. A request may name any number; no task has a greater one."""


def valid_ids(ids: Iterable[int]) -> list[int]:
    """Those of the ids that a task or a user can have."""
    return [i for i in ids if 0 < i <= MAX_ID]


def sanitize(text: str | None) -> str:
    """The text without NUL and with ``?`` for each lone surrogate. Text of handlers may contain both."""
    return (text or "").replace("\0", "").encode("utf-8", "replace").decode()


def check_text(text: str) -> str:
    """The text, unchanged. Raises BadRequest for NUL. The databases' drivers refuse lone surrogates."""
    if "\0" in text:
        raise nul_refused()
    return text


def nul_refused() -> BadRequest:
    """The error for a text with NUL."""
    return BadRequest("text must not contain the NUL character")


def closed() -> Unavailable:
    """The store has been stopped."""
    return Unavailable("the store is closed")


def username_in_use(username: str) -> UsernameInUse:
    """Another user has this name."""
    return UsernameInUse(f"the username {username} is taken; choose another", field="username")


def uid_in_use(uid: int, username: str) -> Conflict:
    """Another user is bound to this uid."""
    return Conflict(f"the uid {uid} is bound to {username} already; unbind it there first", field="uid")


def invitation_refused() -> Forbidden:
    """An invitation that is unknown, expired or used up."""
    return Forbidden("this invitation is not valid, or no longer; ask for a new one", field="invitation")


def last_admin(username: str) -> LastAdmin:
    """This is the only admin who can act."""
    return LastAdmin(f"{username} is the last admin; make somebody else an admin first", field="username")


def account_ended() -> AuthRequired:
    """The account has changed while somebody logged in, or the session has ended."""
    return AuthRequired("the password or the session is not valid any more; log in again")


def key_taken() -> KeyTaken:
    """Another task of the same user has this idempotency key."""
    return KeyTaken("the key is taken", field="key")


def found_task(tasks: Sequence[Task], task_id: int) -> Task:
    """The only one of these tasks of a user. Raises NotFound if there is none: the task does not exist or belongs to
    another user; both get the same answer."""
    if not tasks:
        raise NotFound(f"you have no task {task_id}", field="task_id")
    return tasks[0]


def check_cancelled(task: Task) -> Task:
    """A task that has ended, unchanged. Raises Conflict unless it is cancelled already."""
    if task.state is not State.CANCELLED:
        raise Conflict(f"task {task.id} is {task.state.value}: too late to cancel it", field="task_id")
    return task


def check_retryable(task: Task) -> None:
    """Raises Conflict unless the task failed or was cancelled."""
    if task.state not in (State.FAILED, State.CANCELLED):
        text = f"task {task.id} is {task.state.value}: only a failed or cancelled task can be tried again"
        raise Conflict(text, field="task_id")
