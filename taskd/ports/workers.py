"""The registry of workers in the store."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

import msgspec
from zope.interface import Interface

from taskd.model.limits import DEFAULT_ATTEMPTS


class KindInfo(msgspec.Struct, frozen=True):
    """A kind that a worker serves. ``timeout`` is in seconds; ``isolation`` is one of
    :data:`taskd.ports.handler.ISOLATIONS`; ``summary`` is one line for people."""

    kind: str
    isolation: str
    timeout: float | None = None
    max_attempts: int = DEFAULT_ATTEMPTS
    summary: str = ""


class WorkerInfo(msgspec.Struct, frozen=True):
    """A running worker. It serves every kind of ``kinds`` in every queue of ``queues``, ``slots`` tasks at a time."""

    name: str
    queues: Sequence[str]
    kinds: Sequence[KindInfo]
    slots: int


class IWorkerStore(Interface):
    """The registry of workers."""

    def worker_seen(worker: WorkerInfo) -> Awaitable[None]:
        """Record that this worker is alive, and what it serves. Replaces its earlier record."""

    def worker_gone(name: str) -> Awaitable[None]:
        """Delete the record of a worker that has stopped."""

    def list_workers(seconds: float) -> Awaitable[Sequence[WorkerInfo]]:
        """The workers that were seen in the last ``seconds``, by name. Deletes records that are older than a day."""
