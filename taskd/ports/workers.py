"""The registry of workers in the store."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

import msgspec
from zope.interface import Interface

from taskd.model.limits import DEFAULT_ATTEMPTS


class KindInfo(msgspec.Struct, frozen=True):
    """What a worker says of a kind that it serves. ``timeout`` is in seconds, ``isolation`` one of
    :data:`ISOLATIONS`; ``summary`` is one line for people."""

    kind: str
    isolation: str
    timeout: float | None = None
    max_attempts: int = DEFAULT_ATTEMPTS
    summary: str = ""


class WorkerInfo(msgspec.Struct, frozen=True):
    """A worker that lives: every kind of ``kinds`` of every queue of ``queues``, ``slots`` tasks at a time."""

    name: str
    queues: Sequence[str]
    kinds: Sequence[KindInfo]
    slots: int


class IWorkerStore(Interface):
    """The registry of workers."""

    def worker_seen(worker: WorkerInfo) -> Awaitable[None]:
        """This worker lives and serves this. What it said before is replaced."""

    def worker_gone(name: str) -> Awaitable[None]:
        """This worker has stopped."""

    def list_workers(seconds: float) -> Awaitable[Sequence[WorkerInfo]]:
        """Workers seen in the last so many seconds, by name. Forgets those that were not for a day."""
