"""The suite of ITaskStore: ids, and how tasks are created."""

from __future__ import annotations

from datetime import timedelta, timezone
from typing import Any

from msgspec.structs import replace

from taskd.model.errors import BadRequest, KeyTaken
from taskd.model.states import State
from taskd.model.tasks import DEFAULT_KIND, NewTask, Route, Task
from taskd.ports.tasks import Keyed, TaskQuery
from tests.conformance.store.case import PAYLOADS, TEXTS, StoreCase


class CreationTests(StoreCase):
    """The suite of ITaskStore: ids, and how tasks are created."""

    async def make_tasks(self, rows: list[NewTask]) -> list[Task]:
        """Create tasks under fresh ids."""
        for row, task_id in zip(rows, await self.store.draw_ids(len(rows)), strict=True):
            row.id = task_id
        return list((await self.store.create_tasks(rows)).tasks)

    async def test_ids_are_drawn_once_in_ascending_order(self) -> None:
        drawn: list[int] = []
        for count in (1, 5, 0, 1000, 2):
            ids = list(await self.store.draw_ids(count))
            self.assertEqual(len(ids), count)
            drawn += ids
        self.assertEqual(drawn, sorted(set(drawn)))
        self.assertGreater(drawn[0], 0)

    async def test_a_creation_draws_ids_for_the_next_one(self) -> None:
        drawn = list(await self.store.draw_ids(3))
        for spare in (0, 3, 3):
            new = [NewTask(self.ana.id, "t", id=task_id) for task_id in drawn[-3:]]
            created = await self.store.create_tasks(new, spare)
            self.assertEqual(len(created.ids), spare)
            drawn += created.ids
        drawn += await self.store.draw_ids(1)
        self.assertEqual(drawn, sorted(set(drawn)))

    async def test_ids_may_be_used_in_any_order_or_never(self) -> None:
        one, two, three, four = await self.store.draw_ids(4)
        for order in ([four], [two, one]):
            created = await self.store.create_tasks([NewTask(self.ana.id, "t", id=task_id) for task_id in order])
            self.assertEqual([task.id for task in created.tasks], order)
        self.assertEqual(await self.pages(), [four, two, one])
        self.assertNotIn(three, await self.store.draw_ids(10))

    async def test_created_tasks_are_as_their_requests(self) -> None:
        await self.serve()
        ids = await self.store.draw_ids(50)
        rows = [
            NewTask(
                (self.ana, self.ben)[i % 2].id,
                f"t{i}",
                f"kind{i}",
                f'{{"i":{i}}}',
                f"q{i % 3}",
                i + 1,
                id=task_id,
                worker="w" if i % 2 else None,
            )
            for i, task_id in enumerate(ids)
        ]
        tasks = (await self.store.create_tasks(rows)).tasks
        self.assertEqual([t.id for t in tasks], list(ids))
        for task, row in zip(tasks, rows, strict=True):
            self.assertEqual(await self.get(task), task)
            self.assertEqual((task.user_id, task.task), (row.user_id, row.task))
            self.assertEqual((task.kind, task.payload), (row.kind, row.payload))
            self.assertEqual((task.queue, task.max_attempts), (row.queue, row.max_attempts))
            self.assertIs(task.state, State.QUEUED if row.worker else State.WAITING)
            assigned = int(row.worker is not None)
            self.assertEqual((task.worker, task.dispatch, task.attempt), (row.worker, assigned, assigned))
            self.assertEqual((task.version, task.losses, task.returns), (1, 0, 0))
            self.assertEqual(task.created_at.utcoffset(), timedelta(0))
            self.assertEqual(task.created_at, task.run_at)
            self.assertIsNone(task.started_at or task.finished_at or task.result or task.error)

    async def test_a_task_is_assigned_by_its_creation(self) -> None:
        [task] = await self.queued(max_attempts=5)
        self.assertEqual(await self.standing(), [(task.id, 1, True)])
        self.assertEqual(await self.look(), [task.id])
        self.assertEqual(await self.due(), [])
        self.assertEqual((await self.turn({"w": 3})).room, {"w": 2})
        await self.finish(task)
        self.assertIs((await self.get(task)).state, State.COMPLETED)

    async def test_a_task_for_a_worker_that_does_not_serve_waits(self) -> None:
        for name in ("draining", "gone", "fenced", "serving"):
            await self.serve(name)
        await self.store.worker_draining("draining")
        await self.die("gone")
        await self.fence("fenced")
        names = ["draining", "gone", "fenced", "absent", "serving"]
        new = [replace((await self.new())[0], worker=name) for name in names]
        *waiting, queued = (await self.store.create_tasks(new)).tasks
        for task in waiting:
            self.assertEqual((task.state, task.worker), (State.WAITING, None))
            self.assertEqual((task.dispatch, task.attempt, task.version), (0, 0, 1))
            self.assertEqual(await self.get(task), task)
        self.assertEqual((queued.state, queued.worker), (State.QUEUED, "serving"))
        for name in names[:-1]:
            self.assertEqual(await self.standing(name), [])
        self.assertEqual(await self.due(), [task.id for task in waiting])

    async def test_a_creation_repeated_creates_nothing(self) -> None:
        await self.serve()
        rows = await self.new(7)
        for row in rows[::2]:
            row.worker = "w"
        first = await self.store.create_tasks(rows, 5)
        again = await self.store.create_tasks(rows, 5)
        self.assertEqual(list(again.tasks), list(first.tasks))
        self.assertFalse(set(again.ids) & set(first.ids))
        self.assertEqual(len((await self.store.list_tasks(self.ana.id, TaskQuery(500))).tasks), 7)
        self.assertEqual(len(await self.standing()), 4)

    async def test_a_creation_repeated_later_returns_the_tasks_as_they_are(self) -> None:
        await self.serve()
        rows = await self.new(5, payload='{"x":1}')
        for row in rows[:3]:
            row.worker = "w"
        rows[4].delay = 60.0
        tasks = (await self.store.create_tasks(rows)).tasks
        await self.finish(tasks[0])
        await self.release([tasks[1]])
        await self.store.cancel(self.ana.id, tasks[2].id)
        await self.turn(limit=1)
        await self.store.worker_draining("w")
        now = [await self.get(task) for task in tasks]
        # the order is that of the request
        for order in ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3]):
            again = await self.store.create_tasks([rows[n] for n in order])
            self.assertEqual(list(again.tasks), [now[n] for n in order])
        self.assertEqual([await self.get(task) for task in tasks], now)

    async def test_a_task_keeps_its_timeout(self) -> None:
        seconds = [None, 0.1, 1234.56789, 2_592_000.001]
        tasks = await self.make_tasks([NewTask(self.ana.id, "t", timeout=each) for each in seconds])
        self.assertEqual([t.timeout for t in tasks], seconds)
        self.assertEqual([await self.get(t) for t in tasks], tasks)

    async def test_a_task_with_a_future_run_at_waits(self) -> None:
        [now] = await self.create()
        tokyo = timezone(timedelta(hours=9))
        late = (now.created_at + timedelta(hours=1)).astimezone(tokyo)
        early = now.created_at - timedelta(hours=1)
        rows = [NewTask(self.ana.id, "t", queue="q", run_at=at) for at in (late, early, None)]
        tasks = await self.make_tasks(rows)
        self.assertEqual(tasks[0].run_at, late)
        self.assertEqual(tasks[0].run_at.utcoffset(), timedelta(0))
        # a time in the past counts as now
        self.assertEqual([t.run_at for t in tasks[1:]], [t.created_at for t in tasks[1:]])
        self.assertEqual([await self.get(t) for t in tasks], tasks)
        self.assertEqual(list((await self.store.create_tasks(rows)).tasks), tasks)
        self.assertEqual(list(await self.store.promote(10)), [])
        self.assertEqual(await self.pages(state="scheduled"), [tasks[0].id])
        self.assertEqual(await self.due(), [now.id, tasks[1].id, tasks[2].id])

    async def test_a_task_with_a_delay_waits(self) -> None:
        hour, long = timedelta(hours=1), 123456.789012
        later = (await self.create())[0].created_at + hour
        specs: list[dict[str, Any]] = [{"delay": 3600}, {"delay": long}, {"delay": 0}, {"delay": -5.0}, {}]
        # of a time and a delay the later one decides
        specs += [{"run_at": later, "delay": 60}, {"run_at": later - hour, "delay": 60}, {"run_at": later, "delay": 0}]
        rows = [NewTask(self.ana.id, "t", queue="delayed", **spec) for spec in specs]
        tasks = await self.make_tasks(rows)
        waits = [t.run_at - t.created_at for t in tasks]
        minute = timedelta(minutes=1)
        self.assertEqual(waits[:5], [hour, timedelta(seconds=long), *[timedelta(0)] * 3])
        self.assertEqual((tasks[5].run_at, waits[6], tasks[7].run_at), (later, minute, later))
        self.assertEqual([await self.get(t) for t in tasks], tasks)
        self.assertEqual(list((await self.store.create_tasks(rows)).tasks), tasks)
        self.assertEqual(list(await self.store.promote(10)), [])
        self.assertEqual(await self.due("delayed"), [t.id for t in tasks[2:5]])
        await self.postpone(tasks[0].id, -1)
        self.assertEqual(list(await self.store.promote(10)), [(Route("delayed", DEFAULT_KIND), self.ana.id)])

    async def test_a_delay_is_exact_to_the_microsecond(self) -> None:
        delays = [0.0000004, 0.0000005, 0.0000015, 0.1, 0.3, 1.0000005, 2.675, 86399.9999995, 1e9 / 3]
        tasks = await self.make_tasks([NewTask(self.ana.id, "t", delay=delay) for delay in delays])
        self.assertEqual([await self.get(t) for t in tasks], tasks)

    async def test_an_assigned_task_is_due_whatever_the_clocks_say(self) -> None:
        [now] = await self.queued()
        [task] = await self.queued(run_at=now.created_at + timedelta(minutes=10))
        self.assertEqual((task.state, task.dispatch), (State.QUEUED, 1))
        await self.release([now, task])
        self.assertEqual(await self.due(), [now.id, task.id])

    async def test_a_key_is_taken_once(self) -> None:
        specs = [(k, f) for k, f in (("a", "1"), ("b\N{SNOWMAN}", "2"), (None, None))]
        first = await self.make_tasks([NewTask(self.ana.id, "t", queue="q", key=k, fingerprint=f) for k, f in specs])
        for again in ([0], [2, 1], [2, 2, 0]):
            rows = [NewTask(self.ana.id, "t", queue="q", key=specs[n][0], fingerprint=specs[n][1]) for n in again]
            with self.assertRaises(KeyTaken):
                await self.make_tasks(rows)
            with self.assertRaises(KeyTaken):
                await self.store.create_tasks(rows)
        self.assertEqual(await self.due(), [task.id for task in first])
        # the same key of another user, and no key, do not conflict
        await self.make_tasks([NewTask(self.ben.id, "t", key="a", fingerprint="1"), NewTask(self.ana.id, "t")])
        wanted = [(self.ana.id, "a"), (self.ana.id, "b\N{SNOWMAN}"), (self.ana.id, "c"), (self.ben.id, "b")]
        self.assertEqual(
            await self.store.find_keys(wanted),
            {wanted[0]: Keyed(first[0].id, "1"), wanted[1]: Keyed(first[1].id, "2")},
        )
        self.assertEqual(await self.store.find_keys([]), {})

    async def test_a_key_twice_in_one_creation_is_taken(self) -> None:
        rows = [NewTask(self.ana.id, "t", key="a", fingerprint=f) for f in ("1", "2")]
        with self.assertRaises(KeyTaken):
            await self.make_tasks(rows)
        self.assertEqual(await self.store.find_keys([(self.ana.id, "a")]), {})

    async def test_a_creation_with_keys_repeated_creates_nothing(self) -> None:
        rows = [NewTask(self.ana.id, "t", key=key, fingerprint="1") for key in ("a", None, "b")]
        first = await self.make_tasks(rows)
        self.assertEqual(list((await self.store.create_tasks(rows)).tasks), first)

    async def test_texts_are_stored_unchanged(self) -> None:
        specs = [NewTask(self.ana.id, text, payload=PAYLOADS[i % len(PAYLOADS)]) for i, text in enumerate(TEXTS)]
        tasks = await self.make_tasks(specs)
        for task, spec in zip(tasks, specs, strict=True):
            found = await self.get(task)
            self.assertEqual((found.task, found.payload), (spec.task, spec.payload))

    async def test_all_tasks_or_none(self) -> None:
        for bad in ("bad\0", "lone \ud800 surrogate"):
            with self.assertRaises(BadRequest):
                await self.make_tasks([NewTask(self.ana.id, text) for text in ("good", bad, "good")])
        self.assertEqual((await self.store.list_tasks(self.ana.id, TaskQuery(5))).tasks, [])
        self.assertTrue(await self.create())

    async def test_creation_of_nothing(self) -> None:
        created = await self.store.create_tasks([])
        self.assertEqual((list(created.tasks), list(created.ids)), ([], []))
        created = await self.store.create_tasks([], 2)
        self.assertEqual((list(created.tasks), len(created.ids)), ([], 2))
