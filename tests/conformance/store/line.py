"""The suite of IOverviewStore: what is before a waiting task."""

from __future__ import annotations

import random
from collections.abc import Sequence
from unittest.mock import patch

from taskd.model.tasks import Route, Task
from taskd.ports.overview import Line
from taskd.ports.scheduling import Place, Pool, Served
from taskd.store import overview
from tests.conformance.store.case import OTHER, Q, StoreCase

A, B = Route("q", "a"), Route("q", "b")


class LineTests(StoreCase):
    """The suite of IOverviewStore: what is before a waiting task."""

    async def line(self, task: Task, routes: Sequence[Route] = (Q,), workers: Sequence[str] = ("w",)) -> Line:
        """The line of a task in the pool of these workers and routes."""
        pool = Pool([Place(worker, 10) for worker in workers], [Served(*route, 3) for route in routes])
        found: Line = await self.store.count_line(await self.get(task), pool)
        return found

    async def before(self, task: Task, routes: Sequence[Route] = (Q,)) -> int:
        """How many tasks are before this one."""
        return sum((await self.line(task, routes)).before.values())

    async def age(self, task: Task, seconds: int) -> None:
        """Have a waiting task be due for so long."""
        await self.postpone(task.id, -seconds)
        await self.store.promote(1000)

    async def test_a_task_alone(self) -> None:
        [task] = await self.create()
        self.assertEqual((await self.line(task))[:6], ({}, False, 0, 0, False, 1.0))

    async def test_only_tasks_of_the_same_owner_in_the_routes_of_the_pool_are_before_it(self) -> None:
        await self.create(2, kind="a")
        await self.create(3, kind="b")
        await self.create(4, kind="elsewhere")
        await self.create(5, queue="other", kind="a")
        await self.create(6, self.ben, kind="a")
        [task] = await self.create(kind="b")
        await self.create(7, kind="a")
        self.assertEqual((await self.line(task, [A, B])).before, {"a": 2, "b": 3})
        self.assertEqual((await self.line(task, [B])).before, {"b": 3})
        self.assertEqual((await self.line(task, [A, B, Route("other", "a")])).before, {"a": 7, "b": 3})

    async def test_what_is_not_due_or_does_not_wait_is_not_before_it(self) -> None:
        held, [late], [dropped], [task] = await self.queued(2), *[await self.create() for _ in range(3)]
        await self.postpone(late.id)
        await self.store.cancel(self.ana.id, dropped.id)
        self.assertEqual(await self.before(task), 0)
        await self.release(held)
        self.assertEqual(await self.before(task), 2)

    async def test_the_oldest_task_is_first_then_the_lowest_id(self) -> None:
        tasks = await self.create(4)
        self.assertEqual([await self.before(task) for task in tasks], [0, 1, 2, 3])
        await self.age(tasks[2], 500)
        self.assertEqual([await self.before(task) for task in tasks], [1, 2, 0, 3])

    async def test_what_workers_of_the_pool_hold_of_its_kinds(self) -> None:
        """In whatever queue and state: a cancelled task takes its slot until it is dropped."""
        await self.queued(2)
        await self.running(1, "w2", user=self.ben)
        [cancelled] = await self.running(1)
        await self.store.cancel(self.ana.id, cancelled.id)
        await self.queued(1, queue="other")
        await self.queued(3, kind="another executor")
        await self.queued(4, "stranger")
        [task] = await self.create()
        found = await self.line(task, workers=["w", "w2"])
        self.assertEqual((found.held, found.held_by_owner), (5, 4))
        await self.release([cancelled])
        found = await self.line(task)
        self.assertEqual((found.held, found.held_by_owner), (3, 3))
        found = await self.line(task, workers=[])
        self.assertEqual((found.held, found.held_by_owner), (0, 0))

    async def test_the_share_is_by_the_weights_of_those_who_wait_or_hold(self) -> None:
        holds, waits, both, elsewhere = await self.users(4)
        [task] = await self.create(kind="a")
        await self.create(1, elsewhere, queue="other")
        self.assertEqual((await self.line(task, [A, B]))[:6], ({}, False, 0, 0, False, 1.0))
        await self.queued(1, user=holds, kind="a")
        self.assertEqual((await self.line(task, [A, B]))[:6], ({}, False, 1, 0, False, 0.5))
        await self.create(3, waits, kind="b")
        await self.create(1, both, kind="a")
        await self.queued(1, user=both, kind="b")
        self.assertEqual((await self.line(task, [A, B]))[:6], ({}, False, 2, 0, True, 0.25))
        await self.store.set_weight("ana", 3)
        await self.store.set_weight("u2", 5)
        self.assertEqual((await self.line(task, [A, B])).share, 0.3)

    async def test_the_share_is_unknown_where_too_many_users_wait(self) -> None:
        for user in await self.users(5):
            await self.create(1, user)
        [task] = await self.create(1, self.ben)
        for steps, share in ((7, 1 / 6), (6, None)):
            with patch.object(overview, "_LINE_USERS", steps):
                found = await self.line(task)
                self.assertEqual(found.share is None, share is None)
                self.assertAlmostEqual(found.share or 0, share or 0)
                self.assertTrue(found.others_wait)
        # the more routes, the fewer steps in each; two show another user than the owner
        [alone] = await self.create(1, self.ana, kind="a")
        with patch.object(overview, "_LINE_USERS", 1):
            self.assertTrue((await self.line(task, [A, Q])).others_wait)
            self.assertEqual((await self.line(alone, [A]))[:6], ({}, False, 0, 0, False, 1.0))

    async def test_tasks_before_are_counted_up_to_a_limit(self) -> None:
        *_, task = await self.create(6, kind="a")
        for limit, more in ((5, False), (4, True), (1, True)):
            with patch.object(overview, "COUNTED", limit):
                found = await self.line(task, [A, B])
                self.assertEqual((found.before, found.more), ({"a": limit}, more))
        await self.create(3, kind="b")
        [last] = await self.create(kind="b")
        with patch.object(overview, "COUNTED", 7):
            found = await self.line(last, [A, B])
            self.assertEqual((sum(found.before.values()), found.more), (7, True))

    async def test_for_how_long_the_owner_has_had_something_waiting(self) -> None:
        [oldest], [older], [task], [younger] = [await self.create(kind=kind) for kind in "abba"]
        for it, seconds in ((oldest, 700), (older, 600), (task, 500), (younger, 400)):
            await self.age(it, seconds)
        [theirs] = await self.create(1, self.ben, kind="a")
        await self.age(theirs, 800)
        for routes, seconds in (([A, B], 700), ([B], 600)):
            waits = (await self.line(task, routes)).waits
            self.assertTrue(seconds <= waits < seconds + 30, waits)
        waits = (await self.line(older, [B])).waits
        self.assertTrue(600 <= waits < 630, waits)

    async def test_a_pool_without_routes_or_workers(self) -> None:
        [task] = await self.create()
        self.assertEqual((await self.line(task, [], []))[:6], ({}, False, 0, 0, False, 1.0))

    async def test_turns_take_the_tasks_of_a_user_in_the_order_of_the_line(self) -> None:
        chance = random.Random(7)
        routes = [Q, OTHER, A, B]
        users = [self.ana, self.ben, *await self.users(2)]
        tasks = []
        for _ in range(20):
            queue, kind = chance.choice(routes)
            # those of one batch are equally old
            tasks += await self.create(3, chance.choice(users), queue=queue, kind=kind)
        for task in chance.sample(tasks, 20):
            await self.age(task, chance.choice((10, 20, 30)))
        waiting = [(task, await self.before(task, routes)) for task in tasks]
        expected = {
            user.id: [task.id for task, _ in sorted(waiting, key=lambda pair: pair[1]) if task.user_id == user.id]
            for user in users
        }
        for user in users:
            places = sorted(before for task, before in waiting if task.user_id == user.id)
            self.assertEqual(places, list(range(len(places))))
        taken: dict[int, list[int]] = {user.id: [] for user in users}
        after = 0
        while any(len(taken[user]) < len(expected[user]) for user in taken):
            turn = await self.turn({"w": 3}, routes, after=after)
            self.assertTrue(turn.tasks)
            after = turn.after_user
            for task in turn.tasks:
                taken[task.user_id].append(task.id)
                await self.finish(task)
            # those that are left have moved up
            for user_id, ids in taken.items():
                if rest := expected[user_id][len(ids) :]:
                    [last] = await self.store.get_tasks(user_id, rest[-1:])
                    self.assertEqual(await self.before(last, routes), len(rest) - 1)
        self.assertEqual(taken, expected)
