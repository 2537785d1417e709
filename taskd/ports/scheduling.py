"""The backlog in the store, and the turn that assigns its tasks to workers."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from zope.interface import Interface

from taskd.model.errors import Unavailable
from taskd.model.tasks import Route, Task


class Place(NamedTuple):
    """A worker of a pool. ``slots`` is how many tasks its executor for the pool runs at a time, less the hung ones; 0
    if it must get nothing now."""

    worker: str
    slots: int


class Served(NamedTuple):
    """A route of a pool, and the number of attempts of its kind, for a task without one."""

    queue: str
    kind: str
    max_attempts: int


OTHERS = 0
"""The user id that stands for all users of a kind without a cost of their own."""

UNKNOWN = 1.0
"""The cost of what no worker has measured: a whole slot, so that nobody waits behind tasks that prove to be long."""


class Cost(NamedTuple):
    """How much of a slot each task of a user and a kind counts while it is in flight: above 0, at most 1. The user may
    be OTHERS. What is in no list counts UNKNOWN."""

    user_id: int
    kind: str
    cost: float


def cost_in(costs: Mapping[tuple[int, str], float], user_id: int, kind: str) -> float:
    """The cost of a task of this user and kind, among the costs by user and kind."""
    return costs.get((user_id, kind)) or costs.get((OTHERS, kind), UNKNOWN)


class Pool(msgspec.Struct, frozen=True):
    """Workers whose executors serve the same routes, as one server sees them now. The shares of users are shares of a
    pool. Turns of pools with the same ``group`` exclude one another."""

    places: Sequence[Place]
    served: Sequence[Served]
    costs: Sequence[Cost] = ()
    group: str = ""


class Turn(msgspec.Struct, frozen=True):
    """What one turn of the dispatcher has done in a pool.

    ``tasks`` were assigned; their payloads are left out. ``room`` says for each worker of the pool how many of its
    slots are free, less the costs of what it holds, after the turn; it may be below 0. ``backlog``: due tasks of the
    pool are still waiting. ``after_user`` is for the next turn. ``returning``: workers of the pool still hold tasks
    that wait again, because they were cancelled and retried. They join the backlog when their workers let them go."""

    tasks: Sequence[Task]
    room: Mapping[str, float]
    backlog: bool
    after_user: int
    returning: bool = False


class TurnTooSlow(Unavailable):
    """A turn took longer than it may, and has assigned nothing. One for fewer tasks may succeed."""


class ISchedulingStore(Interface):
    """The backlog, and who gets what is in it."""

    def assign(pool: Pool, limit: int, after_user: int, patient: bool = False) -> Awaitable[Turn]:
        """waiting -> queued, for up to ``limit`` tasks of the pool's backlog: each is assigned to a worker, which holds
        it from now on. ``dispatch`` and ``attempt`` grow by one, ``max_attempts`` 0 becomes that of the route, and
        ``error`` is cleared.

        In flight is what a worker of the pool holds of the pool's kinds, in whatever state and queue. Next is always a
        task of the user for whom the sum of the costs of what is in flight, in this pool, divided by the user's weight
        is the least; among equals, the first user id above ``after_user``, in a circle. Of one user, the oldest
        ``run_at`` is first, then the lowest id. Each task goes to the worker with the most room; a worker without room
        (0 or less) gets none, and what it has too much takes no room from others. The turn ends when no worker has
        room, or at ``limit``. Nothing is assigned to a worker that is not serving: it has no slots.

        The turn looks at up to 500 users with a backlog, those after ``after_user`` first. The next turn begins after
        the last user that got a task as the equal of another one. If there are more users than the turn looked at, and
        all those who had the least have got a task, it begins after the last user looked at.

        Turns of a group of pools are taken one after the other, by whichever servers (an advisory lock), and two turns
        never assign the same task. Flushed.
        Not repeated after an ambiguous end: what it assigned is found by the worker, and by the next turn as in flight.
        Raises Unavailable, also if another server has the turn for longer than 0.1 s, and TurnTooSlow after 2 seconds,
        with ``patient`` after 8.
        """

    def promote(limit: int) -> Awaitable[Sequence[tuple[Route, int]]]:
        """Move delayed tasks whose ``run_at`` has passed into the backlog: up to ``limit``, longest overdue first, if
        these are all; otherwise each user with due tasks gets an equal part of ``limit``, at least one. Returns their
        distinct pairs of route and user id. Safe to run on several servers at the same time."""
