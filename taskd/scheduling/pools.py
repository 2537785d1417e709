"""The pools: workers whose executors can run the same tasks. Turns are taken, and shares counted, in each pool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from twisted.logger import Logger

from taskd.model.tasks import Route
from taskd.ports.scheduling import Place, Pool, Served, Turn
from taskd.ports.workers import KindInfo, WorkerState, WorkerStatus, by_isolation
from taskd.scheduling.costs import Costs
from taskd.scheduling.credit import Credit
from taskd.scheduling.served_kinds import ServedKind, Serving, served_kinds, serving_by_route
from taskd.scheduling.turn_groups import TurnGroups

LIMIT = 500
"""Tasks in one turn at most."""

Executor = tuple[WorkerStatus, Sequence[KindInfo]]
"""A worker, and its kinds of one isolation. They share the slots of that isolation."""


class WorkerPool:
    """One pool, and what this server knows of it."""

    def __init__(self, routes: frozenset[Route]) -> None:
        self.routes = routes
        self.backlog = True
        """Whether due tasks may be waiting, so that new ones wait behind them."""
        self._joined = False
        self.after_user = 0
        self.limit = LIMIT
        """Tasks in the next turn at most: fewer after turns that took too long."""
        self.group = ""
        """See :class:`TurnGroups`."""
        self.costs = Costs()
        self.credit = Credit()
        self._places: Mapping[str, int] = {}
        self._attempts: Mapping[str, int] = {}
        self._means: object = None
        self._holds: Mapping[str, int] = {}

    @property
    def slots(self) -> int:
        """How many tasks it can run at a time now."""
        return sum(self._places.values())

    @property
    def open_workers(self) -> frozenset[str]:
        """Those that can get tasks now."""
        return frozenset(worker for worker, slots in self._places.items() if slots)

    def joined(self) -> None:
        """A due task waits, or is about to."""
        self.backlog = self._joined = True

    def turn_begins(self) -> None:
        """From now on tasks may come too late for this turn."""
        self._joined = False
        self.credit.turn_begins()

    def turn_ended(self, turn: Turn) -> None:
        """Take over what a turn has found."""
        self.after_user = turn.after_user
        self.backlog = turn.backlog or self._joined
        self.credit.turn_ended(turn.room, self.open_workers)

    def turn_failed(self) -> None:
        """Nobody knows what waits, or how much room there is."""
        self.backlog = True
        self.credit.forget()

    def max_attempts(self, kind: str) -> int:
        """The attempts of a task of this kind that does not set its own."""
        return self._attempts[kind]

    def picture(self) -> Pool:
        """The pool as a turn needs it."""
        served = [Served(route.queue, route.kind, self._attempts[route.kind]) for route in sorted(self.routes)]
        return Pool([Place(*place) for place in self._places.items()], served, self.costs.rows(), self.group)

    def update(self, executors: Sequence[Executor], paused: bool = False) -> bool:
        """These are its executors now; while ``paused``, they get nothing. True if there is more or less to assign to,
        or if the pool has a backlog and perhaps more room than the last turn saw."""
        places = {status.info.name: 0 if paused else _open_slots(status, kinds) for status, kinds in executors}
        attempts: dict[str, int] = {}
        for _, kinds in executors:
            for info in kinds:
                attempts[info.kind] = max(info.max_attempts, attempts.get(info.kind, 0))
        before = self.costs
        means = [status.means for status, _ in executors]
        if means != self._means or places.keys() != self._places.keys():
            self._means = means
            of_pool = (mean for each in means for mean in each if mean.kind in attempts)
            self.costs = Costs(of_pool, max(_slots(status, kinds) for status, kinds in executors))
        holds = {status.info.name: status.holds for status, _ in executors}
        # nobody may have heard of the ends
        eased = before != self.costs or any(holds.get(worker, 0) < held for worker, held in self._holds.items())
        if eased:
            self.credit.eased()
        self._holds = holds
        changed = places != self._places
        self._places, self._attempts = places, attempts
        if changed:
            self.credit.only(self.open_workers)
        return changed or (eased and self.backlog)


class Pools:
    """The pools of the living workers, for the tasks of ``queues``. All other tasks stay in the store and cost no
    memory, whatever kinds users name."""

    _log = Logger()

    def __init__(self, queues: Sequence[str]) -> None:
        self.queues = tuple(queues)
        self.all: Mapping[frozenset[Route], WorkerPool] = {}
        self.by_route: Mapping[tuple[str, str], Sequence[WorkerPool]] = {}
        """The pools that serve each route."""
        self._workers: Sequence[WorkerStatus] = ()
        self._seen: object = None
        self._serving: Mapping[Route, Serving] = {}
        self._groups = TurnGroups()

    def serve(self, workers: Sequence[WorkerStatus], paused: bool = False) -> Sequence[WorkerPool]:
        """These are the living workers; while ``paused``, none of them has an open slot. Returns the pools in which a
        turn may find something to do now: those that are new, those with more or less slots than before, and those with
        a backlog and perhaps more room."""
        seen = paused, [(w.info, w.state, w.hung, w.stalled, w.means, w.holds) for w in workers]
        if seen == self._seen:
            return ()
        self._seen = seen
        self._workers = [worker for worker in workers if worker.state is WorkerState.SERVING]
        self._serving = serving_by_route(self._workers)
        executors = self._executors(workers)
        if executors.keys() != self.all.keys():
            self.all = {routes: self.all.get(routes) or WorkerPool(routes) for routes in executors}
            by_route: dict[tuple[str, str], list[WorkerPool]] = {}
            for routes, pool in self.all.items():
                for route in routes:
                    by_route.setdefault(route, []).append(pool)
            self._tell(by_route)
            self.by_route = by_route
        self._groups.serve([worker.info for worker in workers])
        for pool in self.all.values():
            pool.group = self._groups.of(next(iter(pool.routes)))
        return [self.all[routes] for routes, theirs in executors.items() if self.all[routes].update(theirs, paused)]

    def serving(self, route: Route) -> Serving | None:
        """Who serves a route, None if no living worker does."""
        return self._serving.get(route)

    def routes(self) -> list[Route]:
        """The routes that living workers serve in the queues of this server, in their order."""
        return sorted(route for route in self._serving if route.queue in self.queues)

    def kinds(self) -> list[ServedKind]:
        """The kinds that living workers serve in the queues of this server, by name."""
        return list(served_kinds(self._workers, self.queues))

    def _executors(self, workers: Iterable[WorkerStatus]) -> Mapping[frozenset[Route], list[Executor]]:
        """The executors by the routes that they serve here."""
        found: dict[frozenset[Route], list[Executor]] = {}
        for status in workers:
            queues = [queue for queue in self.queues if queue in status.info.queues]
            for kinds in by_isolation(status.info.kinds).values():
                routes = frozenset(Route(queue, info.kind) for queue in queues for info in kinds)
                if routes:
                    found.setdefault(routes, []).append((status, kinds))
        return found

    def _tell(self, by_route: Mapping[tuple[str, str], object]) -> None:
        for change, routes in (
            ("a worker serves it", by_route.keys() - self.by_route.keys()),
            ("no living worker serves it", self.by_route.keys() - by_route.keys()),
        ):
            for route in sorted(routes):
                self._log.info("route {route}: {change}", route=Route(*route).name, change=change)


def _slots(status: WorkerStatus, kinds: Sequence[KindInfo]) -> int:
    return status.info.slots.get(kinds[0].isolation, 0)


def _open_slots(status: WorkerStatus, kinds: Sequence[KindInfo]) -> int:
    """What a worker that stops, or whose reactor is blocked, already holds counts in its pool; it gets nothing more."""
    if status.state is not WorkerState.SERVING or status.stalled is not None:
        return 0
    return max(0, _slots(status, kinds) - status.hung.get(kinds[0].isolation, 0))
