"""How far both databases count, and how the counts become an overview."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from taskd.model.tasks import Route
from taskd.ports.overview import Counted, Line, Overview

MAX_ROUTES = 1000
"""The most routes with a backlog that are looked at, and the most in an overview."""

COUNTED = 10_000
"""The most tasks of one route that are counted."""

DELAYED = 5000
"""The most delayed tasks of all routes together. They are read from the table: their index does not have the route."""

_LINE_USERS = 300
"""About the most steps from user to user that a look at the line of a pool takes, in all its routes together."""

_COUNTED_IN_ALL = 100_000
"""About the most waiting tasks that one overview counts."""

_USERS = 500
"""The most users of one route among whom the oldest task is searched."""

_USERS_IN_ALL = 5000

_LEAST = 100


def bounds(routes: int) -> tuple[int, int]:
    """How many waiting tasks of each of so many routes are counted, and among how many users the oldest is searched if
    there are more."""
    each = max(1, routes)
    return max(_LEAST, min(COUNTED, _COUNTED_IN_ALL // each)), max(10, min(_USERS, _USERS_IN_ALL // each))


def users_in_line(routes: int) -> int:
    """Among how many users of each of a pool's so many routes the shares are counted. Two of them show whether there is
    another one than the owner."""
    return max(2, _LINE_USERS // max(1, routes))


def line(
    before: Mapping[str, int], held: int, held_by_owner: int, others_wait: bool, share: float | None, waits: float
) -> Line:
    """The line for these counts; one more task before than are counted means that there are more."""
    total = sum(before.values())
    if total > COUNTED:
        most = max(before, key=lambda kind: before[kind])
        before = {**before, most: before[most] - 1}
    return Line(before, total > COUNTED, held, held_by_owner, others_wait, share, max(0.0, waits))


class Tally:
    """Collects counts. ``wanted`` are the routes that are in the overview in any case."""

    def __init__(self, wanted: Iterable[Route]) -> None:
        self._counts: dict[Route, dict[str, int]] = {route: {} for route in wanted}
        self._wanted = set(self._counts)
        self._oldest: dict[Route, float] = {}
        self._more: dict[Route, set[str]] = {}
        self._more_delayed = False

    def add(self, field: str, route: Route, number: int, limit: int = COUNTED) -> None:
        """So many tasks are in this state; up to ``limit`` of them count."""
        if number:
            self._counts.setdefault(route, {})[field] = min(number, limit)
            if number > limit:
                self._more.setdefault(route, set()).add(field)

    def oldest(self, route: Route, seconds: float, complete: bool = True) -> None:
        """The oldest waiting task has been due for so long; not ``complete``: there may be an older one."""
        self._oldest[route] = max(0.0, seconds)
        if not complete:
            self._more.setdefault(route, set()).add("oldest")

    def delayed(self, counts: Sequence[tuple[Route, int]]) -> None:
        """The delayed tasks by route; one more than are counted in all means that there are more."""
        self._more_delayed = sum(number for _, number in counts) > DELAYED
        for route, number in counts:
            self.add("delayed", route, number, DELAYED)

    def overview(self, more: bool) -> Overview:
        """Everything. ``more``: not all routes with a backlog were looked at."""
        others = sorted(self._counts.keys() - self._wanted)
        shown = others[: max(0, MAX_ROUTES - len(self._wanted))]
        everywhere = {"delayed"} if self._more_delayed else set()
        found = [
            Counted(
                route,
                counts.get("waiting", 0),
                counts.get("delayed", 0),
                counts.get("queued", 0),
                counts.get("running", 0),
                self._oldest.get(route),
                frozenset(self._more.get(route, ())) | everywhere,
            )
            for route, counts in ((route, self._counts[route]) for route in sorted([*self._wanted, *shown]))
        ]
        return Overview(found, more or self._more_delayed or len(shown) < len(others))
