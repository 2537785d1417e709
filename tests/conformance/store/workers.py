"""The suite of IWorkerStore, and of the store's clock."""

from __future__ import annotations

from datetime import timedelta, timezone

from taskd.model.states import State
from taskd.ports.workers import Beaten, KindInfo, Mean, WorkerInfo, WorkerState
from tests.conformance.store.case import StoreCase


class WorkerTests(StoreCase):
    """The suite of IWorkerStore, and of the store's clock."""

    async def names(self) -> list[str]:
        return [s.info.name for s in (await self.store.poll_workers()).workers]

    async def test_workers_are_registered_once(self) -> None:
        simulate = KindInfo("simulate", "async", None, 3, "Sleeps.")
        picture = KindInfo("picture:\N{SNOWMAN}", "process", 60.5, 5, 'two\nlines "quoted" \\ \'')
        one = WorkerInfo("b-1", ["tasks", "mail"], [simulate, picture], {"async": 10, "process": 2})
        two = WorkerInfo("a-2", [], [], {})
        self.assertEqual(await self.names(), [])
        await self.store.register(one)
        await self.store.register(two)
        for _ in range(2):
            statuses = (await self.store.poll_workers()).workers
            self.assertEqual([s.info for s in statuses], [two, one])
            for status in statuses:
                self.assertEqual((status.state, status.connected), (WorkerState.SERVING, True))
                self.assertEqual((status.hung, status.stalled, list(status.means)), ({}, None, []))
        # again, after it has said more
        await self.beat("b-1", hung={"async": 1}, means=[Mean(1, "simulate", 0.5)])
        await self.store.worker_draining("b-1")
        before = await self.status("b-1")
        await self.store.register(one)
        self.assertEqual(await self.status("b-1"), before)
        for _ in range(2):
            await self.store.worker_gone("a-2")
        self.assertEqual(await self.names(), ["b-1"])

    async def test_beats_grow_while_it_lives(self) -> None:
        self.assertFalse((await self.beat()).accepted, "not registered")
        await self.serve()
        await self.serve("v")
        first, other = (await self.status()).beat, await self.status("v")
        for n, hung in enumerate(({}, {"thread": 2, "async": 1}, {}), 1):
            self.assertTrue((await self.beat(hung=hung)).accepted)
            status = await self.status()
            self.assertEqual((status.beat, status.hung, status.connected), (first + n, hung, True))
        self.assertEqual(await self.status("v"), other)
        await self.store.worker_draining("w")
        self.assertTrue((await self.beat()).accepted)
        status = await self.status()
        self.assertEqual((status.beat, status.state), (first + 4, WorkerState.DRAINING))

    async def test_a_beat_tells_how_long_tasks_take(self) -> None:
        await self.serve()
        for means in (
            [Mean(self.ana.id, "simulate", 0.25), Mean(2**40, "picture:\N{SNOWMAN}", 1 / 3)],
            [Mean(user, "kind", user / 7) for user in range(1, 1001)],
            [Mean(1, "whole", 3.0)],
            [],
        ):
            await self.beat(means=means)
            self.assertEqual(list((await self.status()).means), means)

    async def test_a_beat_tells_how_many_tasks_the_worker_holds(self) -> None:
        await self.serve()
        self.assertEqual((await self.status()).holds, 0)
        for held in ([(1, 1), (2, 7)], []):
            await self.beat(held=held)
            self.assertEqual((await self.status()).holds, len(held))

    async def test_a_beat_compares_what_the_worker_holds(self) -> None:
        await self.serve()
        self.assertEqual(await self.beat(), Beaten(True, True))
        self.assertEqual(await self.beat(held=[(1, 1)]), Beaten(True, False))
        one, two = await self.queued(2)
        await self.queued(3, "v")
        pairs = [(one.id, 1), (two.id, 1)]
        for held, in_step in (
            (pairs, True),
            (pairs[::-1], True),
            (pairs[:1], False),
            ([], False),
            ([(one.id, 1), (two.id, 2)], False),
            ([(one.id, 1), (two.id + 1, 1)], False),
            ([*pairs, (two.id + 1, 1)], False),
        ):
            self.assertEqual(await self.beat(held=held), Beaten(True, in_step), held)
        await self.begin([one])
        self.assertTrue((await self.beat(held=pairs)).in_step, "it does not matter what has begun")
        await self.finish(one)
        self.assertFalse((await self.beat(held=pairs)).in_step)
        self.assertTrue((await self.beat(held=pairs[1:])).in_step)
        await self.release([two])
        [again] = await self.assign()
        self.assertFalse((await self.beat(held=pairs[1:])).in_step, "it is another assignment")
        self.assertTrue((await self.beat(held=[(again.id, 2)])).in_step)

    async def test_a_beat_shows_that_something_is_to_be_stopped(self) -> None:
        for retried in (False, True):
            one, two = await self.running(2)
            pairs = [(one.id, 1), (two.id, 1)]
            await self.store.cancel(self.ana.id, one.id)
            if retried:
                await self.store.retry(self.ana.id, one.id)
            self.assertFalse((await self.beat(held=pairs)).in_step)
            self.assertFalse((await self.beat(held=pairs[1:])).in_step, "it is still held")
            await self.release([one])
            self.assertTrue((await self.beat(held=pairs[1:])).in_step)
            await self.finish(two)

    async def test_a_worker_that_has_stopped_leaves_nothing_behind(self) -> None:
        queued, running, cancelled, retried = await self.queued(4)
        await self.begin([running])
        for task in (cancelled, retried):
            await self.store.cancel(self.ana.id, task.id)
        await self.store.retry(self.ana.id, retried.id)
        [other] = await self.queued(1, "v")
        before = [await self.get(task) for task in (cancelled, other)]
        await self.store.worker_draining("w")
        await self.store.worker_gone("w")
        self.assertEqual(await self.names(), ["v"])
        self.assertEqual(await self.standing(), [])
        for task, returns in ((queued, 0), (running, 1), (retried, 0)):
            after = await self.get(task)
            self.assertEqual((after.state, after.attempt, after.losses), (State.WAITING, 0, 0))
            self.assertEqual((after.returns, after.started_at), (returns, None))
            self.assertIsNone(await self.finish(task))
            self.assertEqual(list(await self.store.failed_attempts(task.id)), [])
        self.assertEqual([await self.get(task) for task in (cancelled, other)], before)
        self.assertEqual(await self.due(), [queued.id, running.id, retried.id])

    async def test_a_beat_of_the_reactor_ends_a_stall(self) -> None:
        await self.serve()
        before = (await self.status()).beat
        await self.stall("w", "task 1 (sum) at work.py:3")
        status = await self.status()
        self.assertEqual((status.stalled, status.beat), ("task 1 (sum) at work.py:3", before + 1))
        await self.beat()
        self.assertIsNone((await self.status()).stalled)

    async def test_the_dead_do_not_come_back(self) -> None:
        await self.serve("gone")
        await self.serve("fenced")
        await self.die("gone")
        await self.fence("fenced")
        for name in ("gone", "fenced"):
            before = await self.status(name)
            self.assertEqual(before.state.value, name)
            self.assertFalse((await self.beat(name, hung={"async": 1})).accepted)
            await self.store.worker_draining(name)
            await self.serve(name)
            self.assertEqual(await self.status(name), before)
            await self.store.worker_gone(name)
        self.assertEqual(await self.names(), [])

    async def test_the_dead_are_forgotten_an_hour_after_their_last_beat(self) -> None:
        for name in ("alive", "draining", "gone", "fenced", "holds"):
            await self.serve(name)
        await self.running(1, "holds")
        await self.store.worker_draining("draining")
        await self.die("gone")
        await self.fence("fenced")
        await self.die("holds")
        everybody = ["alive", "draining", "fenced", "gone", "holds"]
        await self.age_workers(3500)
        self.assertEqual(await self.names(), everybody)
        await self.age_workers(200)
        self.assertEqual(await self.names(), ["alive", "draining", "holds"])
        await self.store.take_back({})
        self.assertEqual(await self.names(), ["alive", "draining"])

    async def test_the_epoch_stays_while_the_database_runs(self) -> None:
        epochs = {(await self.store.poll_workers()).epoch for _ in range(3)}
        other = await self.make()
        if other.ready:
            epochs.add((await self.store.poll_workers()).epoch)
        self.assertEqual(len(epochs), 1)

    async def test_nul_in_a_text_for_people_does_no_harm(self) -> None:
        kind = KindInfo("simulate", "async", summary="nul\0 lone \ud800")
        await self.store.register(WorkerInfo("w", ["q"], [kind], {"async": 1}))
        [info] = [s.info for s in (await self.store.poll_workers()).workers]
        self.assertEqual(info.kinds[0].summary, "nul lone ?")
        [task] = await self.running()
        self.assertEqual([t.id for t in await self.fence()], [task.id])

    async def test_now_is_the_time_of_the_database(self) -> None:
        await self.serve()
        for learn in (self.store.poll_workers, self.beat):
            await learn()
            before = self.store.now()
            [task] = await self.create()
            self.assertEqual(before.tzinfo, timezone.utc)
            self.assertLess(abs(task.created_at - before), timedelta(seconds=5))
