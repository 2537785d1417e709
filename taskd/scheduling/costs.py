"""How much of a slot a task counts while it is in flight, from the times that workers measure.

A task that has been assigned is for a while on its way: about :data:`HORIZON` seconds pass until it begins and until
its end is known. If tasks of a user hold a slot for l seconds each, then of the time in flight only the part
l / (l + HORIZON) is spent in a slot. Counting each task by this part measures what users take from a pool by what
their tasks do there (Little's law), and it keeps about HORIZON seconds of work on its way to each slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from taskd.ports.scheduling import OTHERS, Cost, cost_in
from taskd.ports.workers import Mean

HORIZON = 0.1
"""Seconds of work that are on their way to each slot."""

LONG = 1.0
"""Tasks that take so many seconds count a whole slot. One more would wait for another's end for about as long, and
workers give back what has waited for a second."""

FASTEST = 8000
"""Tasks that one worker ends in a second at most, whatever they do: its process is busy then, not its slots. It bounds
what is in flight there to slots + FASTEST x HORIZON, 900 for 100 slots. That is enough to do between two turns, and a
worker that ends only 1,000 a second still begins all of them before they have waited for a second."""

MOST = 1000
"""Costs in one turn, besides those of the kinds."""


def cost_of(seconds: float, slots: int) -> float:
    """The cost of tasks that hold one of a worker's so many slots for so long."""
    if seconds >= LONG:
        return 1.0
    held = max(seconds, slots / FASTEST)
    return held / (held + HORIZON)


class Costs:
    """The costs of a pool's tasks: the workers' means, evenly weighted."""

    def __init__(self, means: Iterable[Mean] = (), slots: int = 0) -> None:
        times: dict[tuple[int, str], list[float]] = {}
        for user_id, kind, seconds in means:
            times.setdefault((user_id, kind), []).append(seconds)
        average = {key: sum(found) / len(found) for key, found in times.items()}
        kinds: dict[str, list[float]] = {}
        for (_, kind), seconds in average.items():
            kinds.setdefault(kind, []).append(seconds)
        of_kinds = {(OTHERS, kind): sum(found) / len(found) for kind, found in kinds.items()}
        self._seconds: Mapping[tuple[int, str], float] = {**of_kinds, **average}
        wanted = (*of_kinds.items(), *islice(average.items(), MOST))
        self._costs: Mapping[tuple[int, str], float] = {key: cost_of(seconds, slots) for key, seconds in wanted}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Costs) and self._costs == other._costs

    def of(self, user_id: int, kind: str) -> float:
        """The cost of a task of this user and kind."""
        return cost_in(self._costs, user_id, kind)

    def seconds_of(self, user_id: int, kind: str) -> float | None:
        """For how many seconds tasks of this user and kind hold a slot, or else those of the kind; None if no worker
        has measured it."""
        found = self._seconds.get((user_id, kind))
        return self._seconds.get((OTHERS, kind)) if found is None else found

    def rows(self) -> Sequence[Cost]:
        """All of them, for a turn."""
        return [Cost(user_id, kind, cost) for (user_id, kind), cost in self._costs.items()]
