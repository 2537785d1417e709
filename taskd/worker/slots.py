"""What a worker has in its hands: deliveries, and the pools in which they wait for a free slot."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from datetime import datetime, timezone

from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.ports.attempts import Claim, Outcome
from taskd.ports.broker import Delivery, IConsumer
from taskd.worker.attempt import Attempt
from taskd.worker.reports import ReportBuffer

Turn = tuple[int, int, datetime]
NEVER: Turn = (0, 0, datetime.min.replace(tzinfo=timezone.utc))


def turn(task: Task) -> Turn:
    """Grows with every claim of a task. The time tells a claim from an earlier one of the same dispatch and attempt,
    which a crash of the database has undone."""
    return task.dispatch, task.attempt, task.started_at or NEVER[2]


class SlotPool:
    """One way of running: ``slots`` tasks at a time, of which ``taken`` are in use. Deliveries wait in ``backlog``."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.taken = 0
        self.backlog: deque[Held] = deque()

    @property
    def free(self) -> bool:
        """Whether another task can begin."""
        return self.taken < self.slots


class Held:
    """A delivery, and what has become of it here.

    ``delivery`` is None once it is settled or void. ``passed`` is the attempt that ended here while this one was being
    claimed: an answer that tells of it comes too late. ``returning``: it is stopped, and goes back to the store.
    """

    __slots__ = (
        "attempt",
        "buffer",
        "claim",
        "consumer",
        "delivery",
        "finishing",
        "passed",
        "pool",
        "returning",
        "since",
        "suspect",
    )

    def __init__(
        self, delivery: Delivery, consumer: IConsumer, pool: SlotPool, since: float, max_attempts: int
    ) -> None:
        self.claim = Claim(delivery.task_id, delivery.dispatch, delivery.redelivered, max_attempts=max_attempts)
        self.delivery: Delivery | None = delivery
        self.consumer = consumer
        self.pool = pool
        self.since = since
        self.attempt: Attempt | None = None
        self.buffer: ReportBuffer | None = None
        self.finishing = False
        self.passed = NEVER
        self.suspect = False
        self.returning = False


class Ended:
    """An outcome on its way to the store; ``again`` when an earlier try may have been committed."""

    __slots__ = ("again", "held", "outcome")

    def __init__(self, held: Held, outcome: Outcome) -> None:
        self.held = held
        self.outcome = outcome
        self.again = False


def is_suspect(task: Task | None, claim: Claim) -> bool:
    """Whether this would be the last attempt of a task whose attempt before ended with its worker: one that failed has
    left an error."""
    if task is None or claim.alone or task.dispatch != claim.dispatch or task.error is not None:
        return False
    there = task.state is State.QUEUED or (task.state is State.RUNNING and claim.redelivered)
    return there and 0 < task.attempt == task.max_attempts - 1


def by_consumer(helds: Iterable[Held]) -> list[tuple[IConsumer, list[Delivery]]]:
    """Their deliveries, which are from now on no longer theirs."""
    found: dict[IConsumer, list[Delivery]] = {}
    for held in helds:
        if held.delivery is not None:
            found.setdefault(held.consumer, []).append(held.delivery)
            held.delivery = None
    return list(found.items())
