"""What a worker holds: each delivery from its arrival until it is acked or given back."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from taskd.model.tasks import Task
from taskd.ports.attempts import Claim, Held, Outcome
from taskd.ports.broker import Delivery, IConsumer
from taskd.worker.attempt import Attempt
from taskd.worker.reports import ReportBuffer
from taskd.worker.slots import SlotPool

ClaimNumber = tuple[int, int, datetime]
"""Dispatch, attempt and start of a claim. It grows with every claim of a task: see :func:`claim_number`."""

NO_CLAIM: ClaimNumber = (0, 0, datetime.min.replace(tzinfo=timezone.utc))


def claim_number(task: Task) -> ClaimNumber:
    """Tells two claims of a task apart. The start time distinguishes a claim from an earlier one of the same dispatch
    and attempt, which a crash of the database has undone."""
    return task.dispatch, task.attempt, task.started_at or NO_CLAIM[2]


def _nothing(held: HeldTask) -> None:
    """What ends before it has begun frees nothing."""


class HeldState(enum.Enum):
    """Where a held task is on its way."""

    CLAIMING = "waits for a slot, or its claim is with the store"
    WAITING = "claimed, and waits for a place among the suspects"
    BEGINNING = "has a place among the suspects, and its begin is being stored"
    RUNNING = "its handler runs"
    FINISHING = "its outcome is on the way to the store"
    RETURNING = "its attempt is stopped, and goes back to the store unspent"
    DROPPED = "it is not this worker's any more: nothing that comes of it counts"


@dataclass(eq=False, slots=True)
class HeldTask:
    """A delivery, and what has become of it in this worker.

    ``delivery`` is None once it is acked, given back, or lost with its channel. ``since`` is when it arrived, later
    when it began to wait among the suspects or to run, in seconds of the clock. ``worker`` is the name under which it
    was claimed, ``task`` what was claimed, ``user`` its owner's name. ``stored_before``: an earlier try to store the
    outcome may have been committed. ``plain``: the outcome says only that the real one cannot be stored. ``on_free``,
    if any, is called when its slot is free, ``on_end`` when the worker holds the task no longer. ``ended_claim`` is the
    latest claim of this task that ended here while this one was with the store: an answer about that claim comes too
    late."""

    claim: Claim
    delivery: Delivery | None
    consumer: IConsumer
    pool: SlotPool[HeldTask]
    isolation: str
    since: float
    state: HeldState = HeldState.CLAIMING
    worker: str = ""
    task: Task | None = None
    user: str = ""
    attempt: Attempt | None = None
    buffer: ReportBuffer | None = None
    outcome: Outcome | None = None
    stored_before: bool = False
    plain: bool = False
    ended_claim: ClaimNumber = NO_CLAIM
    on_free: Callable[[HeldTask], None] | None = None
    on_end: Callable[[HeldTask], None] = _nothing

    @property
    def in_store(self) -> Held:
        """As it should stand in the store. Only for a claimed task."""
        assert self.task is not None
        return Held(self.task.id, self.task.dispatch, self.task.attempt)


class HeldTasks:
    """The tasks that are being claimed or run, and whether the worker is stopping. ``running`` has every claimed task
    by its id until its outcome is stored, ``claiming`` the claims that are with the store or wait to be sent again.

    ``draining`` is True from the beginning of the stop on, ``stopped`` once no attempt may begin any more.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self.running: dict[int, HeldTask] = {}
        self.claiming: dict[int, list[HeldTask]] = {}
        self.claims = 0
        """Claims that are with the store."""
        self.releasing: set[Held] = set()
        """What is on its way back to the store although nothing of it runs here: it must not begin meanwhile."""
        self.draining = False
        self.stopped = False
        self._idle: Deferred[None] | None = None
        self._hurried = False

    @property
    def busy(self) -> int:
        """How many tasks are being claimed or run."""
        return self.claims + len(self.running)

    def check_idle(self) -> None:
        """A task is done: let :meth:`until_idle` go on if it was the last one."""
        if self._idle is not None and not self.busy:
            self.hurry()

    async def until_idle(self, seconds: float) -> None:
        """Wait until there is nothing left, but no longer than so many seconds."""
        hurried, self._hurried = self._hurried, False
        if hurried or not self.busy:
            return
        idle = self._idle = Deferred()
        timer = self._clock.callLater(seconds, self.hurry)
        await idle
        if timer.active():
            timer.cancel()

    def hurry(self) -> None:
        """End the present wait, or the next one if there is none now."""
        idle, self._idle = self._idle, None
        if idle is None:
            self._hurried = True
        else:
            idle.callback(None)


def keep_one_delivery(stays: HeldTask, goes: HeldTask) -> None:
    """Of two deliveries of a task, ack one now. The attempt that stays acks the other in the end, also if its own
    delivery was lost and this one is the redelivery."""
    if stays.delivery is None and stays.claim.dispatch == goes.claim.dispatch:
        stays.delivery, stays.consumer, goes.delivery = goes.delivery, goes.consumer, None
    ack([goes])


def ack(helds: Iterable[HeldTask]) -> None:
    """Ack the deliveries of these."""
    for consumer, deliveries in _take_deliveries(helds):
        consumer.ack(deliveries)


def requeue(helds: Iterable[HeldTask]) -> None:
    """Give the deliveries of these back to the broker, for any worker."""
    for consumer, deliveries in _take_deliveries(helds):
        consumer.requeue(deliveries)


def _take_deliveries(helds: Iterable[HeldTask]) -> list[tuple[IConsumer, list[Delivery]]]:
    found: dict[IConsumer, list[Delivery]] = {}
    for held in helds:
        if held.delivery is not None:
            found.setdefault(held.consumer, []).append(held.delivery)
            held.delivery = None
    return list(found.items())
