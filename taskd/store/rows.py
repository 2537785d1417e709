"""What rows of ``tasks`` and ``workers`` have in common in both databases."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from taskd.model.limits import LISTED_RESULT_BYTES
from taskd.model.states import State
from taskd.ports.workers import KindInfo, WorkerInfo

COLUMNS = (
    "id",
    "user_id",
    "task",
    "kind",
    "queue",
    "state",
    "created_at",
    "run_at",
    "payload",
    "attempt",
    "max_attempts",
    "dispatch",
    "version",
    "started_at",
    "finished_at",
    "result",
    "error",
    "timeout",
    "progress",
    "note",
)
"""The columns of a row in the order of :class:`taskd.model.tasks.Task`."""

STATES = {state.value: state for state in State}

_LISTED_RESULT = LISTED_RESULT_BYTES + 1
"""How much of a result a list reads: one byte too many shows that the result is too large for a list. A page of 500
results of 256 KiB would have 128 MiB."""


def columns(alias: str = "", listed: bool = False) -> str:
    """A select list for :data:`COLUMNS`; ``listed`` leaves out the payload and cuts a large result."""
    dot = f"{alias}." if alias else ""
    names = {name: dot + name for name in COLUMNS}
    if listed:
        names["payload"] = "'{}'"
        names["result"] = f"substr(CAST({dot}result AS text), 1, {_LISTED_RESULT})"
    return ", ".join(names.values())


def encode_worker(worker: WorkerInfo) -> tuple[str, str, str, int]:
    """A row of ``workers``: name, queues and kinds as JSON, slots."""
    return worker.name, _json(worker.queues).decode(), _json(worker.kinds).decode(), worker.slots


def decode_workers(rows: Iterable[tuple[str, str, str, int]]) -> list[WorkerInfo]:
    """The workers of these rows, by name."""
    return [WorkerInfo(name, _queues(queues), _kinds(kinds), slots) for name, queues, kinds, slots in sorted(rows)]


_json = msgspec.json.Encoder().encode
_queues = msgspec.json.Decoder(list[str]).decode
_kinds = msgspec.json.Decoder(list[KindInfo]).decode
