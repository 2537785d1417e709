"""The suite of ISchedulingStore."""

from __future__ import annotations

from taskd.model.states import State
from taskd.model.tasks import DEFAULT_KIND, NewTask, Route
from taskd.ports.scheduling import Dispatch, OutboxBatch
from tests.conformance.store.case import OTHER, Q, StoreCase, new_batch


class SchedulingTests(StoreCase):
    """The suite of ISchedulingStore."""

    async def test_dispatch_moves_due_tasks(self) -> None:
        tasks = await self.create(3, State.WAITING)
        await self.create(1, State.WAITING, queue="other")
        await self.create(1, State.WAITING, kind="other")
        turn = await self.dispatch()
        self.assertEqual([t.id for t in turn.tasks], [t.id for t in tasks])
        for task in turn.tasks:
            self.assertEqual((task.state, task.dispatch, task.version), (State.QUEUED, 1, 2))
            self.assertEqual(await self.get(task), task)
        self.assertIsNone(turn.last_user)
        self.assertFalse(turn.more)
        self.assertEqual(len((await self.dispatch()).tasks), 0)
        for route in (OTHER, Route("q", "other")):
            self.assertEqual(
                [t.route for t in (await self.dispatch(queue=route.queue, kind=route.kind)).tasks], [route]
            )

    async def test_dispatch_leaves_tasks_that_are_not_due(self) -> None:
        early, late = await self.create(2, State.WAITING)
        await self.postpone(early.id)
        turn = await self.dispatch()
        self.assertEqual([t.id for t in turn.tasks], [late.id])
        turn = await self.dispatch()
        self.assertEqual((len(turn.tasks), turn.last_user, turn.more), (0, None, False))

    async def test_dispatch_goes_round_the_users(self) -> None:
        users = await self.users(4)
        for user in users:
            await self.create(10, State.WAITING, user)
        turn = await self.dispatch(12)
        self.assertEqual([t.user_id for t in turn.tasks], [u.id for u in users] * 3)
        for user in users:
            mine = [t.task for t in turn.tasks if t.user_id == user.id]
            self.assertEqual(mine, ["task 0", "task 1", "task 2"])
        self.assertTrue(turn.more)

    async def test_dispatch_gives_the_rest_to_users_who_have_more(self) -> None:
        one, two, three = await self.users(3)
        await self.create(50, State.WAITING, one)
        await self.create(1, State.WAITING, two)
        await self.create(50, State.WAITING, three)
        turn = await self.dispatch(31)
        counts = [sum(t.user_id == u.id for t in turn.tasks) for u in (one, two, three)]
        self.assertEqual(counts, [15, 1, 15])
        self.assertTrue(turn.more)
        self.assertEqual(turn.tasks[0].user_id, one.id)
        self.assertEqual([t.user_id for t in turn.tasks[:4]], [one.id, two.id, three.id, one.id])

    async def test_dispatch_continues_after_a_user(self) -> None:
        users = await self.users(6)
        for user in users:
            await self.create(2, State.WAITING, user)
        seen: list[int] = []
        after = None
        for _ in range(3):
            turn = await self.dispatch(2, after)
            after = turn.last_user
            seen += [t.user_id for t in turn.tasks]
            self.assertEqual(after, turn.tasks[-1].user_id)
        self.assertEqual(seen, [u.id for u in users])
        turn = await self.dispatch(2, after)
        self.assertEqual((len(turn.tasks), turn.last_user), (0, None))

    async def test_dispatch_shares_out_the_whole_turn(self) -> None:
        # (backlogs, limit, how many of each are dispatched): as if every user took one task in turn
        cases = [
            ([9, 9, 9], 7, [3, 2, 2]),
            ([1, 1, 1, 1], 3, [1, 1, 1, 0]),
            ([9, 1, 1, 1, 9], 10, [4, 1, 1, 1, 3]),
            ([60, 12, 1, 1], 40, [26, 12, 1, 1]),
            ([1, 9, 3, 30, 2], 100, [1, 9, 3, 30, 2]),
            ([20], 20, [20]),
            ([20], 19, [19]),
        ]
        for n, (backlogs, limit, expected) in enumerate(cases):
            queue = f"q{n}"
            users = [await self.store.create_user(f"u{n}{i}", f"u{n}{i}", "x") for i in range(len(backlogs))]
            for user, backlog in zip(users, backlogs, strict=True):
                await self.create(backlog, State.WAITING, user, queue=queue)
            turn = await self.dispatch(limit, queue=queue)
            counts = [sum(t.user_id == u.id for t in turn.tasks) for u in users]
            self.assertEqual(counts, expected, cases[n])
            self.assertEqual(turn.more, sum(counts) == limit)
            for user in users:
                mine = [t.id for t in turn.tasks if t.user_id == user.id]
                self.assertEqual(mine, sorted(mine))

    async def test_last_turn_of_a_round_gives_no_more_than_the_others(self) -> None:
        users = await self.users(5)
        for user in users:
            await self.create(20, State.WAITING, user)
        first = await self.dispatch(4)
        self.assertEqual((first.last_user, first.more), (users[3].id, True))
        last = await self.dispatch(4, first.last_user)
        self.assertEqual([t.user_id for t in (*first.tasks, *last.tasks)], [u.id for u in users])
        self.assertEqual((last.last_user, last.more), (None, False))

    async def test_dispatch_skips_users_whose_tasks_are_all_delayed(self) -> None:
        users = await self.users(7)
        for user in users[:-1]:
            [task] = await self.create(1, State.WAITING, user)
            await self.postpone(task.id)
        await self.create(1, State.WAITING, users[-1])
        turn = await self.dispatch(3)
        self.assertEqual([t.user_id for t in turn.tasks], [users[-1].id])
        self.assertEqual((turn.last_user, turn.more), (None, False))

    async def test_every_backlog_is_dispatched_in_the_end(self) -> None:
        users = await self.users(9)
        for i, user in enumerate(users):
            await self.create(1 + i * i, State.WAITING, user)
        found: list[int] = []
        after, clean = None, True
        for _ in range(300):
            turn = await self.dispatch(7, after)
            self.assertLessEqual(len(turn.tasks), 7)
            self.assertEqual(turn.more, len(turn.tasks) == 7)
            found += [t.id for t in turn.tasks]
            after, clean = turn.last_user, clean and not turn.more
            if after is None:
                if clean:
                    break
                clean = True
        self.assertTrue(clean)
        self.assertEqual(len(found), len(set(found)))
        self.assertEqual(len(found), sum(1 + i * i for i in range(9)))

    async def test_dispatch_repeated_moves_nothing_more(self) -> None:
        await self.create(5, State.WAITING)
        batch = new_batch()
        first = await self.store.dispatch(batch, Q, 3, None)
        again = await self.store.dispatch(batch, Q, 3, None)
        self.assertEqual([t.id for t in again.tasks], [t.id for t in first.tasks])
        self.assertEqual((first.more, again.more), (True, True))
        self.assertEqual(await self.store.count_queued(), {Q: 3})
        turn = await self.store.dispatch(batch, Q, 4, None)
        self.assertEqual((len(turn.tasks), turn.more), (3, False))

    async def test_dispatch_repeated_is_in_the_same_fair_order(self) -> None:
        for user in (self.ana, self.ben):
            await self.create(3, State.WAITING, user)
        batch = new_batch()
        first = await self.store.dispatch(batch, Q, 10, None)
        again = await self.store.dispatch(batch, Q, 10, None)
        self.assertEqual([t.id for t in again.tasks], [t.id for t in first.tasks])
        [taken] = [b for b in await self.store.adopt_stale(0, 10) if b.id == batch]
        self.assertEqual([m.task_id for m in taken.messages[Q]], [t.id for t in first.tasks])

    async def test_dispatch_of_nothing_leaves_no_outbox_row(self) -> None:
        await self.dispatch()
        self.assertEqual(await self.count_outbox(), 0)

    async def test_promote_moves_due_tasks_into_the_backlog(self) -> None:
        come, late = await self.create(2, State.WAITING)
        [other] = await self.create(1, State.WAITING, self.ben, queue="other")
        await self.postpone(come.id, -1)
        await self.postpone(other.id, -1)
        await self.postpone(late.id)
        self.assertEqual(len((await self.dispatch()).tasks), 0)
        before = await self.get(come)
        promoted = await self.store.promote(10)
        self.assertEqual(sorted(promoted), [(OTHER, self.ben.id), (Q, self.ana.id)])
        self.assertEqual(list(await self.store.promote(10)), [])
        # the owner sees no change
        self.assertEqual(await self.get(come), before)
        self.assertEqual([t.id for t in (await self.dispatch()).tasks], [come.id])
        self.assertEqual([t.id for t in (await self.dispatch(queue="other")).tasks], [other.id])

    async def test_promote_names_an_owner_once_a_route(self) -> None:
        for kind in (DEFAULT_KIND, "other"):
            for task in await self.create(3, State.WAITING, kind=kind):
                await self.postpone(task.id, -1)
        promoted = await self.store.promote(10)
        self.assertEqual(sorted(promoted), [(Route("q", "other"), self.ana.id), (Q, self.ana.id)])

    async def test_promote_is_bounded_and_begins_with_the_longest_overdue(self) -> None:
        tasks = await self.create(5, State.WAITING)
        for seconds, task in enumerate(tasks, 1):
            await self.postpone(task.id, -seconds)
        order = [t.id for t in reversed(tasks)]
        for ids in (order[:2], order[2:4], order[4:]):
            self.assertEqual(list(await self.store.promote(2)), [(Q, self.ana.id)])
            self.assertEqual([t.id for t in (await self.dispatch()).tasks], ids)
        self.assertEqual(list(await self.store.promote(2)), [])

    async def test_promote_leaves_cancelled_tasks(self) -> None:
        [task] = await self.create(1, State.WAITING)
        await self.postpone(task.id, -1)
        await self.store.cancel(self.ana.id, task.id)
        self.assertEqual(list(await self.store.promote(10)), [])
        self.assertEqual(len((await self.dispatch()).tasks), 0)

    async def test_promoted_tasks_take_their_turn_by_run_at(self) -> None:
        first, second = await self.create(2, State.WAITING)
        await self.postpone(second.id, -10)
        await self.store.promote(10)
        self.assertEqual([t.id for t in (await self.dispatch()).tasks], [second.id, first.id])

    async def test_adoption_names_the_tasks_that_are_still_queued(self) -> None:
        batch = new_batch()
        states = [State.QUEUED, State.WAITING, State.QUEUED, State.QUEUED]
        rows = [NewTask(self.ana.id, "t", queue=f"q{i % 2}", state=s) for i, s in enumerate(states)]
        tasks = await self.store.create_tasks(batch, rows)
        await self.claim(tasks[2:3])
        self.assertEqual(list(await self.store.adopt_stale(100, 10)), [])
        taken = await self.store.adopt_stale(0, 10)
        messages = {
            Route("q0", DEFAULT_KIND): [Dispatch(tasks[0].id, 1)],
            Route("q1", DEFAULT_KIND): [Dispatch(tasks[3].id, 1)],
        }
        self.assertEqual(taken, [OutboxBatch(batch, messages)])
        self.assertEqual(list(await self.store.adopt_stale(100, 10)), [])

    async def test_adoption_of_a_dispatch(self) -> None:
        await self.create(1, State.WAITING)
        batch = new_batch()
        turn = await self.store.dispatch(batch, Q, 10, None)
        taken = {b.id: b for b in await self.store.adopt_stale(0, 10)}
        self.assertEqual(taken[batch].messages, {Q: [Dispatch(turn.tasks[0].id, 1)]})

    async def test_adoption_is_bounded(self) -> None:
        for _ in range(5):
            await self.create()
        self.assertEqual(len(await self.store.adopt_stale(0, 3)), 3)

    async def test_settled_batches_are_deleted(self) -> None:
        batches = [new_batch() for _ in range(3)]
        for batch in batches:
            await self.store.create_tasks(batch, [NewTask(self.ana.id, "t", state=State.QUEUED)])
        await self.store.mark_published(batches[:2])
        await self.store.mark_published(batches[:2])
        await self.store.mark_published([])
        self.assertEqual([b.id for b in await self.store.adopt_stale(0, 10)], batches[2:])

    async def test_batches_settled_after_adoption_are_deleted_later(self) -> None:
        await self.create()
        [taken] = await self.store.adopt_stale(0, 10)
        await self.store.mark_published([taken.id])
        self.assertEqual(list(await self.store.adopt_stale(0, 10)), [])
        await self.age_outbox()
        self.assertEqual(list(await self.store.adopt_stale(0, 10)), [])
        self.assertEqual(await self.count_outbox(), 0)

    async def test_lost_messages_are_queued_again(self) -> None:
        tasks = await self.create(4)
        await self.create(1, queue="other")
        await self.create(1, kind="other")
        [running] = await self.claim(tasks[:1])
        self.assertEqual(list(await self.store.requeue_lost(Q, 100, 10)), [])
        self.assertEqual(len(await self.store.requeue_lost(Q, 0, 2)), 2)
        [back] = await self.store.requeue_lost(Q, 0, 10)
        self.assertEqual((back.state, back.dispatch, back.version), (State.WAITING, 1, 2))
        self.assertEqual(await self.get(running), running)
        self.assertEqual(await self.store.count_queued(), {OTHER: 1, Route("q", "other"): 1})
        queued = (await self.dispatch()).tasks
        self.assertEqual([(t.id, t.dispatch) for t in queued], [(t.id, 2) for t in tasks[1:]])
        # the lost messages arrive after all
        self.assertEqual(await self.claim(tasks[1:]), [])
        self.assertEqual(len(await self.claim(queued)), 3)

    async def test_count_queued(self) -> None:
        self.assertEqual(await self.store.count_queued(), {})
        await self.create(3)
        await self.create(2, queue="other")
        await self.create(1, queue="other", kind="k")
        await self.create(4, State.WAITING)
        await self.running(1)
        self.assertEqual(await self.store.count_queued(), {Q: 3, OTHER: 2, Route("other", "k"): 1})
