"""The fast path: a new task of a pool without a backlog is assigned by its creation, and needs no turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from taskd.model.tasks import NewTask, Task
from taskd.scheduling.dispatcher import USED, Assignment, Dispatcher
from taskd.scheduling.pools import Pools, WorkerPool

Placed = Mapping[int, Assignment]
"""The new tasks that are assigned by one creation, by their ids."""


class FastPath:
    """Assigns new tasks as far as this server has credit. All others wait, and turns assign them."""

    def __init__(self, dispatcher: Dispatcher, pools: Pools) -> None:
        self._dispatcher = dispatcher
        self._pools = pools

    def place(self, tasks: Iterable[NewTask]) -> Placed:
        """Choose workers for tasks that are about to be created. Their ids are known."""
        placed = {}
        for task in tasks:
            assignment = None
            if not task.delay and task.run_at is None:
                assignment = self._place(task)
            task.worker = None
            if assignment is not None:
                pool = assignment.pool
                placed[task.id] = assignment
                task.worker = assignment.worker
                task.max_attempts = task.max_attempts or pool.max_attempts(task.kind)
        return placed

    def created(self, placed: Placed, tasks: Iterable[Task]) -> set[str]:
        """The store has created these tasks. Returns the workers that hold some of them."""
        workers = set()
        for task in tasks:
            assignment = placed.get(task.id)
            if assignment is None:
                continue
            assignment.pool.credit.answered(assignment.worker, assignment.cost)
            if task.worker is None:
                # the worker has stopped meanwhile, so the task waits
                assignment.pool.credit.forget()
            else:
                workers.add(task.worker)
                self._dispatcher.assigned(task.id, assignment)
        return workers

    def not_created(self, placed: Placed, refused: bool) -> None:
        """The store has ``refused`` the creation, or nobody knows whether it has happened: then only a turn can tell
        how much room there is."""
        for pool, worker, cost in placed.values():
            pool.credit.answered(worker, cost)
            pool.credit.give(worker, cost)
        if not refused:
            for pool in {assignment.pool for assignment in placed.values()}:
                pool.credit.forget()
                self._dispatcher.wish(pool)

    def _place(self, task: NewTask) -> Assignment | None:
        """Take credit of the worker that has the most. If there is none, the task joins the backlog."""
        best: WorkerPool | None = None
        worker, most, cost = "", 0.0, 0.0
        pools = self._pools.by_route.get(task.route, ())
        for pool in pools:
            if not pool.backlog:
                price = pool.costs.of(task.user_id, task.kind)
                name, credit = pool.credit.best(price)
                if credit > most:
                    best, worker, most, cost = pool, name, credit, price
        if best is None:
            for pool in pools:
                pool.joined()
            return None
        best.credit.take(worker, cost)
        self._dispatcher.wish(best, USED)
        return Assignment(best, worker, cost)
