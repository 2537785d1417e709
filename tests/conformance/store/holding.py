"""The suite of IAttemptStore: what a worker finds under its name, and what it begins."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.ports.attempts import Assigned, Begun, Claim
from taskd.ports.logs import Report
from tests.conformance.store.case import PAYLOADS, TEXTS, StoreCase


class HoldingTests(StoreCase):
    """The suite of IAttemptStore: what a worker finds under its name, and what it begins."""

    async def test_a_worker_finds_what_is_assigned_to_it(self) -> None:
        self.assertEqual(await self.look(), [])
        mine = await self.queued(3, payload='{"x":1}')
        await self.queued(2, "v")
        await self.create(2)
        [bens] = await self.queued(1, user=self.ben)
        await self.store.set_weight("ben", 2.5)
        found = await self.store.look("w", [])
        self.assertEqual(list(found), [Assigned(task, "Ana") for task in mine] + [Assigned(bens, "Ben", 2.5)])
        self.assertEqual(await self.look("nobody"), [])

    async def test_a_worker_finds_what_a_turn_gave_it(self) -> None:
        [task] = await self.create(payload='{"x":1}')
        turn = await self.turn()
        [(found, user, weight)] = await self.store.look("w", [])
        self.assertEqual((found, user, weight), (await self.get(task), "Ana", 1.0))
        self.assertEqual((found.payload, found.dispatch, found.attempt), ('{"x":1}', 1, 1))
        self.assertEqual([t.id for t in turn.tasks], [found.id])

    async def test_lost_assignments_are_made_again(self) -> None:
        [own] = await self.queued()
        [elsewhere, cancelled] = await self.queued(2, "v")
        [begun] = await self.running()
        await self.store.cancel(self.ana.id, cancelled.id)
        [waits, ended, other, later] = await self.create(4)
        await self.store.cancel(self.ana.id, ended.id)
        [later] = [t for t in await self.assign("v") if t.id == later.id]

        def claim(task: Task, dispatch: int, **kw: Any) -> Claim:
            fields = {"attempt": dispatch, "max_attempts": 7, "version": 20, "created_at": task.created_at}
            return Claim(task.id, dispatch, **{**fields, **kw})

        claims = [
            claim(own, 1),
            claim(elsewhere, 2, attempt=1),
            claim(cancelled, 2),
            claim(begun, 1),
            claim(waits, 3),
            claim(ended, 1),
            claim(other, 4, created_at=other.created_at - timedelta(microseconds=1)),
            claim(later, later.dispatch),
        ]
        for _ in range(2):
            granted = await self.store.assert_held("w", claims)
            self.assertEqual(sorted(granted), sorted(task.id for task in (own, elsewhere, begun, waits)))
            self.assertEqual(
                await self.standing(),
                [(own.id, 1, True), (elsewhere.id, 2, True), (begun.id, 1, True), (waits.id, 3, True)],
            )
            found = await self.get(waits)
            self.assertEqual((found.state, found.attempt, found.max_attempts), (State.QUEUED, 3, 7))
            self.assertEqual((found.version, found.worker, found.started_at), (21, "w", None))
            self.assertEqual((await self.get(elsewhere)).attempt, 1)
            self.assertEqual(await self.get(own), own)
            self.assertIs((await self.get(begun)).state, State.RUNNING)
        self.assertEqual(len(await self.begin([await self.get(waits)])), 1)
        self.assertIsNotNone(await self.finish(await self.get(elsewhere)))

    async def test_the_dead_have_no_claims(self) -> None:
        [task] = await self.create()
        claims = [Claim(task.id, 1, 1, 3, 2, task.created_at)]
        self.assertEqual(list(await self.store.assert_held("w", claims)), [])
        await self.serve()
        self.assertEqual(list(await self.store.assert_held("w", [])), [])
        await self.die("w")
        self.assertEqual(list(await self.store.assert_held("w", claims)), [])
        self.assertEqual(await self.get(task), task)

    async def test_what_a_worker_knows_it_does_not_find_again(self) -> None:
        ids = [task.id for task in await self.queued(4)]
        self.assertEqual(await self.look(known=[ids[0], ids[2], 10**15]), [ids[1], ids[3]])
        self.assertEqual(await self.look(known=ids), [])
        self.assertEqual(await self.look(), ids, "it does until it says that it knows it")

    async def test_only_what_is_queued_is_found(self) -> None:
        running, cancelled, retried, ended, given, found = await self.queued(6)
        await self.begin([running])
        for task in (cancelled, retried):
            await self.store.cancel(self.ana.id, task.id)
        await self.store.retry(self.ana.id, retried.id)
        await self.finish(ended)
        await self.release([given])
        self.assertEqual(await self.look(), [found.id])

    async def test_a_look_finds_500_tasks_by_ascending_id(self) -> None:
        ids = [task.id for task in await self.queued(501)]
        self.assertEqual(await self.look(), ids[:500])
        self.assertEqual(await self.look(known=ids[:200]), ids[200:])
        # in whatever order they were assigned
        new = await self.new(20, worker="v")
        await self.serve("v")
        for task in (*new[10:], *new[:10][::-1]):
            await self.store.create_tasks([task])
        self.assertEqual(await self.look("v"), [task.id for task in new])

    async def test_a_look_reads_about_1_mib_of_payloads(self) -> None:
        mib = 2**18
        small = [task.id for task in await self.queued(3)]
        large = [task.id for _ in range(6) for task in await self.queued(payload=f'{{"x":"{"x" * mib}"}}')]
        first = await self.look()
        self.assertEqual(first, (small + large)[: len(first)])
        self.assertIn(len(first) - len(small), (3, 4))
        # one at least
        [huge] = await self.queued(payload=f'{{"x":"{"x" * 5 * mib}"}}')
        self.assertEqual(await self.look(known=small + large), [huge.id])
        await self.queued()
        self.assertEqual(await self.look(known=small + large), [huge.id])

    async def test_texts_are_found_unchanged(self) -> None:
        tasks = []
        for n, text in enumerate(TEXTS):
            [new] = await self.new(payload=PAYLOADS[n % len(PAYLOADS)], worker="w", timeout=1234.56789)
            new.task = text
            await self.serve()
            tasks += (await self.store.create_tasks([new])).tasks
        found = [assigned.task for assigned in await self.store.look("w", [])]
        self.assertEqual(found, tasks)
        self.assertEqual([task.task for task in found], TEXTS)

    async def test_standing_is_all_that_a_worker_holds(self) -> None:
        self.assertEqual(await self.standing(), [])
        queued, running, cancelled, stopped, retried, ended, given, later = await self.queued(8)
        await self.begin([running, stopped, ended, later])
        for task in (cancelled, stopped, retried):
            await self.store.cancel(self.ana.id, task.id)
        await self.store.retry(self.ana.id, retried.id)
        await self.finish(ended)
        await self.release([given])
        await self.retry_later(later)
        await self.queued(1, "v")
        expected = [(queued, True), (running, True), (cancelled, False), (stopped, False), (retried, False)]
        self.assertEqual(await self.standing(), [(task.id, 1, wanted) for task, wanted in expected])
        await self.begin(await self.assign("v"), "v")
        for task in (given, later):
            self.assertIn((task.id, 2, True), await self.standing("v"))

    async def test_begin(self) -> None:
        one, two = await self.queued(2)
        began = await self.store.begin("w", [Begun(one.id, 1), Begun(two.id, 1, 2.5)], False)
        self.assertEqual(set(began), {one.id, two.id})
        for task in (one, two):
            after = await self.get(task)
            self.assertEqual((after.state, after.version), (State.RUNNING, 2))
            self.assertEqual((after.worker, after.dispatch, after.attempt), ("w", 1, 1))
            self.assertEqual(tuple(began[task.id]), (after.version, after.started_at))
        self.assertEqual(began[one.id].started_at - began[two.id].started_at, timedelta(seconds=2.5))
        self.assertLess(abs(began[one.id].started_at - one.created_at), timedelta(minutes=1))

    async def test_begin_repeated_changes_nothing(self) -> None:
        [task] = await self.queued()
        first = await self.store.begin("w", [Begun(task.id, 1, 1.0)], True)
        await self.store.report("w", [Report(task.id, 1, 1, 0.5, "half")])
        before = await self.get(task)
        for flush in (True, False):
            self.assertEqual(await self.store.begin("w", [Begun(task.id, 1, 9.0)], flush), first)
        self.assertEqual(await self.get(task), before)

    async def test_a_task_twice_in_one_batch_begins_once(self) -> None:
        [task] = await self.queued()
        began = await self.store.begin("w", [Begun(task.id, 1), Begun(task.id, 1)], False)
        self.assertEqual([s.version for s in began.values()], [2])
        self.assertEqual((await self.get(task)).version, 2)

    async def test_begin_counts_only_for_what_the_worker_holds(self) -> None:
        queued, cancelled, retried, ended, given = await self.queued(5)
        [waiting] = await self.create()
        for task in (cancelled, retried):
            await self.store.cancel(self.ana.id, task.id)
        await self.store.retry(self.ana.id, retried.id)
        await self.finish(ended)
        await self.release([given])
        tasks = [await self.get(task) for task in (queued, cancelled, retried, ended, given, waiting)]
        wrong = [Begun(queued.id, 0), Begun(queued.id, 2), Begun(10**15, 1)]
        wrong += [Begun(task.id, task.dispatch) for task in tasks[1:]]
        self.assertEqual(await self.store.begin("w", wrong, False), {})
        self.assertEqual(await self.store.begin("w", [], False), {})
        self.assertEqual(await self.store.begin("v", [Begun(queued.id, 1)], True), {})
        self.assertEqual([await self.get(task) for task in tasks], tasks)
