"""The registry of workers in the store, and who of them is alive."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Mapping, Sequence

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
    """A worker and what it serves: every kind of ``kinds`` in every queue of ``queues``. ``slots`` says for each
    isolation how many tasks run at a time. ``name`` is never used again."""

    name: str
    queues: Sequence[str]
    kinds: Sequence[KindInfo]
    slots: Mapping[str, int]


class WorkerState(enum.Enum):
    """What a worker says of itself, or a server or its watchdog says of it."""

    SERVING = "serving"
    DRAINING = "draining"
    GONE = "gone"
    """Its watchdog has seen it die."""
    FENCED = "fenced"
    """A server has taken its tasks back. Nothing that it still says counts."""


class WorkerStatus(msgspec.Struct, frozen=True):
    """A worker as one poll sees it.

    ``beat`` is a counter that the worker or its watchdog moves every second or two. ``connected``: the database
    connection that sent the last beat is open. ``hung`` says for each isolation how many slots are taken by handlers
    that should have ended. ``stalled`` names what blocks its reactor, None if nothing does.
    """

    info: WorkerInfo
    state: WorkerState
    beat: int
    connected: bool
    hung: Mapping[str, int]
    stalled: str | None = None


class WorkerPoll(msgspec.Struct, frozen=True):
    """All registered workers by name, and ``epoch``: another text after each restart or failover of the database."""

    epoch: str
    workers: Sequence[WorkerStatus]


class Culprit(msgspec.Struct, frozen=True):
    """The task that has killed or stopped its worker, and how, in one line."""

    task_id: int
    dispatch: int
    reason: str


class IWorkerStore(Interface):
    """The registry of workers."""

    def register(worker: WorkerInfo) -> Awaitable[None]:
        """Add a worker as serving. Running it again changes nothing."""

    def beat(name: str, hung: Mapping[str, int]) -> Awaitable[bool]:
        """The worker lives, and its reactor runs: its beat grows, and ``stalled`` is None again. False if it is fenced
        or gone or not registered: then it holds nothing any more. Does not wait for the disk, and is not repeated."""

    def worker_draining(name: str) -> Awaitable[None]:
        """serving -> draining."""

    def worker_gone(name: str) -> Awaitable[None]:
        """Delete the record of a worker that has stopped. What it still holds goes back by the next take_back."""

    def poll_workers() -> Awaitable[WorkerPoll]:
        """All workers. Deletes the records of workers that are gone or fenced, hold nothing, and have not beaten for an
        hour."""
