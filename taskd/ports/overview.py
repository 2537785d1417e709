"""How much work the store has, by queue and kind."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import NamedTuple

from zope.interface import Interface

from taskd.model.tasks import Route


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


class IOverviewStore(Interface):
    """Counts of tasks."""

    def count_tasks(user_id: int | None, routes: Sequence[Route]) -> Awaitable[Overview]:
        """The tasks of a user, or of all users, by route: for these routes in any case, and for up to 1,000 routes in
        all that have tasks.

        It counts up to 10,000 tasks of a route and a state, or fewer if there are many routes, so its cost does not
        grow with the backlog. Of delayed tasks it counts those that become due first, up to 5,000 of all routes
        together."""
