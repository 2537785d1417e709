"""The suite of IAttemptStore: attempts that failed, and their retries."""

from __future__ import annotations

from datetime import timedelta

from taskd.model.states import State
from taskd.model.tasks import FailedAttempt
from taskd.ports.attempts import Outcome
from taskd.ports.logs import Report
from tests.conformance.store.case import TEXTS, Q, StoreCase


class RetryTests(StoreCase):
    """The suite of IAttemptStore: attempts that failed, and their retries."""

    async def test_a_retry_waits_for_its_time(self) -> None:
        [task] = await self.running()
        await self.store.report("w", [Report(task.id, 1, 1, 0.5, "half")])
        finished = await self.retry_later(task, delay=60.5)
        back = await self.get(task)
        self.assertEqual((back.state, back.attempt, back.dispatch, back.version), (State.WAITING, 1, 1, 3))
        self.assertEqual((back.error, back.result, back.progress, back.note), ("it broke", None, None, None))
        self.assertIsNone(back.started_at or back.finished_at)
        self.assertEqual(tuple(finished), (3, None, None, back.run_at))
        [failed] = await self.store.failed_attempts(task.id)
        self.assertEqual(back.run_at - failed.ended_at, timedelta(seconds=60.5))
        self.assertEqual(await self.due(), [])
        self.assertEqual(list(await self.store.promote(10)), [])
        self.assertEqual(await self.pages(state="retrying"), [task.id])
        # its time comes
        await self.postpone(task.id, -1)
        self.assertEqual(list(await self.store.promote(10)), [(Q, self.ana.id)])
        again = await self.next_attempt("v")
        self.assertEqual((again.attempt, again.dispatch, again.error), (2, 2, None))
        await self.finish(again, "v")
        done = await self.get(task)
        self.assertEqual((done.state, done.error), (State.COMPLETED, None))

    async def test_a_retry_without_delay_is_due_at_once(self) -> None:
        for delay in (0.0, -5.0):
            [task] = await self.running()
            finished = await self.retry_later(task, delay=delay)
            [failed] = await self.store.failed_attempts(task.id)
            self.assertEqual(finished.run_at, failed.ended_at)
            self.assertEqual(await self.due(), [task.id])

    async def test_a_batch_may_end_in_every_way(self) -> None:
        tasks = await self.running(6)
        ways = (State.COMPLETED, State.WAITING, State.FAILED) * 2
        outcomes = [Outcome(t.id, 1, 1, way, error="x") for t, way in zip(tasks, ways, strict=True)]
        finished = await self.store.finish("w", list(reversed(outcomes)))
        self.assertEqual(set(finished), {t.id for t in tasks})
        for task, way in zip(tasks, ways, strict=True):
            after = await self.get(task)
            self.assertIs(after.state, way)
            self.assertEqual(after.error, None if way is State.COMPLETED else "x")
            self.assertEqual(finished[task.id].finished_at, after.finished_at)
            self.assertEqual(finished[task.id].run_at, after.run_at if way is State.WAITING else None)
            self.assertEqual(len(await self.store.failed_attempts(task.id)), way is not State.COMPLETED)
        # the same batch again, when it may have been committed
        self.assertEqual(await self.store.finish("w", outcomes), {})
        self.assertEqual(await self.store.finish("w", outcomes, True), finished)

    async def test_a_failed_task_keeps_its_progress(self) -> None:
        [task] = await self.running()
        await self.store.report("w", [Report(task.id, 1, 1, 0.25, "quarter")])
        await self.finish(task, state=State.FAILED, error="no", result='{"exit":1}')
        failed = await self.get(task)
        self.assertEqual((failed.progress, failed.note, failed.result), (0.25, "quarter", '{"exit":1}'))
        self.assertIsNotNone(failed.started_at)

    async def test_a_retry_is_fenced(self) -> None:
        [task] = await self.running()
        for dispatch, attempt, worker in ((2, 1, "w"), (1, 0, "w"), (1, 2, "w"), (1, 1, "v")):
            outcome = Outcome(task.id, dispatch, attempt, State.WAITING, None, "it broke")
            for again in (False, True):
                self.assertEqual(await self.store.finish(worker, [outcome], again), {})
        self.assertEqual(await self.get(task), task)
        self.assertEqual(list(await self.store.failed_attempts(task.id)), [])

    async def test_a_repeated_retry_counts_once_even_when_the_task_has_moved_on(self) -> None:
        [task] = await self.running()
        first = await self.retry_later(task)
        self.assertIsNone(await self.retry_later(task))
        self.assertEqual(await self.retry_later(task, again=True), first)
        # only the same outcome counts
        self.assertIsNone(await self.retry_later(task, again=True, error="another reason"))
        self.assertIsNone(await self.finish(task, state=State.FAILED, error="it broke", again=True))
        self.assertIsNone(await self.finish(task, again=True))
        again = await self.next_attempt()
        repeated = await self.retry_later(task, again=True)
        # it counts, but must not be announced: the task has moved on since
        self.assertEqual((repeated.version, repeated.finished_at), (0, None))
        self.assertEqual(await self.get(task), again)
        self.assertEqual(len(await self.store.failed_attempts(task.id)), 1)

    async def test_an_attempt_that_was_lost_was_not_finished(self) -> None:
        for most in (1, 3):
            [task] = await self.running(worker=f"w{most}", max_attempts=most)
            await self.fence(f"w{most}")
            for state in (State.WAITING, State.FAILED, State.COMPLETED):
                self.assertIsNone(await self.finish(task, f"w{most}", again=True, state=state, error="it broke"))

    async def test_failed_attempts_are_recorded(self) -> None:
        [task] = await self.running(max_attempts=9)
        trace = "Traceback\n  " + "\n  ".join(TEXTS)
        await self.retry_later(task, error="first", trace=trace + "\0\ud800")
        second = await self.next_attempt("v")
        await self.finish(second, "v", state=State.FAILED, error="nul\0and \ud800")
        one, two = await self.store.failed_attempts(task.id)
        self.assertEqual(one, FailedAttempt(1, 1, "w", task.started_at, one.ended_at, "first", trace + "?"))
        self.assertEqual(two, FailedAttempt(2, 2, "v", second.started_at, two.ended_at, "nuland ?", None))
        self.assertEqual(two.ended_at, (await self.get(task)).finished_at)
        self.assertEqual(list(await self.store.failed_attempts(10**15)), [])

    async def test_an_attempt_without_a_reason_is_recorded_too(self) -> None:
        [task] = await self.running()
        await self.finish(task, state=State.FAILED)
        [failed] = await self.store.failed_attempts(task.id)
        self.assertEqual((failed.error, failed.trace), ("", None))

    async def test_the_last_hundred_are_shown_oldest_first(self) -> None:
        [task] = await self.running(max_attempts=500)
        for n in range(1, 104):
            await self.retry_later(task, error=f"no. {n}")
            task = await self.next_attempt()
        errors = [f.error for f in await self.store.failed_attempts(task.id)]
        self.assertEqual(errors, [f"no. {n}" for n in range(4, 104)])

    async def test_a_released_attempt_is_not_recorded(self) -> None:
        [task] = await self.running()
        await self.store.report("w", [Report(task.id, 1, 1, 0.5, "half")])
        [given] = await self.release([task])
        self.assertIsNone(given.progress or given.note)
        self.assertEqual(list(await self.store.failed_attempts(task.id)), [])
