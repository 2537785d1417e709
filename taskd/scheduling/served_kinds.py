"""What the living workers serve, summed up by route and by kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from taskd.model.tasks import Route
from taskd.ports.workers import KindInfo, WorkerStatus


class Serving(NamedTuple):
    """Who serves a route: how many living workers; how many slots they have for tasks of its kind, without the
    ``hung`` ones; how many of the workers are ``stalled``, and what blocks the first of these; and the number of
    attempts that their kind has by default."""

    workers: int
    slots: int
    hung: int
    stalled: int
    blocked_by: str
    max_attempts: int


class ServedKind(NamedTuple):
    """A kind as all living workers together serve it.

    Where they differ the most permissive counts: the longest timeout in seconds (None is the longest of all) and the
    most attempts. The isolation and the first summary that is not empty are those of the first worker by name. The
    slots are those of the executor that runs the kind in each worker, without the ``hung`` ones.
    """

    kind: str
    queues: Sequence[str]
    isolation: str
    timeout: float | None
    max_attempts: int
    summary: str
    workers: int
    slots: int
    hung: int
    stalled: int


def serving_by_route(workers: Iterable[WorkerStatus]) -> Mapping[Route, Serving]:
    """Who serves each route that any of these workers serves."""
    found: dict[Route, Serving] = {}
    for worker in workers:
        for queue in worker.info.queues:
            for info in worker.info.kinds:
                route = Route(queue, info.kind)
                count, slots, hung, stalled, blocked_by, attempts = found.get(route, Serving(0, 0, 0, 0, "", 0))
                here, hung_here = _slots(worker, info)
                found[route] = Serving(
                    count + 1,
                    slots + here,
                    hung + hung_here,
                    stalled + bool(worker.stalled),
                    blocked_by or worker.stalled or "",
                    max(attempts, info.max_attempts),
                )
    return found


def served_kinds(workers: Iterable[WorkerStatus], queues: Sequence[str]) -> Iterator[ServedKind]:
    """The kinds that these workers serve in any of these queues, by name."""
    pairs = [(info, w) for w in workers for info in w.info.kinds if set(w.info.queues) & set(queues)]
    pairs.sort(key=lambda pair: (pair[0].kind, pair[1].info.name))
    for kind, same in groupby(pairs, key=lambda pair: pair[0].kind):
        infos: list[KindInfo] = []
        theirs: list[WorkerStatus] = []
        for info, worker in same:
            infos.append(info)
            theirs.append(worker)
        timeouts = [info.timeout for info in infos if info.timeout is not None]
        places = [_slots(worker, info) for worker, info in zip(theirs, infos, strict=True)]
        yield ServedKind(
            kind,
            [queue for queue in queues if any(queue in worker.info.queues for worker in theirs)],
            infos[0].isolation,
            max(timeouts) if len(timeouts) == len(infos) else None,
            max(info.max_attempts for info in infos),
            next((info.summary for info in infos if info.summary), ""),
            len(theirs),
            sum(free for free, _ in places),
            sum(hung for _, hung in places),
            sum(bool(worker.stalled) for worker in theirs),
        )


def _slots(worker: WorkerStatus, info: KindInfo) -> tuple[int, int]:
    """The slots that can run tasks of a kind in a worker, and the hung ones there."""
    slots, hung = worker.info.slots.get(info.isolation, 0), worker.hung.get(info.isolation, 0)
    return max(0, slots - hung), hung
