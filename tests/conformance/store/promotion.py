"""The suite of ISchedulingStore: delayed tasks that become due."""

from __future__ import annotations

from collections import Counter

from taskd.model.tasks import DEFAULT_KIND, Route
from tests.conformance.store.case import OTHER, Q, StoreCase


class PromotionTests(StoreCase):
    """The suite of ISchedulingStore: delayed tasks that become due."""

    async def test_promote_moves_due_tasks_into_the_backlog(self) -> None:
        come, late = await self.create(2)
        [other] = await self.create(1, self.ben, queue="other")
        await self.postpone(come.id, -1)
        await self.postpone(other.id, -1)
        await self.postpone(late.id)
        self.assertEqual(await self.due(), [])
        before = await self.get(come)
        promoted = await self.store.promote(10)
        self.assertEqual(sorted(promoted), [(OTHER, self.ben.id), (Q, self.ana.id)])
        self.assertEqual(list(await self.store.promote(10)), [])
        # the owner sees no change
        self.assertEqual(await self.get(come), before)
        self.assertEqual(await self.due(), [come.id])
        self.assertEqual(await self.due("other"), [other.id])

    async def test_promote_names_an_owner_once_a_route(self) -> None:
        for kind in (DEFAULT_KIND, "other"):
            for task in await self.create(3, kind=kind):
                await self.postpone(task.id, -1)
        promoted = await self.store.promote(10)
        self.assertEqual(sorted(promoted), [(Route("q", "other"), self.ana.id), (Q, self.ana.id)])

    async def test_promote_is_bounded_and_begins_with_the_longest_overdue(self) -> None:
        tasks = await self.create(5)
        for seconds, task in enumerate(tasks, 1):
            await self.postpone(task.id, -seconds)
        order = [t.id for t in reversed(tasks)]
        for ids in (order[:2], order[2:4], order[4:]):
            self.assertEqual(list(await self.store.promote(2)), [(Q, self.ana.id)])
            self.assertEqual(await self.due(), sorted(ids))
        self.assertEqual(list(await self.store.promote(2)), [])

    async def test_promote_takes_all_that_is_due_if_it_fits(self) -> None:
        one, two = await self.users(2)
        for user, count in ((one, 9), (two, 1)):
            for task in await self.create(count, user):
                await self.postpone(task.id, -1)
        self.assertEqual(sorted(await self.store.promote(10)), [(Q, one.id), (Q, two.id)])
        self.assertEqual(len(await self.due()), 10)

    async def test_a_flood_of_one_user_keeps_nobody_waiting(self) -> None:
        flood, few, one, none = await self.users(4)
        # the flood is the longest overdue
        for user, count, overdue in ((flood, 40, 100), (few, 3, 50), (one, 1, 50), (none, 3, -3600)):
            for n, task in enumerate(await self.create(count, user)):
                await self.postpone(task.id, n - overdue)
        self.assertEqual(sorted(await self.store.promote(12)), [(Q, user.id) for user in (flood, few, one)])
        first = await self.assign("another")
        # a third of the limit for each, the longest overdue first
        counts = Counter(task.user_id for task in first)
        self.assertEqual(counts, {flood.id: 4, few.id: 3, one.id: 1})
        self.assertEqual([t.task for t in first if t.user_id == flood.id], [f"task {n}" for n in range(4)])
        for _ in range(2):
            self.assertEqual(list(await self.store.promote(12)), [(Q, flood.id)])
            self.assertEqual(len(await self.due()), 12)

    async def test_with_more_users_than_the_limit_each_gets_one(self) -> None:
        users = await self.users(5)
        for user in users:
            for task in await self.create(2, user):
                await self.postpone(task.id, -1)
        for _ in range(2):
            self.assertEqual(sorted(await self.store.promote(3)), [(Q, user.id) for user in users])
            tasks = await self.assign("another")
            self.assertEqual(Counter(task.user_id for task in tasks), {user.id: 1 for user in users})

    async def test_promote_leaves_cancelled_tasks(self) -> None:
        [task] = await self.create()
        await self.postpone(task.id, -1)
        await self.store.cancel(self.ana.id, task.id)
        self.assertEqual(list(await self.store.promote(10)), [])
        self.assertEqual(await self.due(), [])

    async def test_promoted_tasks_take_their_turn_by_run_at(self) -> None:
        first, second = await self.create(2)
        await self.postpone(second.id, -10)
        await self.store.promote(10)
        for task in (second, first):
            turn = await self.turn(limit=1)
            self.assertEqual([t.id for t in turn.tasks], [task.id])
