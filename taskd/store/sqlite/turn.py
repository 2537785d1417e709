"""Who gets what in one turn: the users with the least in flight, one task after the other. No SQL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush, heapreplace

from taskd.model.tasks import Route
from taskd.ports.scheduling import cost_in

Waiting = tuple[int, int, Route]
"""A task of the backlog: its ``run_at``, its id, its route."""

Loads = dict[int, float]
"""What users have in flight: the sum of the costs."""

Costs = Mapping[tuple[int, str], float]
"""How much each task counts in a pool, by user and kind: see :func:`cost_in`."""

NO_ROOM = 1e-9
"""So much room may be left over by adding costs: it is none."""


class _User:
    """A user with a backlog, whose tasks are not read before its turn."""

    def __init__(self, user: int, load: float, mean: float, weight: float, waiting: Iterator[Waiting]) -> None:
        self.id = user
        self.load = load
        self._mean = mean
        self._weight = weight
        self._waiting = waiting
        self._next: Waiting | None = None

    def take(self) -> tuple[Waiting, bool]:
        """The task that comes first, and whether there is another one."""
        task = self._next or next(self._waiting)
        self._next = next(self._waiting, None)
        return task, self._next is not None

    def share(self) -> float:
        """The load and half a task by weight: the user with the least is next. Nobody is before users without load.

        With half a task this is Webster's rule, which favours neither small nor large shares; without it, users with
        little weight would get more than their share. Source: Balinski, Young, "Fair Representation", 1982. Rounded,
        since the order of additions changes the last digits of equal loads.
        """
        return round((2 * self.load + self._mean) / self._weight, 9) if self.load > NO_ROOM else 0.0


class Walk:
    """The users that a turn looks at, in a circle. ``complete``: there are no others."""

    def __init__(self, complete: bool) -> None:
        self.complete = complete
        self.users: list[_User] = []

    def add(self, user: int, load: float, mean: float, weight: float, waiting: Iterator[Waiting]) -> None:
        """The next user in the circle. Its tasks cost ``mean`` on average over its routes."""
        self.users.append(_User(user, load, mean, weight, waiting))


def share_out(
    walk: Walk, room: dict[str, float], costs: Costs, limit: int, after_user: int
) -> tuple[list[tuple[str, Waiting]], int]:
    """Up to ``limit`` tasks with their workers, and the user after whom the next turn begins. Takes the costs from
    ``room``.

    Next is the user with the least share; among equals, the first in the circle. The next turn begins after the last
    user that got a task as an equal of another one, so that equals take turns. Whoever got one because nobody had as
    little does not count: otherwise a user that always has the least would bring the same equals back to the front. If
    there are more users than the turn looked at, and all those with the least share have got a task, the others may
    have less: then it begins after the last user looked at.
    """
    line = [(user.share(), place, user) for place, user in enumerate(walk.users)]
    heapify(line)
    free = [(-space, place, worker) for place, (worker, space) in enumerate(room.items())]
    heapify(free)
    least = line[0][0] if line else 0.0
    hungry = {user.id for share, _, user in line if share == least}
    picks: list[tuple[str, Waiting]] = []
    before: tuple[float, int] | None = None
    while line and free and free[0][0] < -NO_ROOM and len(picks) < limit:
        share, place, user = heappop(line)
        if (line and line[0][0] == share) or (before and before[0] == share and before[1] != user.id):
            after_user = user.id
        before = share, user.id
        hungry.discard(user.id)
        task, more = user.take()
        negative, spot, worker = free[0]
        cost = cost_in(costs, user.id, task[2].kind)
        heapreplace(free, (negative + cost, spot, worker))
        room[worker] -= cost
        picks.append((worker, task))
        user.load += cost
        if more:
            heappush(line, (user.share(), place, user))
    if picks and not hungry and not walk.complete:
        after_user = walk.users[-1].id
    return picks, after_user
