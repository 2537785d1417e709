"""Turns on PostgreSQL and on SQLite do the same with any pool and backlog. SQLite's turn is plain Python: a second and
simple implementation, which the statement is checked against."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet import reactor

from taskd.model.states import State
from taskd.model.tasks import NewTask, Task
from taskd.ports.attempts import Held, Outcome
from taskd.ports.scheduling import Cost, Place, Pool, Served, Turn
from taskd.ports.workers import KindInfo, WorkerInfo
from taskd.store.sqlite.database import InlineRunner
from taskd.store.sqlite.store import SqliteStore
from tests.conformance.postgres import Hooks

QUEUES, KINDS = ("p", "q"), ("a", "b", "c")


class World:
    """The same users, workers and tasks in two stores."""

    def __init__(self, seed: int, stores: tuple[Any, Any]) -> None:
        self.random = random.Random(seed)
        self.stores = stores
        self.users: list[int] = []
        self.held: dict[int, Task] = {}
        self.after = 0

    async def both(self, name: str, *args: Any) -> Any:
        """Call a method of both stores; the answer of the first."""
        first, _ = [await getattr(store, name)(*args) for store in self.stores]
        return first

    async def populate(self) -> None:
        """Users with weights and backlogs, and workers that hold some tasks."""
        pick = self.random
        for n in range(pick.choice([1, 2, 3, 8, 25])):
            user = await self.both("create_user", f"u{n}", f"u{n}", "x")
            self.users.append(user.id)
            await self.both("set_weight", f"u{n}", pick.choice([1, 1, 1, 2, 4, 0.5]))
        self.workers = [f"w{n}" for n in range(pick.choice([1, 2, 3, 5]))]
        kinds = [KindInfo(kind, "async") for kind in KINDS]
        for worker in self.workers:
            await self.both("register", WorkerInfo(worker, list(QUEUES), kinds, {"async": 9}))
        if pick.random() < 0.2:
            await self.both("worker_draining", self.workers[0])
        for user in self.users:
            await self.create(user, pick.choice([0, 1, 2, 10, 60]), None)
            for worker in self.workers:
                await self.create(user, pick.choice([0, 0, 0, 1, 4]), worker)

    async def create(self, user: int, count: int, worker: str | None) -> None:
        """Tasks in routes of their own."""
        ids = await self.both("draw_ids", count)
        pick = self.random
        tasks = [
            NewTask(user, "t", pick.choice(KINDS), queue=pick.choice(QUEUES), id=i, worker=worker, max_attempts=0)
            for i in ids
        ]
        if tasks:
            created = await self.both("create_tasks", tasks)
            self.held |= {t.id: t for t in created.tasks if t.state is State.QUEUED}

    def pool(self) -> Pool:
        """Some workers with some slots, some routes, some costs."""
        pick = self.random
        routes = [(queue, kind) for queue in QUEUES for kind in KINDS]
        served = pick.sample(routes, pick.randint(1, len(routes)))
        # whole numbers of 64ths: their sums are exact in any order
        costs = [1.0, 1.0, 0.5, 0.25, 0.125, 1 / 64]
        found = [Cost(0, kind, pick.choice(costs)) for kind in KINDS if pick.random() < 0.5]
        found += [Cost(user, kind, pick.choice(costs)) for user in self.users for kind in KINDS if pick.random() < 0.2]
        return Pool(
            [Place(worker, pick.choice([0, 1, 3, 10, 30])) for worker in self.workers],
            [Served(*route, pick.randint(1, 5)) for route in served],
            found,
        )

    async def turn(self) -> tuple[Turn, Turn]:
        """One turn in both stores."""
        pool, limit = self.pool(), self.random.choice([0, 1, 7, 500])
        one, two = [await store.assign(pool, limit, self.after) for store in self.stores]
        self.held |= {t.id: t for t in one.tasks}
        self.after = self.random.choice([one.after_user, 0, *self.users])
        return one, two

    async def go_on(self) -> None:
        """Some tasks end, some are given back, some are cancelled."""
        for task in list(self.held.values()):
            match self.random.choice(["stay", "stay", "end", "back", "cancel"]):
                case "end":
                    outcome = Outcome(task.id, task.dispatch, task.attempt, State.COMPLETED)
                    await self.both("finish", task.worker, [outcome])
                case "back":
                    await self.both("release", task.worker, [Held(task.id, task.dispatch)])
                case "cancel":
                    await self.both("cancel", task.user_id, task.id)
                case _:
                    continue
            del self.held[task.id]


class Turns(Hooks):
    """Turns on PostgreSQL and on SQLite."""

    def shown(self, turn: Turn) -> Any:
        """What the answer of a turn says."""
        tasks = [(t.id, t.worker, t.dispatch, t.attempt, t.max_attempts, t.version) for t in turn.tasks]
        return tasks, {w: round(room, 6) for w, room in turn.room.items()}, turn.backlog, turn.after_user

    async def test_both_stores_do_the_same(self) -> None:
        for seed in range(SEEDS):
            # not TRUNCATE: it locks whole tables, and may meet a connection that is just being opened, and prepares
            for table in ("tasks", "sessions", "users", "workers"):
                self.sql(f"DELETE FROM {table}")
            self.sql("SELECT setval('tasks_id_seq', 1, false), setval('users_id_seq', 1, false)")
            other = SqliteStore(InlineRunner(), reactor)
            await other.start()
            world = World(seed, (self.store, other))
            await world.populate()
            for n in range(4):
                mine, theirs = await world.turn()
                self.assertEqual(self.shown(mine), self.shown(theirs), f"seed {seed}, turn {n}")
                await world.go_on()
            await other.stop()


SEEDS = 15

del Hooks
