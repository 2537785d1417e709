"""What rows have in common in both databases."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from functools import lru_cache

import msgspec

from taskd.model.limits import LISTED_RESULT_BYTES
from taskd.model.states import State
from taskd.model.tasks import NewTask, Task
from taskd.ports.workers import KindInfo, Mean, WorkerInfo
from taskd.store.refusals import sanitize

LOOKED_TASKS = 500
"""The most tasks that a worker reads in one look."""

LOOKED_BYTES = 2**20
"""About how much of payloads it reads in one look; a larger one is read alone."""

WALKED_USERS = 500
"""The most users whose backlog one turn of the dispatcher reads."""

FAILED_ATTEMPTS_LISTED = 100
"""The most failed attempts of one task that are listed. A task can be retried any number of times."""

WORKER_KEEP_SECONDS = 3600
"""How long the record of a dead worker is kept after its last beat."""

UNSPENT_LOSSES = 3
"""A task may be lost so often without spending an attempt."""

LIVE_KEYS = " :"
"""The keys of all users are after this one, and those of deleted users, a space and digits, before it."""

STATES = {state.value: state for state in State}

NOT_BEGUN = "started_at = NULL, progress = NULL, note = NULL"
"""What a task loses with its attempt when it becomes waiting."""

TO_WAITING = f"held = false, version = version + 1, {NOT_BEGUN}"
"""What changes when nobody holds a task any more and it waits again."""

LISTED_RESULT = LISTED_RESULT_BYTES + 1
"""How much of a result a list reads: one byte too many shows that the result is too large for a list. A page of 500
results of 256 KiB would have 128 MiB."""


CUT_RESULT = f"substr(CAST(result AS text), 1, {LISTED_RESULT})"


def columns(alias: str = "", **instead: str) -> str:
    """A select list for the fields of :class:`taskd.model.tasks.Task` in their order. ``instead`` has expressions for
    some of them."""
    dot = f"{alias}." if alias else ""
    return ", ".join({**{name: dot + name for name in Task.__struct_fields__}, **instead}.values())


def listed_columns(alias: str = "", result: str = CUT_RESULT) -> str:
    """The same without the payload, and with no more of a large result than its beginning."""
    return columns(alias, payload="'{}'", result=result)


ALL = columns()


def created_task(task: NewTask, now: datetime, assigned: bool) -> Task:
    """The task that is stored for a new one; ``assigned``: its worker is serving. A ``run_at`` in the past counts as
    none, and so does a negative delay."""
    run_at = now
    if task.run_at is not None:
        run_at = max(run_at, task.run_at.astimezone(timezone.utc))
    if task.delay is not None:
        run_at = max(run_at, now + timedelta(seconds=whole_micros(task.delay)))
    return Task(
        task.id,
        task.user_id,
        task.task,
        task.kind,
        task.queue,
        State.QUEUED if assigned else State.WAITING,
        now,
        run_at,
        task.payload,
        attempt=int(assigned),
        max_attempts=task.max_attempts,
        dispatch=int(assigned),
        timeout=task.timeout,
        worker=task.worker if assigned else None,
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


def decode_means(text: str) -> list[Mean]:
    """What a worker has measured, from JSON that :func:`encode` made."""
    return msgspec.json.decode(text, type=list[Mean])
