"""The suite of IAttemptStore: attempts that failed or were lost, and their retries."""

from __future__ import annotations

from datetime import timedelta

from taskd.model.states import State
from taskd.model.tasks import FailedAttempt
from taskd.ports.attempts import Claim, Outcome
from taskd.ports.logs import Report
from tests.conformance.store.case import TEXTS, Q, StoreCase

LOST = "lease expired on attempt {} of {}: the worker stopped answering"


class RetryTests(StoreCase):
    """The suite of IAttemptStore: attempts that failed or were lost, and their retries."""

    async def test_a_retry_waits_for_its_time(self) -> None:
        [task] = await self.running()
        await self.store.report("w", [Report(task.id, 1, 1, 0.5, "half")])
        finished = await self.retry_later(task, delay=60.5)
        back = await self.get(task)
        self.assertEqual((back.state, back.attempt, back.dispatch, back.version), (State.WAITING, 1, 1, 3))
        self.assertEqual((back.error, back.result, back.progress, back.note), ("it broke", None, None, None))
        self.assertIsNone(back.started_at or back.finished_at)
        self.assertEqual(tuple(finished), (3, None, back.run_at))
        [failed] = await self.store.failed_attempts(task.id)
        self.assertEqual(back.run_at - failed.ended_at, timedelta(seconds=60.5))
        self.assertEqual(list((await self.dispatch()).tasks), [])
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

    async def test_the_last_attempt_need_not_be_alone_after_a_failed_one(self) -> None:
        [task] = await self.running(max_attempts=2)
        await self.retry_later(task, delay=0)
        [queued] = (await self.dispatch()).tasks
        self.assertEqual(queued.error, "it broke")
        [again] = await self.store.claim("v", 60, [Claim(queued.id, queued.dispatch, False)])
        self.assertEqual((again.attempt, again.error), (2, None))

    async def test_a_retry_without_delay_is_due_at_once(self) -> None:
        for delay in (0.0, -5.0):
            [task] = await self.running()
            finished = await self.retry_later(task, delay=delay)
            [failed] = await self.store.failed_attempts(task.id)
            self.assertEqual(finished.run_at, failed.ended_at)
            self.assertEqual([t.id for t in (await self.dispatch()).tasks], [task.id])

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
        [task] = await self.create()
        [task] = await self.store.claim("w", 0, [Claim(task.id, 1, False)])
        await self.store.expire_leases(10)
        self.assertIsNone(await self.retry_later(task, again=True))

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

    async def test_lost_attempts_are_recorded_as_failed(self) -> None:
        tasks = await self.create(1, max_attempts=2) + await self.create(1, max_attempts=1)
        claimed = {t.id: t for t in await self.store.claim("w", 0, [Claim(t.id, 1, False) for t in tasks])}
        await self.store.report("w", [Report(t.id, 1, 1, 0.5, "half") for t in tasks])
        self.assertEqual(len(await self.store.expire_leases(10)), 2)
        for task, most in zip(tasks, (2, 1), strict=True):
            [lost] = await self.store.failed_attempts(task.id)
            expected = FailedAttempt(1, 1, "w", claimed[task.id].started_at, lost.ended_at, LOST.format(1, most), None)
            self.assertEqual(lost, expected)
            after = await self.get(task)
            # a waiting task has an error only when its attempt failed, not when it was lost
            self.assertEqual(after.error, None if after.state is State.WAITING else lost.error)
            # a retry starts without progress
            self.assertEqual(after.progress, None if after.state is State.WAITING else 0.5)
            self.assertEqual(after.note, None if after.state is State.WAITING else "half")

    async def test_an_attempt_that_is_taken_over_is_recorded_as_lost(self) -> None:
        taken, last, held = await self.create(3, max_attempts=3)
        before = {t.id: t for t in await self.claim([taken, last, held], "one")}
        await self.store.report("one", [Report(t.id, 1, 1, 0.5, "half") for t in (taken, last, held)])
        again = [*await self.claim([taken, last, last], "two", True), *await self.claim([held], "one", True)]
        for task in again:
            lost = await self.store.failed_attempts(task.id)
            if task.id == held.id:
                self.assertEqual((task.attempt, task.progress, task.note, lost), (1, 0.5, "half", []))
                continue
            self.assertEqual((task.attempt, task.progress, task.note), (2, None, None))
            at, error = before[task.id].started_at, "attempt 1 of 3 was lost: its worker ended or was cut off"
            self.assertEqual(lost, [FailedAttempt(1, 1, "one", at, lost[0].ended_at, error, None)])
        # an attempt that is not taken over is not recorded as lost: the last one waits for its lease or an alone claim
        self.assertEqual(await self.claim([last], "three", True), [])
        self.assertEqual(len(await self.store.failed_attempts(last.id)), 1)
        await self.store.claim("three", 60, [Claim(last.id, 1, True, alone=True)])
        self.assertEqual(await self.claim([last], "four", True), [])
        self.assertEqual([f.attempt for f in await self.store.failed_attempts(last.id)], [1, 2])

    async def test_reset_records_failed_attempts(self) -> None:
        [task] = await self.running()
        [queued] = await self.create()
        await self.store.reset_in_flight()
        [lost] = await self.store.failed_attempts(task.id)
        self.assertEqual((lost.worker, lost.started_at, lost.error), ("w", task.started_at, LOST.format(1, 3)))
        self.assertEqual(list(await self.store.failed_attempts(queued.id)), [])

    async def test_a_released_attempt_is_not_recorded(self) -> None:
        [task] = await self.running()
        await self.store.report("w", [Report(task.id, 1, 1, 0.5, "half")])
        [given] = await self.store.release("w", [Claim(task.id, 1, False)])
        self.assertIsNone(given.progress or given.note)
        self.assertEqual(list(await self.store.failed_attempts(task.id)), [])
