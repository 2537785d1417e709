"""The suite of ISchedulingStore: which tasks a turn assigns, and to whom."""

from __future__ import annotations

from collections import Counter

from msgspec.structs import replace

from taskd.model.states import State
from taskd.model.tasks import DEFAULT_KIND, Route
from taskd.ports.scheduling import Cost, Place, Pool, Served, Turn
from tests.conformance.store.case import OTHER, Q, StoreCase

A, B = Route("q", "a"), Route("q", "b")
SERVED = [Served(*Q, 3)]


class AssigningTests(StoreCase):
    """The suite of ISchedulingStore: which tasks a turn assigns, and to whom."""

    def check_room(self, turn: Turn, **expected: float) -> None:
        """The room of every worker, which is a sum of costs."""
        self.assertEqual(set(turn.room), set(expected))
        for worker, room in expected.items():
            self.assertAlmostEqual(turn.room[worker], room, msg=worker)

    async def workers_of(self, turn: Turn) -> Counter[str | None]:
        """How many tasks of a turn each worker holds, in the store and in the answer."""
        found = Counter(task.worker for task in await self.store.find_tasks([task.id for task in turn.tasks]))
        self.assertEqual(found, Counter(task.worker for task in turn.tasks))
        return found

    async def test_a_turn_assigns_what_is_due(self) -> None:
        tasks = await self.create(3, payload='{"x":1}')
        [delayed] = await self.create()
        await self.postpone(delayed.id)
        delayed = await self.get(delayed)
        elsewhere = await self.create(1, queue="other") + await self.create(1, kind="other")
        turn = await self.turn()
        self.assertEqual(sorted(t.id for t in turn.tasks), [t.id for t in tasks])
        for task in turn.tasks:
            self.assertEqual((task.state, task.worker), (State.QUEUED, "w"))
            self.assertEqual((task.dispatch, task.attempt, task.version), (1, 1, 2))
            # the answer leaves the payload out
            self.assertEqual(task.payload, "{}")
            self.assertEqual(await self.get(task), replace(task, payload='{"x":1}'))
        self.assertFalse(turn.backlog, "what is delayed or of another route does not count")
        self.check_room(turn, w=997)
        self.assertEqual(await self.standing(), [(t.id, 1, True) for t in tasks])
        for task in (delayed, *elsewhere):
            self.assertEqual(await self.get(task), task)

    async def test_what_a_worker_holds_of_queues_that_this_server_does_not_assign_takes_room(self) -> None:
        await self.create(2, queue="theirs")
        self.assertEqual(len((await self.turn({"w": 3}, [Route("theirs", DEFAULT_KIND)])).tasks), 2)
        await self.create(3)
        turn = await self.turn({"w": 3})
        self.assertEqual((len(turn.tasks), turn.backlog), (1, True))

    async def test_a_turn_tells_of_tasks_that_wait_again_while_they_are_held(self) -> None:
        [task, *_] = await self.queued(3)
        await self.queued(1, worker="v", kind="other")
        self.assertFalse((await self.turn()).returning)
        await self.store.cancel(self.ana.id, task.id)
        self.assertFalse((await self.turn()).returning, "a cancelled task does not wait")
        await self.store.retry(self.ana.id, task.id)
        turn = await self.turn()
        self.assertEqual((list(turn.tasks), turn.backlog, turn.returning), ([], False, True))
        self.check_room(turn, w=997)
        self.assertFalse((await self.turn({"w": 9}, [Route("q", "other")])).returning, "another pool")
        await self.release([task])
        turn = await self.turn()
        self.assertEqual(([t.id for t in turn.tasks], turn.returning), ([task.id], False))

    async def test_a_second_turn_finds_nothing_more(self) -> None:
        await self.create(3)
        await self.turn()
        turn = await self.turn()
        self.assertEqual((list(turn.tasks), turn.backlog), ([], False))
        self.check_room(turn, w=997)

    async def test_a_pool_without_anything(self) -> None:
        [task] = await self.create()
        await self.serve()
        turn = await self.store.assign(Pool([], SERVED), 100, 7)
        self.assertEqual((list(turn.tasks), dict(turn.room), turn.backlog, turn.after_user), ([], {}, True, 7))
        turn = await self.store.assign(Pool([Place("w", 5)], []), 100, 7)
        self.assertEqual((list(turn.tasks), turn.backlog, turn.after_user), ([], False, 7))
        self.check_room(turn, w=5)
        self.assertEqual(await self.get(task), task)

    async def test_the_first_assignment_sets_the_number_of_attempts(self) -> None:
        [open_one] = await self.create(max_attempts=0)
        [fixed] = await self.create(max_attempts=2)
        [other] = await self.create(max_attempts=0, kind="a")
        await self.serve()
        pool = Pool([Place("w", 10)], [Served(*Q, 5), Served(*A, 7)])
        turn = await self.store.assign(pool, 100, 0)
        found = {task.id: task.max_attempts for task in turn.tasks}
        self.assertEqual(found, {open_one.id: 5, fixed.id: 2, other.id: 7})
        # a later one does not change it
        await self.release(turn.tasks)
        pool = Pool([Place("w", 10)], [Served(*Q, 9), Served(*A, 9)])
        turn = await self.store.assign(pool, 100, 0)
        self.assertEqual({task.id: task.max_attempts for task in turn.tasks}, found)

    async def test_every_assignment_has_its_number(self) -> None:
        await self.create(max_attempts=9)
        for n in range(1, 4):
            task = await self.next_attempt(f"w{n}")
            self.assertEqual((task.dispatch, task.attempt, task.worker, task.error), (n, n, f"w{n}", None))
            await self.retry_later(task, f"w{n}", error="it broke")
            self.assertEqual((await self.get(task)).error, "it broke")

    async def test_of_one_user_the_oldest_is_first(self) -> None:
        # over all routes of the pool; the lowest id where the times are equal
        tasks = [(await self.create(kind=kind))[0] for kind in ("a", "b", "a", "b", "b", "a")]
        for task, seconds in zip(tasks, (-5, -50, -30, -5, -40, -20), strict=True):
            await self.postpone(task.id, seconds)
        await self.store.promote(10)
        tasks = [await self.get(task) for task in tasks]
        for task in sorted(tasks, key=lambda task: (task.run_at, task.id)):
            turn = await self.turn(routes=[A, B], limit=1)
            self.assertEqual([t.id for t in turn.tasks], [task.id])

    async def test_a_long_backlog_is_assigned_in_its_order(self) -> None:
        tasks = await self.create(700)
        found = [t.id for t in (await self.turn(limit=600)).tasks]
        self.assertEqual(sorted(found), [t.id for t in tasks[:600]])

    async def test_a_turn_ends_at_its_limit(self) -> None:
        tasks = await self.create(5)
        turn = await self.turn(limit=3)
        self.assertEqual((len(turn.tasks), turn.backlog), (3, True))
        turn = await self.turn(limit=3)
        self.assertEqual([t.id for t in turn.tasks], [t.id for t in tasks[3:]])
        self.assertFalse(turn.backlog)

    async def test_a_turn_ends_when_nobody_has_room(self) -> None:
        await self.create(10)
        turn = await self.turn({"w": 4})
        self.assertEqual((len(turn.tasks), turn.backlog), (4, True))
        self.check_room(turn, w=0)
        turn = await self.turn({"w": 4})
        self.assertEqual((list(turn.tasks), turn.backlog), ([], True))
        turn = await self.turn({"w": 3})
        self.check_room(turn, w=-1)
        [task, *_] = await self.store.find_tasks([id_ for id_, _, _ in await self.standing()])
        await self.finish(task)
        self.assertEqual(len((await self.turn({"w": 4})).tasks), 1)

    async def test_what_costs_less_takes_less_room(self) -> None:
        # of the user and the kind, of the kind, of another user, in no list
        costs = [Cost(self.ana.id, "a", 0.25), Cost(0, "a", 0.5), Cost(self.ben.id, "b", 0.125)]
        cases = [(self.ana, "a", 8), (self.ben, "a", 4), (self.ben, "b", 16), (self.ana, "b", 2), (self.ana, "c", 2)]
        for n, (user, kind, count) in enumerate(cases):
            queue, worker = f"q{n}", f"w{n}"
            await self.create(20, user, kind=kind, queue=queue)
            turn = await self.turn({worker: 2}, [Route(queue, kind)], costs=costs)
            self.assertEqual(len(turn.tasks), count)
            self.check_room(turn, **{worker: 0})

    async def test_the_last_task_may_cost_more_than_there_is_room(self) -> None:
        await self.create(10)
        turn = await self.turn({"w": 1}, costs=[Cost(0, DEFAULT_KIND, 0.3)])
        self.assertEqual(len(turn.tasks), 4)
        self.check_room(turn, w=1 - 4 * 0.3)

    async def test_what_is_left_over_by_adding_costs_is_no_room(self) -> None:
        await self.create(50)
        for slots in (1, 3):
            turn = await self.turn({f"w{slots}": slots}, costs=[Cost(0, DEFAULT_KIND, 0.1)])
            self.assertEqual(len(turn.tasks), 10 * slots)
            self.assertEqual(len((await self.turn({f"w{slots}": slots}, costs=[Cost(0, DEFAULT_KIND, 0.1)])).tasks), 0)

    async def test_the_worker_with_the_most_room_gets_the_next(self) -> None:
        await self.create(20)
        turn = await self.turn({"large": 5, "small": 2, "none": 0}, limit=3)
        self.assertEqual(await self.workers_of(turn), {"large": 3})
        turn = await self.turn({"large": 5, "small": 2, "none": 0})
        self.assertEqual(await self.workers_of(turn), {"large": 2, "small": 2})
        self.check_room(turn, large=0, small=0, none=0)
        self.assertTrue(turn.backlog)

    async def test_what_a_worker_has_too_much_takes_no_room_from_others(self) -> None:
        await self.queued(6, "stalled")
        await self.create(9)
        turn = await self.turn({"stalled": 0, "other": 4})
        self.assertEqual(await self.workers_of(turn), {"other": 4})
        self.check_room(turn, stalled=-6, other=0)

    async def test_a_worker_that_does_not_serve_gets_nothing(self) -> None:
        tasks = await self.create(5)
        for name in ("draining", "gone", "fenced", "serving"):
            await self.serve(name)
        await self.store.worker_draining("draining")
        await self.die("gone")
        await self.fence("fenced")
        places = [Place(name, 100) for name in ("draining", "gone", "fenced", "absent")]
        turn = await self.store.assign(Pool(places, SERVED), 100, 0)
        self.assertEqual((list(turn.tasks), turn.backlog), ([], True))
        self.check_room(turn, draining=0, gone=0, fenced=0, absent=0)
        self.assertEqual([await self.get(task) for task in tasks], tasks)
        turn = await self.store.assign(Pool([*places, Place("serving", 2)], SERVED), 100, 0)
        self.assertEqual(await self.workers_of(turn), {"serving": 2})

    async def test_a_cancelled_or_retried_task_keeps_its_place_until_it_is_dropped(self) -> None:
        cancelled, retried = await self.queued(2)
        for task in (cancelled, retried):
            await self.store.cancel(self.ana.id, task.id)
        await self.store.retry(self.ana.id, retried.id)
        # it is not assigned while it is held
        turn = await self.turn({"w": 3})
        self.assertEqual((list(turn.tasks), turn.backlog), ([], False))
        self.check_room(turn, w=1)
        await self.create(5)
        turn = await self.turn({"w": 3})
        self.assertEqual((len(turn.tasks), turn.backlog), (1, True))
        await self.release([cancelled])
        self.assertEqual(len((await self.turn({"w": 3})).tasks), 1)
        await self.release([retried])
        turn = await self.turn({"w": 3})
        self.assertEqual(len(turn.tasks), 1)

    async def test_a_task_that_ended_or_was_given_back_leaves_its_place(self) -> None:
        ended, later, given, _ = await self.running(4)
        await self.finish(ended)
        await self.retry_later(later, delay=60)
        await self.release([given])
        await self.create(5)
        self.check_room(await self.turn({"w": 4}, limit=0), w=3)
        turn = await self.turn({"w": 4})
        self.assertEqual(len(turn.tasks), 3)

    async def test_pools_that_share_a_route_count_their_own_workers(self) -> None:
        await self.create(10, kind="b")
        await self.create(10, kind="a")
        one = await self.turn({"one": 3}, [A, B])
        two = await self.turn({"two": 4}, [B])
        self.assertEqual((len(one.tasks), len(two.tasks)), (3, 4))
        self.assertEqual({t.route for t in two.tasks}, {B})
        self.check_room(await self.turn({"one": 4}, [A, B], limit=0), one=1)

    async def test_another_executor_of_a_worker_is_in_another_pool(self) -> None:
        await self.create(3, kind="a")
        await self.create(3, kind="b")
        self.assertEqual(len((await self.turn({"w": 2}, [A])).tasks), 2)
        turn = await self.turn({"w": 2}, [B])
        self.assertEqual(len(turn.tasks), 2)
        self.check_room(turn, w=0)

    async def test_only_the_routes_of_the_pool_count_as_backlog(self) -> None:
        await self.create(kind="a")
        for routes, backlog in (([B, OTHER], False), ([B, A], True)):
            turn = await self.turn({"w": 0}, routes)
            self.assertEqual(turn.backlog, backlog)
