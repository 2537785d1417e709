"""The window: how much of each route this server believes to be in the broker, and who has a backlog behind it.

The figures follow the news of all servers and workers and are corrected from the store once a second; being a little
wrong costs a slightly larger or smaller window, never a task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from taskd.events.records import TaskChange
from taskd.model.states import State
from taskd.model.tasks import Route


class Window:
    """One route's window of ``limit`` tasks."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._queued = 0
        self._backlog: set[int] = set()
        self._since: set[int] = set()
        self._known = False

    @property
    def room(self) -> int:
        """How many more tasks may go to the broker now."""
        return max(0, self.limit - self._queued)

    @property
    def queued(self) -> int:
        """How many tasks are in the broker, as far as is known."""
        return self._queued

    @property
    def has_backlog(self) -> bool:
        """Whether tasks may be waiting in the store."""
        return bool(self._backlog) or not self._known

    def admit(self, user_id: int) -> bool:
        """Take a place for a new task that goes straight to the broker; False if it must wait behind others."""
        if not self._known or self._queued >= self.limit or user_id in self._backlog:
            return False
        self._queued += 1
        return True

    def mark_backlogged(self, user_id: int) -> None:
        """This user has something waiting in the store."""
        self._backlog.add(user_id)
        self._since.add(user_id)

    def take(self, places: int) -> None:
        """These many were handed over by the dispatcher (negative: given back)."""
        self._queued = max(0, self._queued + places)

    def backlogged_users(self) -> frozenset[int]:
        """Users with a backlog as far as known when a round begins, to be given to :meth:`cleared` if it was clean."""
        self._since.clear()
        return frozenset(self._backlog)

    def clear_backlogged(self, suspects: Iterable[int]) -> None:
        """A whole round of the dispatcher left nothing of these users, but for what was added while it went round."""
        self._backlog.difference_update(suspects)
        self._backlog |= self._since
        self._known = True

    def heard(self, change: TaskChange) -> None:
        """Somebody else changed a task of this route."""
        if change.state is State.QUEUED:
            self._queued += 1
        elif change.state is State.RUNNING:
            self._queued = max(0, self._queued - 1)
        elif change.state is State.WAITING and change.due:
            self.mark_backlogged(change.user_id)

    def correct(self, queued: int) -> None:
        """What the store says."""
        self._queued = queued


class Windows:
    """The windows of the routes that are open. What concerns any other route is passed over: users may name any kind
    they like, and a route that nobody serves has to cost nothing."""

    def __init__(self, limit: int) -> None:
        self.by_route: dict[Route, Window] = {}
        self._limit = limit

    def open(self, route: Route) -> Window:
        """A new window, which knows nothing of its backlog."""
        window = self.by_route[route] = Window(self._limit)
        return window

    def close(self, route: Route) -> None:
        """Forget a window."""
        del self.by_route[route]

    def mark_backlogged(self, route: Route, user_id: int) -> None:
        """This user has something of this route waiting in the store."""
        window = self.by_route.get(route)
        if window is not None:
            window.mark_backlogged(user_id)

    def heard(self, changes: Iterable[TaskChange]) -> None:
        """Follow the changes that others announced."""
        by_route = self.by_route
        for change in changes:
            window = by_route.get(Route(change.queue, change.kind))
            if window is not None:
                window.heard(change)

    def correct(self, counts: Mapping[Route, int]) -> None:
        """Take over the store's counts."""
        for route, window in self.by_route.items():
            window.correct(counts.get(route, 0))
