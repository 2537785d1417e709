"""News of changed tasks, as they travel over the fan-out from whoever changed them to every server."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec
from msgspec import Raw, Struct

from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.protocol.limits import MAX_LOG_EVENT_CHARS
from taskd.protocol.messages import encode
from taskd.protocol.views import view


class TaskChange(Struct, array_like=True):
    """One change of state. ``view`` is the encoded :class:`~taskd.protocol.views.TaskView`, passed on unread. A task
    that waits for its ``run_at`` to come is not ``due``: it is in nobody's backlog yet."""

    user_id: int
    task_id: int
    version: int
    state: State
    queue: str
    kind: str
    view: Raw
    due: bool = True


class TaskOutput(Struct, array_like=True):
    """What a running task has said. ``event`` is the whole event line for those who watch, without its line end."""

    user_id: int
    task_id: int
    event: Raw


class EventBatch(Struct, array_like=True):
    """All changes of one batch. ``origin`` is the id of the process that made them. ``workers`` says that one has come
    or gone, or serves other kinds than before."""

    origin: str
    changes: list[TaskChange] = []
    said: list[TaskOutput] = []
    workers: bool = False


class CancelOrder(Struct, array_like=True):
    """Tasks that were cancelled under their workers, on the topic of orders."""

    cancelled: list[int]


_decode = msgspec.json.Decoder(EventBatch).decode
_decode_order = msgspec.json.Decoder(CancelOrder).decode


def changes_of(tasks: Iterable[Task], now: datetime) -> list[TaskChange]:
    """The changes that led to these tasks' present state."""
    return [
        TaskChange(t.user_id, t.id, t.version, t.state, t.queue, t.kind, Raw(encode(view(t, now))), t.run_at <= now)
        for t in tasks
    ]


def encode_batch(
    origin: str, changes: Sequence[TaskChange] = (), said: Sequence[TaskOutput] = (), workers: bool = False
) -> bytes:
    """News for :meth:`taskd.ports.broker.IBroker.announce`."""
    return encode(EventBatch(origin, list(changes), list(said), workers))


def encode_cancel_order(cancelled: Iterable[int]) -> bytes:
    """An order for :meth:`taskd.ports.broker.IBroker.announce`."""
    return encode(CancelOrder(list(cancelled)))


def decode_cancel_order(body: bytes) -> CancelOrder:
    """The reverse of :func:`encode_cancel_order`. Raises msgspec.MsgspecError or UnicodeDecodeError."""
    return _decode_order(body)


def progress_event(task: Task, progress: float, note: str | None) -> TaskOutput:
    """That a task has got further."""
    event = {"event": "progress", "task_id": task.id, "attempt": task.attempt, "progress": progress, "note": note}
    return TaskOutput(task.user_id, task.id, Raw(encode(event)))


def log_event(task: Task, first_line: int, lines: Sequence[str], at: datetime) -> TaskOutput:
    """That there are new lines in a task's log: as many of the last ones as one event holds."""
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


def batch_prefix(origin: str) -> bytes:
    """How all news of this origin begin, so that it can pass over its own unread."""
    return b"[" + encode(origin) + b","


def decode_batch(body: bytes) -> EventBatch:
    """The reverse of :func:`encode_news`. Raises msgspec.MsgspecError or UnicodeDecodeError."""
    return _decode(body)
