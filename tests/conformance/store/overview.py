"""The suite of IOverviewStore."""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import patch

from taskd.model.tasks import DEFAULT_KIND, Route
from taskd.model.users import User
from taskd.ports.overview import Counted
from taskd.store import overview
from tests.conformance.store.case import OTHER, Q, StoreCase

NOTHING = (0, 0, 0, 0)


class OverviewTests(StoreCase):
    """The suite of IOverviewStore."""

    async def work(
        self, user: User | None = None, routes: Sequence[Route] = ()
    ) -> dict[Route, tuple[int, int, int, int]]:
        """The waiting, delayed, queued and running tasks by route."""
        found = await self.store.count_tasks(user and user.id, routes)
        return {counted.route: counted[1:5] for counted in found.routes}

    async def only(self, user: User | None = None) -> Counted:
        """What is counted in the only route."""
        [counted] = (await self.store.count_tasks(user and user.id, [])).routes
        return counted

    def assert_age(self, found: Counted, seconds: float) -> None:
        assert found.oldest is not None
        self.assertTrue(seconds <= found.oldest < seconds + 30, found.oldest)

    async def test_tasks_are_counted_by_route_and_state(self) -> None:
        self.assertEqual(await self.work(), {})
        await self.create(3)
        await self.create(2, self.ben)
        await self.create(1, queue="other")
        [late] = await self.create(1, self.ben)
        await self.postpone(late.id)
        await self.queued(2)
        await self.running(1, user=self.ben)
        self.assertEqual(await self.work(), {OTHER: (1, 0, 0, 0), Q: (5, 1, 2, 1)})
        self.assertEqual(await self.work(self.ana), {OTHER: (1, 0, 0, 0), Q: (3, 0, 2, 0)})
        self.assertEqual(await self.work(self.ben), {Q: (2, 1, 0, 1)})

    async def test_what_has_ended_is_not_counted(self) -> None:
        done, dropped = await self.running(2)
        [waited] = await self.create()
        await self.finish(done)
        for task in (dropped, waited):
            await self.store.cancel(self.ana.id, task.id)
        for user in (None, self.ana):
            self.assertEqual(await self.work(user), {})

    async def test_a_route_without_tasks_is_there_if_it_is_asked_for(self) -> None:
        await self.create(1, queue="other")
        for user, waiting in ((None, 1), (self.ana, 1), (self.ben, 0)):
            expected = {OTHER: (waiting, 0, 0, 0), Q: NOTHING}
            self.assertEqual(await self.work(user, [Q, OTHER]), expected)
        [other, q] = (await self.store.count_tasks(None, [Q, OTHER])).routes
        self.assertIsNotNone(other.oldest)
        self.assertIsNone(q.oldest)

    async def test_routes_come_in_order(self) -> None:
        routes = [Route("a", "z"), Route("b", "a"), Route("b", "b"), Route("b", "é"), Q]
        for queue, kind in reversed(routes):
            await self.create(1, queue=queue, kind=kind)
        self.assertEqual(list(await self.work()), routes)

    async def test_the_oldest_task_is_the_one_that_is_due_for_the_longest_time(self) -> None:
        self.assertEqual((await self.store.count_tasks(None, [Q])).routes[0].oldest, None)
        for user, age in ((self.ana, 500), (self.ben, 700), (self.ben, 600)):
            [task] = await self.create(1, user)
            await self.postpone(task.id, -age)
        [late] = await self.create(1, self.ben)
        await self.postpone(late.id)
        self.assertIsNone((await self.only()).oldest)
        await self.store.promote(10)
        for found, age in (
            (await self.only(), 700),
            (await self.only(self.ana), 500),
            (await self.only(self.ben), 700),
        ):
            self.assert_age(found, age)
            self.assertEqual(found.more, frozenset())

    async def test_waiting_tasks_are_counted_up_to_a_limit(self) -> None:
        await self.create(5)
        await self.create(1, self.ben)
        with patch.multiple(overview, COUNTED=5, _LEAST=1):
            self.assertEqual((await self.only(self.ana))[1:5], (5, 0, 0, 0))
            self.assertEqual((await self.only(self.ana)).more, frozenset())
            found = await self.only()
            self.assertEqual((found.waiting, found.more), (5, {"waiting"}))
        with patch.multiple(overview, COUNTED=4, _LEAST=1):
            self.assertEqual(((found := await self.only(self.ana)).waiting, found.more), (4, {"waiting"}))
        # the more routes, the fewer tasks of each
        await self.create(1, queue="other")
        with patch.multiple(overview, COUNTED=5, _COUNTED_IN_ALL=6, _LEAST=1):
            other, q = (await self.store.count_tasks(None, [])).routes
            self.assertEqual((other.waiting, other.more, q.waiting, q.more), (1, frozenset(), 3, {"waiting"}))

    async def test_the_oldest_is_found_although_not_all_are_counted(self) -> None:
        users = await self.users(12)
        for n, user in enumerate(users):
            [task] = await self.create(1, user)
            await self.postpone(task.id, -1000 * (n + 1))
        await self.store.promote(100)
        with patch.multiple(overview, COUNTED=3, _LEAST=1):
            found = await self.only()
            self.assertEqual(found.more, {"waiting"})
            self.assert_age(found, 12_000)
        # among so many users only
        with patch.multiple(overview, COUNTED=3, _LEAST=1, _USERS=11):
            found = await self.only()
            self.assertEqual(found.more, {"waiting", "oldest"})
            self.assert_age(found, 11_000)

    async def test_delayed_tasks_are_counted_up_to_a_limit_in_all(self) -> None:
        for queue, user in (("q", self.ana), ("q", self.ben), ("other", self.ana)):
            for task in await self.create(2, user, queue=queue):
                await self.postpone(task.id, 1000 if queue == "q" else 2000)
        with patch.object(overview, "DELAYED", 6):
            self.assertEqual(await self.work(), {OTHER: (0, 2, 0, 0), Q: (0, 4, 0, 0)})
            found = await self.store.count_tasks(None, [])
            self.assertEqual([counted.more for counted in found.routes], [frozenset(), frozenset()])
        # the first to become due are counted
        with patch.object(overview, "DELAYED", 3):
            found = await self.store.count_tasks(None, [])
            self.assertEqual([(q.route, q.delayed, q.more) for q in found.routes], [(Q, 3, {"delayed"})])
            self.assertTrue(found.more)
            # what is not among them may have some
            asked = (await self.store.count_tasks(None, [OTHER])).routes
            self.assertEqual([(q.route, q.more) for q in asked], [(OTHER, {"delayed"}), (Q, {"delayed"})])
            self.assertEqual(await self.work(self.ben), {Q: (0, 2, 0, 0)})

    async def test_routes_are_listed_up_to_a_limit(self) -> None:
        for n in range(5):
            await self.create(1, self.ben if n == 4 else self.ana, kind=f"k{n}")
        last = Route("q", "k4")
        for user, routes, more in ((None, 5, False), (self.ben, 1, False)):
            found = await self.store.count_tasks(user and user.id, [])
            self.assertEqual((len(found.routes), found.more), (routes, more))
        with patch.object(overview, "MAX_ROUTES", 3):
            found = await self.store.count_tasks(None, [])
            self.assertEqual(([counted.route.kind for counted in found.routes], found.more), (["k0", "k1", "k2"], True))
            # what is asked for does not depend on what others have
            found = await self.store.count_tasks(self.ben.id, [last])
            self.assertEqual(([counted[:2] for counted in found.routes], found.more), ([(last, 1)], True))

    async def test_kinds_that_look_like_sql_or_are_not_ascii(self) -> None:
        kinds = ["a'b", 'a"b', "a,b", "{a}", "a\\b", "ñandú", DEFAULT_KIND]
        for kind in kinds:
            await self.create(1, kind=kind)
        routes = [Route("q", kind) for kind in kinds]
        for user in (None, self.ana):
            self.assertEqual(set(await self.work(user, routes)), set(routes))
