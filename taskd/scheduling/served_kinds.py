"""What the living workers serve, summed up by route and by kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from taskd.model.tasks import Route
from taskd.ports.workers import KindInfo, WorkerInfo


class Serving(NamedTuple):
    """Who serves a route: how many living workers, how many slots they have for all that they serve, and the number of
    attempts that their kind has by default."""

    workers: int
    slots: int
    max_attempts: int


class ServedKind(NamedTuple):
    """A kind as all living workers together serve it.

    Where they differ the most permissive counts: the longest timeout in seconds (None is the longest of all) and the
    most attempts. The isolation and the first summary that is not empty are those of the first worker by name.
    """

    kind: str
    queues: Sequence[str]
    isolation: str
    timeout: float | None
    max_attempts: int
    summary: str
    workers: int
    slots: int


def serving_by_route(workers: Iterable[WorkerInfo]) -> Mapping[Route, Serving]:
    """Who serves each route that any of these workers serves."""
    found: dict[Route, Serving] = {}
    for worker in workers:
        for queue in worker.queues:
            for info in worker.kinds:
                route = Route(queue, info.kind)
                count, slots, attempts = found.get(route, (0, 0, 0))
                found[route] = Serving(count + 1, slots + worker.slots, max(attempts, info.max_attempts))
    return found


def served_kinds(workers: Iterable[WorkerInfo], queues: Sequence[str]) -> Iterator[ServedKind]:
    """The kinds that these workers serve in any of these queues, by name."""
    pairs = [(info, worker) for worker in workers for info in worker.kinds if set(worker.queues) & set(queues)]
    pairs.sort(key=lambda pair: (pair[0].kind, pair[1].name))
    for kind, same in groupby(pairs, key=lambda pair: pair[0].kind):
        infos: list[KindInfo] = []
        theirs: list[WorkerInfo] = []
        for info, worker in same:
            infos.append(info)
            theirs.append(worker)
        timeouts = [info.timeout for info in infos if info.timeout is not None]
        yield ServedKind(
            kind,
            [queue for queue in queues if any(queue in worker.queues for worker in theirs)],
            infos[0].isolation,
            max(timeouts) if len(timeouts) == len(infos) else None,
            max(info.max_attempts for info in infos),
            next((info.summary for info in infos if info.summary), ""),
            len(theirs),
            sum(worker.slots for worker in theirs),
        )
