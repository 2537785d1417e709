"""Groups of pools: within a group, turns are taken one after the other. Two pools are in one group if they share a
route, or if a chain of pools connects them, in which each pool shares a route with the next.

Turns of different groups never read the same backlog or the same slots, so they need not wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from taskd.model.tasks import Route
from taskd.ports.workers import WorkerInfo, by_isolation

_Shape = tuple[frozenset[str], frozenset[str]]
"""The queues and the kinds of an executor."""


class TurnGroups:
    """Knows the group of each route that a living worker serves.

    All queues of the workers count, whichever a server assigns, and a group is named after its least route: so all
    servers that see the same workers name the same groups. While two servers see different workers, for about a second
    after a change, turns of one group may happen at the same time. They may then assign more than there is room for,
    once, and workers give back what has to wait.
    """

    def __init__(self) -> None:
        self._infos: Sequence[WorkerInfo] = ()
        self._names: Mapping[Route, str] = {}

    def serve(self, infos: Sequence[WorkerInfo]) -> None:
        """These are the living workers."""
        if infos != self._infos:
            self._infos = infos
            self._names = _names({shape for info in infos for shape in _shapes(info)})

    def of(self, route: Route) -> str:
        """The name of the group of a route that a living worker serves."""
        return self._names[route]


def _shapes(info: WorkerInfo) -> Iterable[_Shape]:
    """The executors of a worker. Workers of the same shape are merged once."""
    queues = frozenset(info.queues)
    return [(queues, frozenset(kind.kind for kind in kinds)) for kinds in by_isolation(info.kinds).values()]


def _names(shapes: Iterable[_Shape]) -> Mapping[Route, str]:
    group_of: dict[Route, set[Route]] = {}
    for queues, kinds in shapes:
        merged = {Route(queue, kind) for queue in queues for kind in kinds}
        for group in {id(group): group for route in merged if (group := group_of.get(route))}.values():
            merged |= group
        for route in merged:
            group_of[route] = merged
    names: dict[int, str] = {}
    for group in group_of.values():
        if id(group) not in names:
            names[id(group)] = min(group).name
    return {route: names[id(group)] for route, group in group_of.items()}
