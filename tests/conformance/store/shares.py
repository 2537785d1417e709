"""The suite of ISchedulingStore: whose turn it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from taskd.model.tasks import DEFAULT_KIND, Route
from taskd.model.users import User
from taskd.ports.scheduling import Cost, Turn
from tests.conformance.store.case import StoreCase

A, B = Route("q", "a"), Route("q", "b")


class ShareTests(StoreCase):
    """The suite of ISchedulingStore: whose turn it is."""

    async def backlogs(self, users: Sequence[User], counts: Sequence[int], **spec: str) -> None:
        for user, count in zip(users, counts, strict=True):
            await self.create(count, user, **spec)

    async def end(self, turn: Turn, worker: str = "w") -> None:
        """All tasks of a turn end."""
        for task in turn.tasks:
            await self.finish(task, worker)

    @staticmethod
    def counts(turn: Turn, users: Sequence[User]) -> list[int]:
        """How many tasks each user got."""
        found = Counter(task.user_id for task in turn.tasks)
        return [found[user.id] for user in users]

    async def one_each(self, places: Mapping[str, int], after: int, turns: int) -> tuple[list[int], int]:
        """The users of several turns, whose tasks end at once."""
        got = []
        for _ in range(turns):
            turn = await self.turn(places, after=after)
            got += [task.user_id for task in turn.tasks]
            after = turn.after_user
            await self.end(turn)
        return got, after

    async def test_each_user_gets_the_same_share(self) -> None:
        # backlogs, what the users have in flight, free slots, what they get
        cases = [
            ([9, 9, 9], [0, 0, 0], 6, [2, 2, 2]),
            ([9, 9, 9], [0, 0, 0], 7, [3, 2, 2]),
            ([9, 9, 9], [4, 1, 0], 6, [0, 3, 3]),
            ([9, 9, 9], [4, 1, 0], 3, [0, 1, 2]),
            ([9, 9], [5, 0], 5, [0, 5]),
            ([9, 9], [5, 0], 7, [1, 6]),
            ([50, 1, 50], [0, 0, 0], 31, [15, 1, 15]),
            ([60, 12, 1, 1], [0, 0, 0, 0], 40, [26, 12, 1, 1]),
            ([1, 9, 3, 30, 2], [0, 0, 0, 0, 0], 100, [1, 9, 3, 30, 2]),
            ([3], [20], 2, [2]),
        ]
        for n, (backlogs, in_flight, free, expected) in enumerate(cases):
            worker, queue = f"w{n}", f"q{n}"
            users = [await self.store.create_user(f"u{n}{i}", f"u{n}{i}", "x") for i in range(len(backlogs))]
            for user, count in zip(users, in_flight, strict=True):
                if count:
                    await self.queued(count, worker, user=user, queue=queue)
            await self.backlogs(users, backlogs, queue=queue)
            turn = await self.turn({worker: free + sum(in_flight)}, [Route(queue, DEFAULT_KIND)])
            self.assertEqual(self.counts(turn, users), expected, cases[n])

    async def test_the_limit_cuts_all_shares(self) -> None:
        users = await self.users(3)
        await self.backlogs(users, [9, 9, 9])
        self.assertEqual(self.counts(await self.turn(limit=6), users), [2, 2, 2])

    async def test_shares_follow_the_weights(self) -> None:
        users = await self.users(3)
        await self.store.set_weight("u0", 3)
        await self.store.set_weight("u2", 0.5)
        await self.backlogs(users, [90, 90, 90])
        turn = await self.turn({"w": 45})
        self.assertEqual(self.counts(turn, users), [30, 10, 5])
        # and what is in flight counts by the weight, too
        await self.end(turn)
        [one, *_] = users
        await self.queued(15, user=one)
        self.assertEqual(self.counts(await self.turn({"w": 45}), users), [15, 10, 5])

    async def test_short_tasks_get_more_of_them(self) -> None:
        users = await self.users(2)
        await self.backlogs(users, [90, 90])
        turn = await self.turn({"w": 10}, costs=[Cost(users[0].id, DEFAULT_KIND, 0.25)])
        self.assertEqual(self.counts(turn, users), [20, 5])

    async def test_all_routes_of_a_user_have_one_share(self) -> None:
        many, one = await self.users(2)
        await self.create(20, many, kind="a")
        await self.create(20, many, kind="b")
        await self.create(20, one, kind="b")
        turn = await self.turn({"w": 10}, [A, B])
        self.assertEqual(self.counts(turn, [many, one]), [5, 5])
        # also what is in flight
        self.assertEqual(self.counts(await self.turn({"w": 12}, [A, B]), [many, one]), [1, 1])

    async def test_what_other_pools_run_does_not_count(self) -> None:
        busy, idle = await self.users(2)
        await self.queued(8, "elsewhere", user=busy)
        # executors of a worker differ by kind, so this one has slots of its own
        await self.queued(8, "w", user=busy, kind="other")
        await self.backlogs([busy, idle], [20, 20])
        self.assertEqual(self.counts(await self.turn({"w": 6}), [busy, idle]), [3, 3])

    async def test_equals_take_turns(self) -> None:
        users = await self.users(4)
        await self.backlogs(users, [9, 9, 9, 9])
        ids = [user.id for user in users]
        got, after = await self.one_each({"w": 1}, 0, 6)
        self.assertEqual(got, [*ids, *ids[:2]])
        got, _ = await self.one_each({"w": 3}, after, 2)
        self.assertEqual(Counter(got), Counter([ids[2], ids[3], ids[0], ids[1], ids[2], ids[3]]))

    async def test_a_turn_begins_after_a_user_that_need_not_exist(self) -> None:
        users = await self.users(3)
        await self.backlogs(users, [9, 9, 9])
        low, middle, high = (user.id for user in users)
        for after, first in ((0, low), (low, middle), (middle, high), (high, low), (high + 1000, low)):
            turn = await self.turn({"w": 1}, after=after)
            self.assertEqual([task.user_id for task in turn.tasks], [first], after)
            self.assertEqual(turn.after_user, first)
            await self.end(turn)

    async def test_whoever_has_the_least_does_not_move_the_circle(self) -> None:
        least, one, two = await self.users(3)
        for user in (one, two):
            await self.queued(1, user=user)
            await self.create(9, user)
        after = 0
        for expected in (one, two, one):
            await self.create(1, least)
            turn = await self.turn({"w": 3}, after=after)
            self.assertEqual([task.user_id for task in turn.tasks], [least.id])
            self.assertEqual(turn.after_user, after)
            await self.end(turn)
            # otherwise the same of the two equals would come first again
            turn = await self.turn({"w": 3}, after=after)
            self.assertEqual([task.user_id for task in turn.tasks], [expected.id])
            after = turn.after_user
            await self.end(turn)

    async def test_rounds_that_all_get_through_change_nothing(self) -> None:
        users = await self.users(3)
        await self.backlogs(users, [50, 50, 50])
        after = 0
        got: Counter[int] = Counter()
        for slots in (3, 1) * 6:
            turn = await self.turn({"w": slots}, after=after)
            after = turn.after_user
            got.update(task.user_id for task in turn.tasks)
            await self.end(turn)
        self.assertEqual(got, {user.id: 8 for user in users})

    async def test_nobody_is_forgotten_among_many_users(self) -> None:
        users = await self.users(1100)
        await self.create_for(users, 2)
        after = 0
        got: Counter[int] = Counter()
        for _ in range(3):
            turn = await self.turn({"w": 1100}, limit=500, after=after)
            after = turn.after_user
            got.update(task.user_id for task in turn.tasks)
            self.assertTrue(turn.backlog)
        self.assertEqual(got, {user.id: 1 for user in users})

    async def test_few_slots_go_round_among_many_users(self) -> None:
        users = await self.users(600)
        await self.create_for(users, 1)
        after = 0
        got: list[int] = []
        for _ in range(5):
            turn = await self.turn({"w": 120}, after=after, limit=500)
            after = turn.after_user
            got += sorted(task.user_id for task in turn.tasks)
            await self.end(turn)
        self.assertEqual(got, [user.id for user in users])

    async def test_users_behind_many_with_tasks_in_flight_are_found(self) -> None:
        users = await self.users(530)
        first, behind = users[:500], users[500:]
        await self.create_for(first, 1, worker="w")
        await self.create_for(users, 2)
        after = first[0].id - 1
        got: Counter[int] = Counter()
        for slots in range(501, 532):
            turn = await self.turn({"w": slots}, after=after)
            after = turn.after_user
            got.update(task.user_id for task in turn.tasks)
        # the first turn does not see those who have nothing; from then on, nobody else gets anything
        self.assertEqual(got, {user.id: 1 for user in (first[0], *behind)})

    async def create_for(self, users: Sequence[User], count: int, worker: str | None = None) -> None:
        """Tasks of many users by one creation."""
        if worker is not None:
            await self.serve(worker)
        tasks = await self.new(count * len(users), worker=worker)
        for n, task in enumerate(tasks):
            task.user_id = users[n % len(users)].id
        await self.store.create_tasks(tasks)
