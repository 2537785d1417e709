"""How much work the store has, by queue and kind, and what is before a task."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import NamedTuple

from zope.interface import Interface

from taskd.model.tasks import Route, Task
from taskd.ports.scheduling import Pool


class Counted(NamedTuple):
    """The tasks of a route that have not ended. ``waiting`` are due, ``delayed`` are not yet in the backlog. ``oldest``
    is for how many seconds the oldest waiting one has been due, None if none waits. ``more`` names the fields whose
    true value is at least the one here."""

    route: Route
    waiting: int
    delayed: int
    queued: int
    running: int
    oldest: float | None
    more: frozenset[str]


class Overview(NamedTuple):
    """Routes in ascending order. ``more``: others may have tasks, too."""

    routes: Sequence[Counted]
    more: bool


class Line(NamedTuple):
    """What is before a waiting task in a pool, and what takes the slots there.

    ``before`` has by kind how many due tasks of the same owner a turn takes before it; ``more``: these and others.
    ``held`` tasks take slots of the pool, ``held_by_owner`` of them are of the same owner. ``others_wait``: due tasks
    of other users wait in the pool, too. ``share`` is the owner's part of the pool: the owner's weight, divided by the
    sum of the weights of all users with tasks that wait or are held there; None if there are too many users. ``waits``
    is for how many seconds this task or one before it has been due: so long the owner has had something waiting.
    """

    before: Mapping[str, int]
    more: bool
    held: int
    held_by_owner: int
    others_wait: bool
    share: float | None
    waits: float


class IOverviewStore(Interface):
    """Counts of tasks."""

    def count_tasks(user_id: int | None, routes: Sequence[Route]) -> Awaitable[Overview]:
        """The tasks of a user, or of all users, by route: for these routes in any case, and for up to 1,000 routes in
        all that have tasks.

        It counts up to 10,000 tasks of a route and a state, or fewer if there are many routes, so its cost does not
        grow with the backlog. Of delayed tasks it counts those that become due first, up to 5,000 of all routes
        together."""

    def count_line(task: Task, pool: Pool) -> Awaitable[Line]:
        """The line in which a task waits in a pool that serves its route, by the same rules as
        :meth:`ISchedulingStore.assign`: of one user, the oldest ``run_at`` is first, then the lowest id, in all routes
        of the pool; held is what a worker of the pool holds of the pool's kinds, in whatever state and queue.

        It counts up to 10,000 tasks that come before, and looks at some hundred users, so its cost does not grow with
        the backlog. The task itself is not looked at: one that waits no longer has the place that it would have."""
