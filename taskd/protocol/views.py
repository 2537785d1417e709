"""How a task looks in replies and events."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, TypeAlias

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from taskd.model.limits import LISTED_RESULT_BYTES
from taskd.model.states import STATUS_OF, TEXT_OF, State
from taskd.model.tasks import FailedAttempt, Task, shown_attempt, shown_state

Moment: TypeAlias = Annotated[datetime, Meta(tz=True)]


class AttemptView(Struct):
    """An attempt that failed or was lost."""

    attempt: int
    worker: str
    started_at: Moment | None
    ended_at: Moment
    error: str
    traceback: str | None


class TaskView(Struct):
    """A task as its owner sees it. Only the reply to ``get_task`` has ``payload``, ``timeout`` and ``attempts``.
    ``attempt`` is the last one that has begun. ``max_attempts`` is null until the task is first assigned to a worker. A
    client decodes the task of an older server with 0 as ``losses`` and ``returns``."""

    id: int
    task: str
    kind: str
    queue: str
    status: str
    state: str
    attempt: int
    max_attempts: int | None
    version: int
    created_at: Moment
    run_at: Moment
    started_at: Moment | None = None
    finished_at: Moment | None = None
    result: Raw | None = None
    error: str | None = None
    progress: float | None = None
    note: str | None = None
    losses: int = 0
    returns: int = 0
    payload: Raw | UnsetType = UNSET
    timeout: float | UnsetType | None = UNSET
    attempts: list[AttemptView] | UnsetType = UNSET
    result_omitted: bool | UnsetType = UNSET


def view(task: Task, now: datetime, failed: Iterable[FailedAttempt] | None = None) -> TaskView:
    """The view of a task: complete with its ``failed`` attempts, or without them, without its payload, and without a
    result above 4 KiB."""
    full = failed is not None
    result, omitted = None if task.result is None else task.result.encode(), False
    if result is not None and not full and len(result) > LISTED_RESULT_BYTES:
        result, omitted = None, True
    return TaskView(
        task.id,
        task.task,
        task.kind,
        task.queue,
        STATUS_OF[task.state],
        shown_state(task, now) if task.state is State.WAITING else TEXT_OF[task.state],
        shown_attempt(task),
        task.max_attempts or None,
        task.version,
        task.created_at,
        task.run_at,
        task.started_at,
        task.finished_at,
        None if result is None else Raw(result),
        task.error,
        task.progress,
        task.note,
        task.losses,
        task.returns,
        Raw(task.payload.encode()) if full else UNSET,
        task.timeout if full else UNSET,
        UNSET if failed is None else [AttemptView(f.attempt, *f[2:]) for f in failed],
        True if omitted else UNSET,
    )
