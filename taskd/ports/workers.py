"""The registry of workers in the store, and who of them is alive."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import NamedTuple

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


def by_isolation(kinds: Iterable[KindInfo]) -> Mapping[str, Sequence[KindInfo]]:
    """The kinds by the executor that runs them, in their order. Kinds of one executor share its slots."""
    found: dict[str, list[KindInfo]] = {}
    for info in kinds:
        found.setdefault(info.isolation, []).append(info)
    return found


class WorkerState(enum.Enum):
    """What a worker says of itself, or a server or its watchdog says of it."""

    SERVING = "serving"
    DRAINING = "draining"
    GONE = "gone"
    """Its watchdog has seen it die."""
    FENCED = "fenced"
    """A server has taken its tasks back. Nothing that it still says counts."""


class Mean(NamedTuple):
    """For how many ``seconds``, on average, tasks of a user and a kind have held a slot of a worker lately. What runs
    now counts with its age."""

    user_id: int
    kind: str
    seconds: float


class Digest(NamedTuple):
    """A short form of everything that a worker holds: see :func:`digest`."""

    count: int  # type: ignore[assignment]  # in place of the method of tuples
    total: int


class Beaten(NamedTuple):
    """The answer to a beat. ``in_step``: what stands under the worker's name is what its digest says. ``asserted`` is
    False if the worker has not said what it holds since the database went on from an older state: then
    :meth:`IAttemptStore.assert_held` is due."""

    accepted: bool
    in_step: bool
    asserted: bool = True


class WorkerStatus(msgspec.Struct, frozen=True):
    """A worker as one poll sees it.

    ``beat`` is a counter that the worker or its watchdog moves every second or two. ``connected``: the database
    connection that sent the last beat is open. ``hung`` says for each isolation how many slots are taken by handlers
    that should have ended. ``stalled`` names what blocks its reactor, None if nothing does. ``means`` is what it has
    measured. ``holds`` is how many tasks it held at its last own beat. ``asserted`` is as in :class:`Beaten`.
    """

    info: WorkerInfo
    state: WorkerState
    beat: int
    connected: bool
    hung: Mapping[str, int]
    stalled: str | None = None
    means: Sequence[Mean] = ()
    holds: int = 0
    asserted: bool = True


class WorkerPoll(msgspec.Struct, frozen=True):
    """All registered workers by name, and ``epoch``: another text after each restart or failover of the database."""

    epoch: str
    workers: Sequence[WorkerStatus]


class Culprit(msgspec.Struct, frozen=True):
    """The task that has killed or stopped its worker, and how, in one line."""

    task_id: int
    dispatch: int
    reason: str


def digest(held: Iterable[tuple[int, int]]) -> Digest:
    """The digest of pairs of task id and dispatch. The stores compute the same: the sum of 31 * id + dispatch."""
    count = total = 0
    for task_id, dispatch in held:
        count += 1
        total += 31 * task_id + dispatch
    return Digest(count, total)


class IWorkerStore(Interface):
    """The registry of workers."""

    def register(worker: WorkerInfo) -> Awaitable[None]:
        """Add a worker as serving. Running it again changes nothing."""

    def beat(name: str, hung: Mapping[str, int], means: Sequence[Mean], holds: Digest) -> Awaitable[Beaten]:
        """The worker lives, and its reactor runs: its beat grows, and ``stalled`` is None again. Not accepted if it is
        fenced or gone or not registered: then it holds nothing any more. ``holds`` is compared with the count of what
        it holds in whatever state, and with the total over what of it is queued or running. Does not wait for the disk,
        and is not repeated."""

    def worker_draining(name: str) -> Awaitable[None]:
        """serving -> draining."""

    def worker_gone(name: str) -> Awaitable[None]:
        """Delete the record of a worker that has stopped, and give back what it still holds, like
        :meth:`IAttemptStore.release` while it stops."""

    def poll_workers() -> Awaitable[WorkerPoll]:
        """All workers. Deletes the records of workers that are gone or fenced, hold nothing, and have not beaten for an
        hour."""
