"""What rows have in common in both databases."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone

import msgspec

from taskd.model.limits import LISTED_RESULT_BYTES
from taskd.model.states import State
from taskd.model.tasks import NewTask, Task
from taskd.ports.workers import KindInfo, WorkerInfo

OUTBOX_KEEP_SECONDS = 60
"""How long an outbox row that was repeated or adopted is kept after all its messages were confirmed. An earlier run of
the same batch may still be delayed in the network or in a stopped backend; it must find that its id is taken."""

FAILED_ATTEMPTS_LISTED = 100
"""The most failed attempts of one task that are listed. A task can be retried any number of times."""

STATES = {state.value: state for state in State}

TO_WAITING = """
dispatched_at = NULL, started_at = NULL, lease_until = NULL, progress = NULL, note = NULL, version = version + 1
"""

_LISTED_RESULT = LISTED_RESULT_BYTES + 1
"""How much of a result a list reads: one byte too many shows that the result is too large for a list. A page of 500
results of 256 KiB would have 128 MiB."""


def columns(alias: str = "", listed: bool = False) -> str:
    """A select list for the fields of :class:`taskd.model.tasks.Task` in their order; ``listed`` leaves out the payload
    and cuts a large result."""
    dot = f"{alias}." if alias else ""
    names = {name: dot + name for name in Task.__struct_fields__}
    if listed:
        names["payload"] = "'{}'"
        names["result"] = f"substr(CAST({dot}result AS text), 1, {_LISTED_RESULT})"
    return ", ".join(names.values())


ALL = columns()


def created_task(task_id: int, task: NewTask, now: datetime) -> Task:
    """The task that is stored for a new one. A ``run_at`` in the past counts as none."""
    return Task(
        task_id,
        task.user_id,
        task.task,
        task.kind,
        task.queue,
        task.state,
        now,
        now if task.run_at is None else max(task.run_at.astimezone(timezone.utc), now),
        task.payload,
        max_attempts=task.max_attempts,
        dispatch=int(task.state is State.QUEUED),
        timeout=task.timeout,
    )


def encode_worker(worker: WorkerInfo) -> dict[str, str | int]:
    """A row of ``workers``: name, queues and kinds as JSON, slots."""
    return {
        "name": worker.name,
        "queues": msgspec.json.encode(worker.queues).decode(),
        "kinds": msgspec.json.encode(worker.kinds).decode(),
        "slots": worker.slots,
    }


def decode_workers(rows: Iterable[tuple[str, str, str, int]]) -> list[WorkerInfo]:
    """The workers of these rows, by name."""
    return [
        WorkerInfo(
            name,
            msgspec.json.decode(queues, type=list[str]),
            msgspec.json.decode(kinds, type=list[KindInfo]),
            slots,
        )
        for name, queues, kinds, slots in sorted(rows)
    ]
