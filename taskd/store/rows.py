"""What rows have in common in both databases."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from functools import lru_cache

import msgspec

from taskd.model.limits import LISTED_RESULT_BYTES
from taskd.model.states import State
from taskd.model.tasks import NewTask, Task
from taskd.ports.workers import KindInfo, WorkerInfo
from taskd.store.refusals import sanitize

OUTBOX_KEEP_SECONDS = 60
"""How long an outbox row that was repeated or adopted is kept after all its messages were confirmed. An earlier run of
the same batch may still be delayed in the network or in a stopped backend; it must find that its id is taken."""

FAILED_ATTEMPTS_LISTED = 100
"""The most failed attempts of one task that are listed. A task can be retried any number of times."""

WORKER_KEEP_SECONDS = 3600
"""How long the record of a dead worker is kept after its last beat."""

UNSPENT_LOSSES = 3
"""A task may be lost so often without spending an attempt."""

STATES = {state.value: state for state in State}

TO_WAITING = """
dispatched_at = NULL, started_at = NULL, progress = NULL, note = NULL, version = version + 1
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
    """The task that is stored for a new one. A ``run_at`` in the past counts as none, and so does a negative delay."""
    run_at = now
    if task.run_at is not None:
        run_at = max(run_at, task.run_at.astimezone(timezone.utc))
    if task.delay is not None:
        run_at = max(run_at, now + timedelta(seconds=whole_micros(task.delay)))
    return Task(
        task_id,
        task.user_id,
        task.task,
        task.kind,
        task.queue,
        task.state,
        now,
        run_at,
        task.payload,
        max_attempts=task.max_attempts,
        dispatch=int(task.state is State.QUEUED),
        timeout=task.timeout,
    )


def whole_micros(seconds: float) -> float:
    """Rounded to microseconds, so that Python and a database add the same."""
    return round(seconds, 6)


def encode_worker(worker: WorkerInfo) -> dict[str, str]:
    """A row of ``workers``: its name, and queues, kinds and slots as JSON."""
    # PostgreSQL cannot read JSON with NUL, and must read the kinds to take tasks back
    kinds = [msgspec.structs.replace(kind, summary=sanitize(kind.summary)) for kind in worker.kinds]
    return {
        "name": worker.name,
        "queues": encode(worker.queues),
        "kinds": encode(kinds),
        "slots": encode(worker.slots),
    }


def encode(value: object) -> str:
    """JSON text."""
    return msgspec.json.encode(value).decode()


# Servers read all workers twice a second, and these columns never change.
@lru_cache(maxsize=1000)
def decode_worker(name: str, queues: str, kinds: str, slots: str) -> WorkerInfo:
    """The worker of a row that :func:`encode_worker` made."""
    return WorkerInfo(
        name,
        msgspec.json.decode(queues, type=list[str]),
        msgspec.json.decode(kinds, type=list[KindInfo]),
        decode_counts(slots),
    )


@lru_cache(maxsize=1000)
def decode_counts(text: str) -> Mapping[str, int]:
    """The numbers of slots by isolation."""
    return msgspec.json.decode(text, type=dict[str, int])
