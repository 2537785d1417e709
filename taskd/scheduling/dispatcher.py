"""Takes the turns of this server: tasks of the backlog are assigned to workers, in fair order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from taskd.events.publisher import Publisher
from taskd.events.records import TaskChange
from taskd.model.states import TERMINAL, State
from taskd.model.tasks import Task
from taskd.ports.broker import IBroker
from taskd.ports.scheduling import TurnTooSlow
from taskd.ports.store import IStore
from taskd.ports.workers import WorkerStatus
from taskd.scheduling.pools import LIMIT, Pools, WorkerPool
from taskd.scheduling.turns import GATHER, Turns

LEAST = 20
"""Tasks in one turn at most, after some that took too long."""

PATIENT = LIMIT // 8
"""A turn for no more tasks than this may take longer: it does not help to make it smaller still."""

ROOM_LEFT = 0.2
"""Seconds until the next turn while there is a backlog, and room for more of it."""

FULL = 10.0
"""The same while there is no room. An end that is heard of makes a turn at once, and so does a beat that says that its
worker holds less."""

RETURNING = 1.0
"""The same while workers hold tasks that wait again, and nothing else waits: the event may be lost that tells of their
return."""

USED = 1.0
"""Seconds until a turn after credit was used."""

CHECK = 10.0
"""Every so often one pool without a backlog, as far as known, is looked at: another server may have died after it
stored a task and before it told anybody."""

PLENTY = 0.5
"""The next turn comes early if what ended since the last one had so many of the pool's slots."""

MOST_FOLLOWED = 20_000
"""Assignments that a server remembers; it forgets the oldest first, which turns count anyway."""


class Assignment(NamedTuple):
    """A task in flight that this server has assigned."""

    pool: WorkerPool
    worker: str
    cost: float


class Dispatcher:
    """Knows when a turn may find something to do: there is a backlog, as far as anybody has told, and perhaps room.

    What it knows of backlog and room follows the events of all processes, and each turn corrects it. An error costs
    time and loses nothing. It does not need the broker: without hints, workers find their tasks a little later.
    """

    def __init__(self, clock: IReactorTime, store: IStore, broker: IBroker, publisher: Publisher, pools: Pools) -> None:
        self._clock = clock
        self._store = store
        self._broker = broker
        self._publisher = publisher
        self._pools = pools
        self._turns: dict[WorkerPool, Turns] = {}
        self._mine: dict[int, Assignment] = {}
        self._serving: set[str] = set()
        self._stopping: set[Deferred[None]] = set()
        self._stopped = False
        self._checks = LoopingCall(self._check)
        self._checks.clock = clock

    def start(self) -> None:
        """Look at the pools without a backlog now and then."""
        self._checks.start(CHECK, now=False)

    async def stop(self) -> None:
        """Start no more turns; done when those under way have ended."""
        self._stopped = True
        if self._checks.running:
            self._checks.stop()
        for pool in tuple(self._turns):
            self._forget(pool)
        for stopping in tuple(self._stopping):
            await stopping

    # -- what makes a turn useful

    def serve(self, workers: Sequence[WorkerStatus], paused: bool = False) -> None:
        """These are the living workers, as each poll finds them. ``paused``: none of them may get anything now."""
        before = self._serving
        self._serving = {worker.info.name for worker in workers}
        changed = self._pools.serve(workers, paused)
        if before - self._serving:
            # who has stopped has given its last tasks back without a word
            self.gap()
        for pool in self._turns.keys() - set(self._pools.all.values()):
            self._forget(pool)
        for pool in changed:
            self.wish(pool)
        if not (self._broker.ready and self._broker.consuming):
            # no end can be heard of
            for pool in self._pools.all.values():
                if pool.backlog:
                    self.wish(pool)

    def wish(self, pool: WorkerPool, within: float = 0.0, gather: bool = True) -> None:
        """Take a turn in this pool within so many seconds: see :meth:`Turns.wish`."""
        turns = self._turns.get(pool)
        if turns is None:
            if self._stopped or pool.routes not in self._pools.all:
                return
            turns = self._turns[pool] = Turns(self._clock, self._name(pool), partial(self._take_turn, pool))
        turns.wish(within, gather)

    def came(self, route: tuple[str, str]) -> None:
        """A due task of this route waits."""
        for pool in self._pools.by_route.get(route, ()):
            pool.joined()
            self.wish(pool, 0.0 if pool.credit.room_left else FULL)

    def follow(self, changes: Iterable[TaskChange]) -> None:
        """Other processes have changed these tasks."""
        for change in changes:
            if change.state is State.QUEUED:
                self._taken((change.queue, change.kind))
            self._follow(
                change.task_id, change.user_id, (change.queue, change.kind), change.state, change.version, change.due
            )

    def look_at(self, routes: Iterable[tuple[str, str]]) -> None:
        """In these routes due tasks wait or slots are free."""
        for pool in {pool for route in routes for pool in self._pools.by_route.get(route, ())}:
            pool.joined()
            pool.credit.eased()
            self.wish(pool)

    def changed(self, tasks: Iterable[Task]) -> None:
        """This server has cancelled, retried or taken back these tasks."""
        for task in tasks:
            self._follow(task.id, task.user_id, task.route, task.state, task.version, True)

    def gap(self) -> None:
        """Nobody knows what was changed."""
        for pool in self._pools.all.values():
            pool.joined()
            self.wish(pool)

    def assigned(self, task_id: int, assignment: Assignment) -> None:
        """This server has assigned a task: its end frees what it takes."""
        self._mine[task_id] = assignment
        if len(self._mine) > MOST_FOLLOWED:
            del self._mine[next(iter(self._mine))]

    def _follow(
        self, task_id: int, user_id: int, route: tuple[str, str], state: State, version: int, due: bool
    ) -> None:
        waits = state is State.WAITING
        if not waits and state not in TERMINAL:
            return
        mine = self._mine.pop(task_id, None)
        if not waits or version > 1:
            self._ended(mine, user_id, route, state)
        if waits and due:
            self.came(route)

    def _taken(self, route: tuple[str, str]) -> None:
        """Another server has assigned a task: this one must not count on that room for long."""
        for pool in self._pools.by_route.get(route, ()):
            if pool.credit.room_left:
                self.wish(pool, USED)

    def _ended(self, mine: Assignment | None, user_id: int, route: tuple[str, str], state: State) -> None:
        """A task that was in flight, or may have been, is no longer."""
        # what was cancelled takes its place until its worker has dropped it
        if mine is not None and state is not State.CANCELLED:
            mine.pool.credit.give(mine.worker, mine.cost)
        for pool in self._pools.by_route.get(route, ()):
            pool.credit.freed += pool.costs.of(user_id, route[1])
            if not pool.backlog:
                continue
            if pool.credit.freed >= PLENTY * pool.slots:
                self.wish(pool, gather=False)
            elif state is State.CANCELLED:
                self.wish(pool, ROOM_LEFT)
            else:
                # the server that assigned it is the first to use its place
                self.wish(pool, 0.0 if mine is not None else GATHER)

    def _check(self) -> None:
        """Look at the pool that had no turn for the longest time."""
        idle = [turns for pool, turns in self._turns.items() if pool.slots and not turns.wished]
        if idle:
            min(idle, key=lambda turns: turns.began).wish()

    # -- turns

    async def _take_turn(self, pool: WorkerPool) -> float | None:
        """One turn. Returns the seconds until the next one."""
        if not pool.slots:
            pool.turn_failed()
            return None
        pool.turn_begins()
        limit = pool.limit
        try:
            turn = await self._store.assign(pool.picture(), limit, pool.after_user, limit <= PATIENT)
        except BaseException as e:
            if isinstance(e, TurnTooSlow):
                pool.limit = max(limit // 2, LEAST)
            pool.turn_failed()
            raise
        pool.limit = min(limit * 2, LIMIT)
        pool.turn_ended(turn)
        for task in turn.tasks:
            cost = pool.costs.of(task.user_id, task.kind)
            self.assigned(task.id, Assignment(pool, task.worker or "", cost))
        self._publisher.publish(turn.tasks)
        self._broker.hint({task.worker for task in turn.tasks if task.worker})
        if len(turn.tasks) >= limit:
            return 0.0
        if not pool.backlog:
            return RETURNING if turn.returning else None
        return ROOM_LEFT if pool.credit.room_left else FULL

    def _forget(self, pool: WorkerPool) -> None:
        """No living worker serves it any more, or this server stops."""
        stopping = self._turns.pop(pool).stop()
        if not stopping.called:
            self._stopping.add(stopping)
            stopping.addCallback(lambda _: self._stopping.discard(stopping))

    def _name(self, pool: WorkerPool) -> str:
        first, *more = sorted(route.name for route in pool.routes)
        return f"pool of {first}" + (f" and {len(more)} more" if more else "")
