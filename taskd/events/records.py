"""The event batches that processes send to each other through the broker."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
from msgspec import Raw, Struct

from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.protocol.limits import MAX_LOG_EVENT_CHARS
from taskd.protocol.messages import encode


class TaskChange(Struct, array_like=True):
    """One change of a task's state. ``view`` is the encoded :class:`~taskd.protocol.views.TaskView`, which servers pass
    on without decoding it. ``due`` is False for a task whose ``run_at`` lies in the future: it is in no backlog yet."""

    user_id: int
    task_id: int
    version: int
    state: State
    queue: str
    kind: str
    view: Raw
    due: bool = True


class TaskOutput(Struct, array_like=True):
    """Progress or log lines of a running task, or that it was given back. ``event`` is the encoded event for those who
    watch."""

    user_id: int
    task_id: int
    event: Raw


class EventBatch(Struct, array_like=True):
    """What one process announces at a time. ``installation`` and ``origin`` are those of that process. ``workers`` is
    True when a worker has started, stopped, or serves other kinds than before. In the ``routes``, each a queue and a
    kind, due tasks wait or slots are free, which no change tells of. The rights of the users in ``rights`` have
    changed, or some of their sessions have ended."""

    installation: str
    origin: str
    changes: Sequence[TaskChange] = ()
    outputs: Sequence[TaskOutput] = ()
    workers: bool = False
    routes: Sequence[tuple[str, str]] = ()
    rights: Sequence[int] = ()


decode_batch = msgspec.json.Decoder(EventBatch).decode
"""The reverse of ``encode(EventBatch(...))``. Raises msgspec.MsgspecError or UnicodeDecodeError."""


def progress_event(task: Task, progress: float, note: str | None) -> TaskOutput:
    """How far a task is."""
    event = {"event": "progress", "task_id": task.id, "attempt": task.attempt, "progress": progress, "note": note}
    return TaskOutput(task.user_id, task.id, Raw(encode(event)))


def log_event(task: Task, first_line: int, lines: Sequence[str], at: datetime) -> TaskOutput:
    """New lines of a task's log: as many of the last ones as one event holds."""
    size, start = 0, len(lines)
    while start and (size := size + len(lines[start - 1])) <= MAX_LOG_EVENT_CHARS:
        start -= 1
    event = {
        "event": "log",
        "task_id": task.id,
        "attempt": task.attempt,
        "at": at,
        "first_line": first_line + start,
        "lines": lines[start:],
    }
    return TaskOutput(task.user_id, task.id, Raw(encode(event)))


def returned_event(task: Task) -> TaskOutput:
    """A worker that is stopping has given the task back, not for the first time."""
    event = {"event": "returned", "task_id": task.id, "returns": task.returns}
    return TaskOutput(task.user_id, task.id, Raw(encode(event)))


def batch_prefix(installation: str, origin: str) -> bytes:
    """The bytes that every batch of this origin begins with: a process skips its own batches without decoding them."""
    return b"[" + encode(installation) + b"," + encode(origin) + b","
