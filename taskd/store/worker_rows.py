"""Rows of the table workers."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from taskd.ports.workers import KindInfo, WorkerInfo


def encode_worker(worker: WorkerInfo) -> tuple[str, str, str, int]:
    """A row of ``workers``: its name, queues and kinds as JSON, slots."""
    return worker.name, _json(worker.queues).decode(), _json(worker.kinds).decode(), worker.slots


def decode_workers(rows: Iterable[tuple[str, str, str, int]]) -> list[WorkerInfo]:
    """Workers from their rows, by name."""
    return [WorkerInfo(name, _queues(queues), _kinds(kinds), slots) for name, queues, kinds, slots in sorted(rows)]


_json = msgspec.json.Encoder().encode

_queues = msgspec.json.Decoder(list[str]).decode

_kinds = msgspec.json.Decoder(list[KindInfo]).decode
