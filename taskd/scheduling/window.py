"""The window of a route: how many of its tasks are in the broker, and which users have a backlog, as far as known.

The figures follow the events of all servers and workers and are corrected from the store once a second. An error makes
a window a little larger or smaller for a moment; it never loses a task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from taskd.events.records import TaskChange
from taskd.model.states import State
from taskd.model.tasks import Route


class Window:
    """The window of one route, ``limit`` tasks large."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._queued = 0
        self._backlogged: set[int] = set()
        self._backlogged_since: set[int] = set()
        self._known = False

    @property
    def room(self) -> int:
        """How many more tasks may go to the broker now."""
        return max(0, self.limit - self._queued)

    @property
    def queued(self) -> int:
        """How many tasks are in the broker, as far as this server knows."""
        return self._queued

    @property
    def has_backlog(self) -> bool:
        """Whether tasks may be waiting in the store."""
        return bool(self._backlogged) or not self._known

    def admit(self, user_id: int) -> bool:
        """Take a place for a new task that goes straight to the broker. False if the task must wait: the window is full
        or not yet known, or the user's older tasks are waiting."""
        if not self._known or self._queued >= self.limit or user_id in self._backlogged:
            return False
        self._queued += 1
        return True

    def mark_backlogged(self, user_id: int) -> None:
        """This user has tasks waiting in the store."""
        self._backlogged.add(user_id)
        self._backlogged_since.add(user_id)

    def take(self, places: int) -> None:
        """The dispatcher has handed over so many tasks (negative: they were given back)."""
        self._queued = max(0, self._queued + places)

    def backlogged_users(self) -> frozenset[int]:
        """The users with a backlog when a round of the dispatcher begins, for :meth:`clear_backlogged`."""
        self._backlogged_since.clear()
        return frozenset(self._backlogged)

    def clear_backlogged(self, users: Iterable[int]) -> None:
        """A complete round of the dispatcher left nothing of these users waiting, except what came during the round."""
        self._backlogged.difference_update(users)
        self._backlogged |= self._backlogged_since
        self._known = True

    def apply(self, change: TaskChange) -> None:
        """Another process has changed a task of this route."""
        if change.state is State.QUEUED:
            self._queued += 1
        elif change.state is State.RUNNING:
            self._queued = max(0, self._queued - 1)
        elif change.state is State.WAITING and change.due:
            self.mark_backlogged(change.user_id)

    def correct(self, queued: int) -> None:
        """Set the number of queued tasks that the store has counted."""
        self._queued = queued


class Windows:
    """The windows of the open routes, ``limit`` tasks large. It ignores all other routes: users may name any kind they
    like, and a route that no worker serves must not cost memory. ``wake`` is called with each route that may have
    something to dispatch after the changes of other processes."""

    def __init__(self, limit: int, wake: Callable[[Route], None]) -> None:
        self.by_route: dict[Route, Window] = {}
        self.counted: Mapping[Route, int] = {}
        """How many queued tasks the store has counted last, for all routes."""
        self._limit = limit
        self._wake = wake

    def open(self, route: Route) -> Window:
        """A new window, which does not know its backlog yet."""
        window = self.by_route[route] = Window(self._limit)
        return window

    def close(self, route: Route) -> None:
        """Drop a window."""
        del self.by_route[route]

    def mark_backlogged(self, route: Route, user_id: int) -> None:
        """This user has tasks of this route waiting in the store."""
        window = self.by_route.get(route)
        if window is not None:
            window.mark_backlogged(user_id)

    def release(self, route: Route, places: int) -> None:
        """So many tasks of this route are in the broker no longer."""
        window = self.by_route.get(route)
        if window is not None:
            window.take(-places)

    def apply(self, changes: Iterable[TaskChange]) -> None:
        """Follow the changes that other processes made: there may be room, or more in a backlog."""
        by_route = self.by_route
        for change in changes:
            window = by_route.get(Route(change.queue, change.kind))
            if window is not None:
                window.apply(change)
        for route, window in by_route.items():
            if window.has_backlog:
                self._wake(route)

    def correct(self, counts: Mapping[Route, int]) -> None:
        """Take over the store's counts of queued tasks."""
        self.counted = counts
        for route, window in self.by_route.items():
            window.correct(counts.get(route, 0))
