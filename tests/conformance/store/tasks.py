"""The suite of ITaskStore: cancel, retry, read, delete."""

from __future__ import annotations

import random
from datetime import timedelta

from msgspec.structs import replace

from taskd.model.errors import Conflict, NotFound
from taskd.model.limits import LISTED_RESULT_BYTES
from taskd.model.states import State
from taskd.ports.logs import Report
from taskd.ports.tasks import TaskQuery, TaskState
from tests.conformance.store.case import StoreCase


class TaskTests(StoreCase):
    """The suite of ITaskStore: cancel, retry, read, delete."""

    async def test_cancel(self) -> None:
        for state in (State.WAITING, State.QUEUED, State.RUNNING):
            task = await self.in_state(state)
            held = await self.standing()
            cancelled = await self.store.cancel(self.ana.id, task.id)
            self.assertEqual((cancelled.state, cancelled.version), (State.CANCELLED, task.version + 1))
            self.assertEqual((cancelled.worker, cancelled.attempt), (task.worker, task.attempt))
            self.assertIsNotNone(cancelled.finished_at)
            self.assertEqual(await self.get(task), cancelled)
            self.assertEqual(await self.store.cancel(self.ana.id, task.id), cancelled)
            # what a worker holds stays held
            self.assertEqual(await self.standing(), [(id_, dispatch, False) for id_, dispatch, _ in held])
            self.assertEqual(await self.begin([task]), [])
            await self.release([task])
        self.assertEqual(await self.due(), [])

    async def test_cancel_of_a_running_task_fences_its_attempt(self) -> None:
        [task] = await self.running()
        await self.store.report("w", [Report(task.id, 1, 1, 0.5, "half")])
        cancelled = await self.store.cancel(self.ana.id, task.id)
        # the progress stays
        self.assertEqual((cancelled.progress, cancelled.note, cancelled.attempt), (0.5, "half", 1))
        for state in (State.COMPLETED, State.FAILED, State.WAITING):
            for again in (False, True):
                self.assertIsNone(await self.finish(task, state=state, again=again))
        self.assertFalse(await self.report(task, "late"))
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

    async def test_find_states_returns_the_states_of_all_users(self) -> None:
        tasks = [await self.in_state(state) for state in State]
        tasks += await self.create(user=self.ben)
        found = await self.store.find_states([*(t.id for t in tasks), tasks[0].id, 10**15, 10**30, 0, -1])
        self.assertEqual(sorted(found), [TaskState(t.id, t.user_id, t.state, t.version) for t in tasks])
        self.assertEqual(list(await self.store.find_states([])), [])

    async def test_a_listed_result_is_whole_up_to_its_limit(self) -> None:
        noise = random.Random(1).randbytes(100_000).hex()  # hardly compressible
        for size in (LISTED_RESULT_BYTES, LISTED_RESULT_BYTES + 1, LISTED_RESULT_BYTES + 9, 200_000):
            for text in ("x" * size, noise[:size]):
                result = f'"{text[2:]}"'
                [task] = await self.running()
                await self.finish(task, result=result)
                [listed] = await self.store.get_listed(self.ana.id, [task.id])
                if size <= LISTED_RESULT_BYTES:
                    self.assertEqual(listed.result, result)
                else:
                    self.assertEqual(len(listed.result or ""), LISTED_RESULT_BYTES + 1)
                self.assertEqual((await self.store.list_tasks(self.ana.id, TaskQuery(1))).tasks, [listed])

    async def test_tasks_are_read_as_lists_have_them(self) -> None:
        small, large = await self.running(2, payload='{"x":1}')
        [theirs] = await self.create(user=self.ben)
        await self.finish(small, result='["ñ"]')
        await self.finish(large, result='"' + "x" * 100_000 + '"')
        ids = [small.id, large.id, theirs.id, 10**15]
        listed = sorted(await self.store.get_listed(self.ana.id, [*ids, 10**30]), key=lambda t: t.id)
        self.assertEqual([t.id for t in listed], [small.id, large.id])
        self.assertEqual(listed[0], replace(await self.get(small), payload="{}"))
        self.assertEqual(len(listed[1].result or ""), LISTED_RESULT_BYTES + 1)
        whole = await self.get(large)
        self.assertEqual(replace(listed[1], result=None), replace(whole, payload="{}", result=None))
        found = sorted(await self.store.find_tasks(ids), key=lambda t: t.id)
        self.assertEqual(found, [*listed, theirs])

    async def test_get_tasks_returns_only_the_users_own(self) -> None:
        mine, theirs = await self.create(2), await self.create(2, user=self.ben)
        ids = [t.id for t in (*mine, *theirs)]
        found = await self.store.get_tasks(self.ana.id, [*ids, 10**15])
        self.assertEqual(sorted(t.id for t in found), [t.id for t in mine])
        self.assertEqual(list(await self.store.get_tasks(self.ana.id, [])), [])

    async def test_retry(self) -> None:
        for state in (State.FAILED, State.CANCELLED):
            [task] = await self.running(max_attempts=5)
            await self.set_losses(task.id, 2)
            await self.report(task, "line", progress=0.5, note="half")
            if state is State.FAILED:
                await self.finish(task, state=state, error="broke", result="1")
            else:
                await self.store.cancel(self.ana.id, task.id)
                await self.release([task])
            before = await self.get(task)
            back = await self.store.retry(self.ana.id, task.id)
            self.assertEqual((back.state, back.attempt, back.version), (State.WAITING, 0, before.version + 1))
            self.assertEqual((back.dispatch, back.max_attempts, back.losses), (1, 5, 0))
            for cleared in (back.error, back.result, back.progress, back.note, back.started_at, back.finished_at):
                self.assertIsNone(cleared)
            self.assertIsNone(back.worker)
            self.assertGreaterEqual(back.run_at, before.run_at)
            self.assertEqual(await self.get(task), back)
            # its old attempt is fenced, and its log and failed attempts are still there
            self.assertIsNone(await self.finish(task))
            self.assertFalse(await self.report(task, "late", first_line=2))
            self.assertEqual(await self.begin([task]), [])
            self.assertEqual(await self.log(task), [((1, 1, 1), ["line"])])
            self.assertEqual(len(await self.store.failed_attempts(task.id)), state is State.FAILED)
            again = await self.next_attempt("v")
            self.assertEqual((again.id, again.attempt, again.dispatch), (task.id, 1, 2))
            await self.finish(again, "v", state=State.FAILED, error="broke again")
            errors = [f.error for f in await self.store.failed_attempts(task.id)]
            self.assertEqual(errors, ["broke", "broke again"] if state is State.FAILED else ["broke again"])

    async def test_retry_of_a_held_task_waits_until_its_worker_has_dropped_it(self) -> None:
        for make in (self.queued, self.running):
            [task] = await make()
            await self.report(task, progress=0.5)
            await self.store.cancel(self.ana.id, task.id)
            back = await self.store.retry(self.ana.id, task.id)
            self.assertEqual((back.state, back.attempt, back.dispatch), (State.WAITING, 0, 1))
            self.assertIsNone(back.started_at or back.finished_at or back.progress)
            self.assertEqual(await self.standing(), [(task.id, 1, False)])
            self.assertEqual(await self.look(), [])
            self.assertEqual(await self.due(), [])
            self.assertIsNone(await self.finish(task))
            self.assertFalse(await self.report(task, "late"))
            # the owner may change its mind as often as it likes
            await self.store.cancel(self.ana.id, task.id)
            await self.store.retry(self.ana.id, task.id)
            self.assertEqual(await self.standing(), [(task.id, 1, False)])
            await self.release([task])
            again = await self.next_attempt()
            self.assertEqual((again.id, again.attempt, again.dispatch), (task.id, 1, 2))
            self.assertIsNone(await self.finish(task))
            await self.finish(again)

    async def test_retry_of_a_task_that_was_cancelled_before_its_run_at(self) -> None:
        [task] = await self.create()
        await self.postpone(task.id)
        await self.store.cancel(self.ana.id, task.id)
        back = await self.store.retry(self.ana.id, task.id)
        self.assertLess(back.run_at, task.created_at + timedelta(minutes=10))
        self.assertEqual(await self.due(), [task.id])

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
        old, young, open_one, waiting = await self.running(3) + await self.create()
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
