"""The suite of ITaskStore: create, cancel, retry, read, delete."""

from __future__ import annotations

from datetime import timedelta, timezone
from typing import Any

from msgspec.structs import replace

from taskd.model.errors import BadRequest, Conflict, KeyTaken, NotFound
from taskd.model.states import State
from taskd.model.tasks import DEFAULT_KIND, NewTask, Route
from taskd.ports.logs import Report
from taskd.ports.tasks import Keyed, TaskQuery
from tests.conformance.store.case import PAYLOADS, TEXTS, Q, StoreCase, new_batch


class TaskTests(StoreCase):
    """The suite of ITaskStore: create, cancel, retry, read, delete."""

    async def test_created_tasks_are_stored_in_order(self) -> None:
        rows = [
            NewTask(
                (self.ana, self.ben)[i % 2].id,
                f"t{i}",
                f"kind{i}",
                f'{{"i":{i}}}',
                f"q{i % 3}",
                i + 1,
                state=State.QUEUED if i % 2 else State.WAITING,
            )
            for i in range(50)
        ]
        tasks = await self.store.create_tasks(new_batch(), rows)
        self.assertEqual([t.task for t in tasks], [f"t{i}" for i in range(50)])
        self.assertEqual([t.id for t in tasks], sorted({t.id for t in tasks}))
        for task, row in zip(tasks, rows, strict=True):
            self.assertEqual(await self.get(task), task)
            self.assertEqual((task.user_id, task.state), (row.user_id, row.state))
            self.assertEqual((task.kind, task.payload), (row.kind, row.payload))
            self.assertEqual((task.queue, task.max_attempts), (row.queue, row.max_attempts))
            self.assertEqual(task.dispatch, 1 if row.state is State.QUEUED else 0)
            self.assertEqual((task.attempt, task.version), (0, 1))
            self.assertEqual(task.created_at.utcoffset(), timedelta(0))
            self.assertEqual(task.created_at, task.run_at)
            self.assertIsNone(task.started_at or task.finished_at or task.result or task.error)

    async def test_a_task_keeps_its_timeout(self) -> None:
        specs = [NewTask(self.ana.id, "t", timeout=seconds) for seconds in (None, 0.1, 1234.56789, 2_592_000.001)]
        tasks = await self.store.create_tasks(new_batch(), [replace(spec, state=State.QUEUED) for spec in specs])
        self.assertEqual([t.timeout for t in tasks], [spec.timeout for spec in specs])
        self.assertEqual([await self.get(t) for t in tasks], tasks)
        self.assertEqual(sorted(await self.claim(tasks), key=lambda t: t.id)[2].timeout, 1234.56789)

    async def test_a_task_with_a_future_run_at_waits(self) -> None:
        [now] = await self.create(state=State.WAITING)
        tokyo = timezone(timedelta(hours=9))
        late = (now.created_at + timedelta(hours=1)).astimezone(tokyo)
        early = now.created_at - timedelta(hours=1)
        batch = new_batch()
        rows = [NewTask(self.ana.id, "t", queue="q", run_at=at) for at in (late, early, None)]
        tasks = await self.store.create_tasks(batch, rows)
        self.assertEqual(tasks[0].run_at, late)
        self.assertEqual(tasks[0].run_at.utcoffset(), timedelta(0))
        # a time in the past counts as now
        self.assertEqual([t.run_at for t in tasks[1:]], [t.created_at for t in tasks[1:]])
        self.assertEqual([await self.get(t) for t in tasks], tasks)
        self.assertEqual(await self.store.create_tasks(batch, rows), tasks)
        self.assertEqual(list(await self.store.promote(10)), [])
        self.assertEqual([t.id for t in (await self.dispatch()).tasks], [now.id, tasks[1].id, tasks[2].id])
        self.assertEqual(await self.pages(state="scheduled"), [tasks[0].id])

    async def test_a_task_with_a_delay_waits(self) -> None:
        hour, long = timedelta(hours=1), 123456.789012
        batch, later = new_batch(), (await self.create(state=State.WAITING))[0].created_at + hour
        specs: list[dict[str, Any]] = [{"delay": 3600}, {"delay": long}, {"delay": 0}, {"delay": -5.0}, {}]
        # of a time and a delay the later one decides
        specs += [{"run_at": later, "delay": 60}, {"run_at": later - hour, "delay": 60}, {"run_at": later, "delay": 0}]
        rows = [NewTask(self.ana.id, "t", queue="delayed", **spec) for spec in specs]
        tasks = await self.store.create_tasks(batch, rows)
        waits = [t.run_at - t.created_at for t in tasks]
        minute = timedelta(minutes=1)
        self.assertEqual(waits[:5], [hour, timedelta(seconds=long), *[timedelta(0)] * 3])
        self.assertEqual((tasks[5].run_at, waits[6], tasks[7].run_at), (later, minute, later))
        self.assertEqual([await self.get(t) for t in tasks], tasks)
        self.assertEqual(await self.store.create_tasks(batch, rows), tasks)
        self.assertEqual(list(await self.store.promote(10)), [])
        due = [t.id for t in (await self.dispatch(queue="delayed")).tasks]
        self.assertEqual(due, [t.id for t in tasks[2:5]])
        await self.postpone(tasks[0].id, -1)
        self.assertEqual(list(await self.store.promote(10)), [(Route("delayed", DEFAULT_KIND), self.ana.id)])

    async def test_a_delay_is_exact_to_the_microsecond(self) -> None:
        delays = [0.0000004, 0.0000005, 0.0000015, 0.1, 0.3, 1.0000005, 2.675, 86399.9999995, 1e9 / 3]
        rows = [NewTask(self.ana.id, "t", delay=delay) for delay in delays]
        tasks = await self.store.create_tasks(new_batch(), rows)
        self.assertEqual([await self.get(t) for t in tasks], tasks)

    async def test_a_queued_task_is_due_whatever_the_clocks_say(self) -> None:
        [now] = await self.create()
        [task] = await self.create(run_at=now.created_at + timedelta(minutes=10))
        self.assertEqual((task.state, task.dispatch), (State.QUEUED, 1))
        await self.store.requeue_lost(Q, 0, 10)
        self.assertEqual({t.id for t in (await self.dispatch()).tasks}, {now.id, task.id})

    async def test_a_key_is_taken_once(self) -> None:
        specs = [
            NewTask(self.ana.id, "t", key=k, fingerprint=f)
            for k, f in (("a", "1"), ("b\N{SNOWMAN}", "2"), (None, None))
        ]
        rows = [replace(spec, state=State.QUEUED) for spec in specs]
        first = await self.store.create_tasks(new_batch(), rows)
        for again in ([rows[0]], [rows[2], rows[1]]):
            with self.assertRaises(KeyTaken):
                await self.store.create_tasks(new_batch(), again)
        self.assertEqual(await self.store.count_queued(), {Route("", DEFAULT_KIND): 3})
        # the same key of another user, and no key, do not conflict
        await self.store.create_tasks(
            new_batch(), [replace(specs[0], user_id=self.ben.id, state=State.QUEUED), rows[2]]
        )
        wanted = [(self.ana.id, "a"), (self.ana.id, "b\N{SNOWMAN}"), (self.ana.id, "c"), (self.ben.id, "b")]
        self.assertEqual(
            await self.store.find_keys(wanted),
            {wanted[0]: Keyed(first[0].id, "1"), wanted[1]: Keyed(first[1].id, "2")},
        )
        self.assertEqual(await self.store.find_keys([]), {})

    async def test_a_batch_with_keys_repeated_creates_nothing(self) -> None:
        batch, rows = new_batch(), [NewTask(self.ana.id, "t", key="a", fingerprint="1", state=State.QUEUED)]
        first = await self.store.create_tasks(batch, rows)
        self.assertEqual(list(await self.store.create_tasks(batch, rows)), list(first))

    async def test_texts_are_stored_unchanged(self) -> None:
        specs = [NewTask(self.ana.id, text, payload=PAYLOADS[i % len(PAYLOADS)]) for i, text in enumerate(TEXTS)]
        tasks = await self.store.create_tasks(new_batch(), [replace(spec, state=State.QUEUED) for spec in specs])
        for task, spec in zip(tasks, specs, strict=True):
            found = await self.get(task)
            self.assertEqual((found.task, found.payload), (spec.task, spec.payload))
        claimed = {t.id: t for t in await self.claim(tasks)}
        self.assertEqual(
            [(claimed[t.id].task, claimed[t.id].payload) for t in tasks], [(s.task, s.payload) for s in specs]
        )

    async def test_batch_repeated_creates_nothing(self) -> None:
        rows = [NewTask(self.ana.id, f"t{i}", state=(State.WAITING, State.QUEUED)[i % 2]) for i in range(7)]
        batch = new_batch()
        first = await self.store.create_tasks(batch, rows)
        again = await self.store.create_tasks(batch, rows)
        self.assertEqual(first, again)
        self.assertEqual(len((await self.store.list_tasks(self.ana.id, TaskQuery(500))).tasks), 7)

    async def test_batch_repeated_after_it_was_adopted_and_settled(self) -> None:
        batch = new_batch()
        rows = [NewTask(self.ana.id, "t", queue="q", state=State.QUEUED)]
        first = await self.store.create_tasks(batch, rows)
        await self.store.adopt_stale(0, 10)
        await self.store.mark_published([batch])
        again = await self.store.create_tasks(batch, rows)
        self.assertEqual([t.id for t in again], [t.id for t in first])

    async def test_all_rows_or_none(self) -> None:
        rows = [NewTask(self.ana.id, text) for text in ("good", "bad\0", "good")]
        with self.assertRaises(BadRequest):
            await self.store.create_tasks(new_batch(), rows)
        rows[1] = NewTask(self.ana.id, "lone \ud800 surrogate")
        with self.assertRaises(BadRequest):
            await self.store.create_tasks(new_batch(), rows)
        self.assertEqual((await self.store.list_tasks(self.ana.id, TaskQuery(5))).tasks, [])
        self.assertEqual(await self.count_outbox(), 0)
        self.assertTrue(await self.create())

    async def test_create_settles_earlier_batches(self) -> None:
        first, second = new_batch(), new_batch()
        row = NewTask(self.ana.id, "t", state=State.QUEUED)
        await self.store.create_tasks(first, [row])
        await self.store.create_tasks(second, [row], [first])
        self.assertEqual([b.id for b in await self.store.adopt_stale(0, 10)], [second])

    async def test_cancel(self) -> None:
        for state in (State.WAITING, State.QUEUED, State.RUNNING):
            task = await self.in_state(state)
            cancelled = await self.store.cancel(self.ana.id, task.id)
            self.assertEqual((cancelled.state, cancelled.version), (State.CANCELLED, task.version + 1))
            self.assertIsNotNone(cancelled.finished_at)
            self.assertEqual(await self.get(task), cancelled)
            self.assertEqual(await self.store.cancel(self.ana.id, task.id), cancelled)
            self.assertEqual(await self.claim([task]), [])
        self.assertEqual(len((await self.dispatch()).tasks), 0)
        self.assertEqual(await self.store.count_queued(), {})

    async def test_cancel_of_a_running_task_fences_its_attempt(self) -> None:
        [task] = await self.running()
        await self.store.report("w", [Report(task.id, 1, 1, 0.5, "half")])
        cancelled = await self.store.cancel(self.ana.id, task.id)
        # the progress stays
        self.assertEqual((cancelled.progress, cancelled.note, cancelled.attempt), (0.5, "half", 1))
        self.assertEqual(list(await self.store.held_by("w")), [])
        for state in (State.COMPLETED, State.FAILED, State.WAITING):
            for again in (False, True):
                self.assertIsNone(await self.finish(task, state=state, again=again))
        self.assertEqual(await self.release([task]), [])
        self.assertEqual(await self.fence(), [])
        self.assertEqual(await self.store.reset_in_flight(), 0)
        self.assertEqual(await self.get(task), cancelled)

    async def test_cancel_of_another_users_task_is_not_found(self) -> None:
        [task] = await self.create()
        for user, task_id in ((self.ben.id, task.id), (self.ana.id, 10**15)):
            with self.assertRaises(NotFound):
                await self.store.cancel(user, task_id)
        self.assertEqual(await self.get(task), task)

    async def test_cancel_comes_too_late(self) -> None:
        for state in (State.COMPLETED, State.FAILED):
            task = await self.in_state(state)
            with self.assertRaisesRegex(Conflict, f"task {task.id} is {state.value}: too late"):
                await self.store.cancel(self.ana.id, task.id)
            self.assertEqual(await self.get(task), task)

    async def test_find_tasks_returns_the_tasks_of_all_users(self) -> None:
        [mine], [theirs] = await self.create(), await self.create(user=self.ben)
        found = await self.store.find_tasks([mine.id, theirs.id, 10**15])
        self.assertEqual({t.id: t for t in found}, {mine.id: mine, theirs.id: theirs})
        self.assertEqual(list(await self.store.find_tasks([])), [])

    async def test_get_tasks_returns_only_the_users_own(self) -> None:
        mine, theirs = await self.create(2), await self.create(2, user=self.ben)
        ids = [t.id for t in (*mine, *theirs)]
        found = await self.store.get_tasks(self.ana.id, [*ids, 10**15])
        self.assertEqual(sorted(t.id for t in found), [t.id for t in mine])
        self.assertEqual(list(await self.store.get_tasks(self.ana.id, [])), [])

    async def test_retry(self) -> None:
        for state in (State.FAILED, State.CANCELLED):
            [task] = await self.running(max_attempts=0)
            await self.set_losses(task.id, 2)
            await self.report(task, "line", progress=0.5, note="half")
            if state is State.FAILED:
                await self.finish(task, state=state, error="broke", result="1")
            else:
                await self.store.cancel(self.ana.id, task.id)
            before = await self.get(task)
            back = await self.store.retry(self.ana.id, task.id)
            self.assertEqual((back.state, back.attempt, back.version), (State.WAITING, 0, before.version + 1))
            self.assertEqual((back.dispatch, back.max_attempts, back.losses), (1, 3, 0))
            for cleared in (back.error, back.result, back.progress, back.note, back.started_at, back.finished_at):
                self.assertIsNone(cleared)
            self.assertGreaterEqual(back.run_at, before.run_at)
            self.assertEqual(await self.get(task), back)
            # its old attempt is fenced, and its log and failed attempts are still there
            self.assertIsNone(await self.finish(task))
            self.assertFalse(await self.report(task, "late", first_line=2))
            self.assertEqual(await self.claim([task]), [])
            self.assertEqual(await self.log(task), [((1, 1, 1), ["line"])])
            self.assertEqual(len(await self.store.failed_attempts(task.id)), state is State.FAILED)
            again = await self.next_attempt("v")
            self.assertEqual((again.id, again.attempt, again.dispatch), (task.id, 1, 2))
            await self.finish(again, "v", state=State.FAILED, error="broke again")
            errors = [f.error for f in await self.store.failed_attempts(task.id)]
            self.assertEqual(errors, ["broke", "broke again"] if state is State.FAILED else ["broke again"])

    async def test_retry_of_a_task_that_was_cancelled_before_its_run_at(self) -> None:
        [task] = await self.create(state=State.WAITING)
        await self.postpone(task.id)
        await self.store.cancel(self.ana.id, task.id)
        back = await self.store.retry(self.ana.id, task.id)
        self.assertLess(back.run_at, task.created_at + timedelta(minutes=10))
        self.assertEqual([t.id for t in (await self.dispatch()).tasks], [task.id])

    async def test_retry_in_any_other_state_is_a_conflict(self) -> None:
        for state in (State.WAITING, State.QUEUED, State.RUNNING, State.COMPLETED):
            task = await self.in_state(state)
            with self.assertRaisesRegex(Conflict, f"task {task.id} is {state.value}: only a failed or cancelled"):
                await self.store.retry(self.ana.id, task.id)
            self.assertEqual(await self.get(task), task)

    async def test_retry_of_another_users_task_is_not_found(self) -> None:
        task = await self.in_state(State.FAILED)
        for user, task_id in ((self.ben.id, task.id), (self.ana.id, 10**15), (self.ana.id, 10**30), (self.ana.id, -1)):
            with self.assertRaises(NotFound):
                await self.store.retry(user, task_id)
        self.assertEqual(await self.get(task), task)

    async def test_old_tasks_are_deleted_with_their_logs_and_attempts(self) -> None:
        old, young, open_one, waiting = await self.running(3) + await self.create(1, State.WAITING)
        for task in (old, young, open_one):
            await self.report(task, "line")
        for task in (old, young):
            await self.finish(task, state=State.FAILED, error="broke")
        await self.backdate(old.id, 1000, 200)
        await self.backdate(young.id, 1000, 50)
        await self.backdate(open_one.id, 1000)
        await self.backdate(waiting.id, 1000)
        self.assertEqual(await self.count_rows(), (4, 3, 2))
        self.assertEqual(await self.store.delete_finished(100, 0, 10), (1, None))
        self.assertEqual(await self.count_rows(), (3, 2, 1))
        self.assertEqual(list(await self.store.find_tasks([old.id])), [])
        self.assertEqual(await self.log(old), [])
        self.assertEqual(list(await self.store.failed_attempts(old.id)), [])
        self.assertEqual(len(await self.store.failed_attempts(young.id)), 1)
        self.assertEqual(await self.store.delete_finished(100, 0, 10), (0, None))

    async def test_deletion_continues_after_the_last_task_read(self) -> None:
        tasks = await self.running(6)
        for task in (*tasks[:2], *tasks[3:]):
            await self.finish(task)
            await self.backdate(task.id, 1000, 1000)
        await self.backdate(tasks[2].id, 1000)
        self.assertEqual(await self.store.delete_finished(100, 0, 2), (2, tasks[1].id))
        self.assertEqual(await self.store.delete_finished(100, tasks[1].id, 2), (1, tasks[3].id))
        self.assertEqual(await self.store.delete_finished(100, tasks[3].id, 2), (2, tasks[5].id))
        self.assertEqual(await self.store.delete_finished(100, tasks[5].id, 2), (0, None))
        self.assertEqual((await self.get(tasks[2])).id, tasks[2].id)

    async def test_deletion_ends_at_the_first_young_task(self) -> None:
        old, young, behind = [await self.in_state(State.COMPLETED) for _ in range(3)]
        await self.backdate(old.id, 1000, 1000)
        await self.backdate(behind.id, 1000, 1000)
        self.assertEqual(await self.store.delete_finished(100, 0, 2), (1, None))
        self.assertEqual(len(await self.store.find_tasks([young.id, behind.id])), 2)

    async def test_ids_of_deleted_tasks_are_not_used_again(self) -> None:
        tasks = await self.running(3)
        for task in tasks:
            await self.finish(task)
            await self.backdate(task.id, 1000, 1000)
        await self.store.delete_finished(100, 0, 10)
        [task] = await self.create()
        self.assertGreater(task.id, tasks[-1].id)

    async def test_outbox_rows_of_deleted_tasks_do_no_harm(self) -> None:
        batch = new_batch()
        rows = [NewTask(self.ana.id, f"t{i}", queue="q", state=State.QUEUED) for i in range(2)]
        deleted, left = await self.store.create_tasks(batch, rows)
        await self.store.cancel(self.ana.id, deleted.id)
        await self.backdate(deleted.id, 1000, 1000)
        await self.store.delete_finished(100, 0, 10)
        [taken] = await self.store.adopt_stale(0, 10)
        self.assertEqual([m.task_id for m in taken.messages[Q]], [left.id])
        self.assertEqual([t.id for t in await self.store.create_tasks(batch, rows)], [left.id])
