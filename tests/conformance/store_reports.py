"""The suite of IStore, second part: what failed and is tried again, what is said of it, who runs it, what is
deleted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from taskd.model.errors import Conflict, NotFound
from taskd.model.states import State
from taskd.model.tasks import FailedAttempt, NewTask, Task
from taskd.ports.attempts import Claim, Outcome
from taskd.ports.logs import LogPlace, Report
from taskd.ports.tasks import TaskQuery
from taskd.ports.workers import KindInfo, WorkerInfo
from tests.conformance.store import TEXTS, Q, StoreCase, new_batch

LOST = "lease expired on attempt {} of {}: the worker stopped answering"


class ReportTests(StoreCase):
    """What every store keeps to."""

    # -- helpers

    async def try_again(self, task: Task, worker: str = "w", again: bool = False, **kw: Any) -> Any:
        """Have an attempt end that is to be tried again."""
        return await self.finish(task, worker, again, state=State.WAITING, **{"error": "it broke", **kw})

    async def next_attempt(self, worker: str = "w") -> Task:
        """Dispatch and claim what is due."""
        [task] = (await self.dispatch()).tasks
        [task] = await self.claim([task], worker)
        return task

    async def say(self, task: Task, *lines: str, worker: str = "w", **kw: Any) -> bool:
        report = Report(task.id, task.dispatch, task.attempt, lines=lines, **kw)
        return await self.store.report(worker, [report]) == {task.id}

    async def log(self, task: Task, after: tuple[int, int, int] | None = None, limit: int = 100) -> list[Any]:
        """Places and lines."""
        place = None if after is None else LogPlace(*after)
        return [(tuple(c.place), list(c.lines)) for c in await self.store.read_log(task.id, place, limit)]

    # -- to be tried again

    async def test_what_is_to_be_tried_again_waits_for_its_moment(self) -> None:
        [task] = await self.running()
        await self.store.report("w", [Report(task.id, 1, 1, 0.5, "half")])
        finished = await self.try_again(task, delay=60.5)
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
        # its moment has come
        await self.postpone(task.id, -1)
        self.assertEqual(list(await self.store.promote(10)), [(Q, self.ana.id)])
        again = await self.next_attempt("v")
        self.assertEqual((again.attempt, again.dispatch, again.error), (2, 2, None))
        await self.finish(again, "v")
        done = await self.get(task)
        self.assertEqual((done.state, done.error), (State.COMPLETED, None))

    async def test_the_last_attempt_need_not_be_alone_when_the_one_before_failed_by_itself(self) -> None:
        [task] = await self.running(max_attempts=2)
        await self.try_again(task, delay=0)
        [queued] = (await self.dispatch()).tasks
        self.assertEqual(queued.error, "it broke")
        [again] = await self.store.claim("v", 60, [Claim(queued.id, queued.dispatch, False)])
        self.assertEqual((again.attempt, again.error), (2, None))

    async def test_without_a_delay_it_is_due_at_once(self) -> None:
        for delay in (0.0, -5.0):
            [task] = await self.running()
            finished = await self.try_again(task, delay=delay)
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
        # the same again, when it is known that it may have been done
        self.assertEqual(await self.store.finish("w", outcomes), {})
        self.assertEqual(await self.store.finish("w", outcomes, True), finished)

    async def test_a_failed_task_keeps_how_far_it_was(self) -> None:
        [task] = await self.running()
        await self.store.report("w", [Report(task.id, 1, 1, 0.25, "quarter")])
        await self.finish(task, state=State.FAILED, error="no", result='{"exit":1}')
        failed = await self.get(task)
        self.assertEqual((failed.progress, failed.note, failed.result), (0.25, "quarter", '{"exit":1}'))
        self.assertIsNotNone(failed.started_at)

    async def test_trying_again_is_fenced(self) -> None:
        [task] = await self.running()
        for dispatch, attempt, worker in ((2, 1, "w"), (1, 0, "w"), (1, 2, "w"), (1, 1, "v")):
            outcome = Outcome(task.id, dispatch, attempt, State.WAITING, None, "it broke")
            for again in (False, True):
                self.assertEqual(await self.store.finish(worker, [outcome], again), {})
        self.assertEqual(await self.get(task), task)
        self.assertEqual(list(await self.store.failed_attempts(task.id)), [])

    async def test_trying_again_repeated_counts_once_even_when_it_has_gone_on(self) -> None:
        [task] = await self.running()
        first = await self.try_again(task)
        self.assertIsNone(await self.try_again(task))
        self.assertEqual(await self.try_again(task, again=True), first)
        # only what was finished so
        self.assertIsNone(await self.try_again(task, again=True, error="another reason"))
        self.assertIsNone(await self.finish(task, state=State.FAILED, error="it broke", again=True))
        self.assertIsNone(await self.finish(task, again=True))
        again = await self.next_attempt()
        told = await self.try_again(task, again=True)
        # it counts, and there is nothing to tell: others have told of what came behind it
        self.assertEqual((told.version, told.finished_at), (0, None))
        self.assertEqual(await self.get(task), again)
        self.assertEqual(len(await self.store.failed_attempts(task.id)), 1)

    async def test_an_attempt_that_was_lost_was_not_finished(self) -> None:
        [task] = await self.create()
        [task] = await self.store.claim("w", 0, [Claim(task.id, 1, False)])
        await self.store.expire_leases(10)
        self.assertIsNone(await self.try_again(task, again=True))

    # -- failed attempts

    async def test_failed_attempts_are_kept(self) -> None:
        [task] = await self.running(max_attempts=9)
        trace = "Traceback\n  " + "\n  ".join(TEXTS)
        await self.try_again(task, error="first", trace=trace + "\0\ud800")
        second = await self.next_attempt("v")
        await self.finish(second, "v", state=State.FAILED, error="nul\0and \ud800")
        one, two = await self.store.failed_attempts(task.id)
        self.assertEqual(one, FailedAttempt(1, 1, "w", task.started_at, one.ended_at, "first", trace + "?"))
        self.assertEqual(two, FailedAttempt(2, 2, "v", second.started_at, two.ended_at, "nuland ?", None))
        self.assertEqual(two.ended_at, (await self.get(task)).finished_at)
        self.assertEqual(list(await self.store.failed_attempts(10**15)), [])

    async def test_an_attempt_that_says_no_reason_is_kept_too(self) -> None:
        [task] = await self.running()
        await self.finish(task, state=State.FAILED)
        [failed] = await self.store.failed_attempts(task.id)
        self.assertEqual((failed.error, failed.trace), ("", None))

    async def test_the_last_hundred_are_shown_oldest_first(self) -> None:
        [task] = await self.running(max_attempts=500)
        for n in range(1, 104):
            await self.try_again(task, error=f"no. {n}")
            task = await self.next_attempt()
        errors = [f.error for f in await self.store.failed_attempts(task.id)]
        self.assertEqual(errors, [f"no. {n}" for n in range(4, 104)])

    async def test_lost_attempts_are_failed_ones(self) -> None:
        tasks = await self.create(1, max_attempts=2) + await self.create(1, max_attempts=1)
        claimed = {t.id: t for t in await self.store.claim("w", 0, [Claim(t.id, 1, False) for t in tasks])}
        await self.store.report("w", [Report(t.id, 1, 1, 0.5, "half") for t in tasks])
        self.assertEqual(len(await self.store.expire_leases(10)), 2)
        for task, most in zip(tasks, (2, 1), strict=True):
            [lost] = await self.store.failed_attempts(task.id)
            expected = FailedAttempt(1, 1, "w", claimed[task.id].started_at, lost.ended_at, LOST.format(1, most), None)
            self.assertEqual(lost, expected)
            after = await self.get(task)
            # an error of a task that waits says that an attempt has failed by itself
            self.assertEqual(after.error, None if after.state is State.WAITING else lost.error)
            # what is tried again begins anew
            self.assertEqual(after.progress, None if after.state is State.WAITING else 0.5)
            self.assertEqual(after.note, None if after.state is State.WAITING else "half")

    async def test_an_attempt_that_is_taken_over_is_a_lost_one(self) -> None:
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
        # nor is one lost that is not taken over: the last one waits for its lease, or to be alone
        self.assertEqual(await self.claim([last], "three", True), [])
        self.assertEqual(len(await self.store.failed_attempts(last.id)), 1)
        await self.store.claim("three", 60, [Claim(last.id, 1, True, alone=True)])
        self.assertEqual(await self.claim([last], "four", True), [])
        self.assertEqual([f.attempt for f in await self.store.failed_attempts(last.id)], [1, 2])

    async def test_reset_leaves_failed_attempts_behind(self) -> None:
        [task] = await self.running()
        [queued] = await self.create()
        await self.store.reset_in_flight()
        [lost] = await self.store.failed_attempts(task.id)
        self.assertEqual((lost.worker, lost.started_at, lost.error), ("w", task.started_at, LOST.format(1, 3)))
        self.assertEqual(list(await self.store.failed_attempts(queued.id)), [])

    async def test_what_is_given_back_was_no_failed_attempt(self) -> None:
        [task] = await self.running()
        await self.store.report("w", [Report(task.id, 1, 1, 0.5, "half")])
        [given] = await self.store.release("w", [Claim(task.id, 1, False)])
        self.assertIsNone(given.progress or given.note)
        self.assertEqual(list(await self.store.failed_attempts(task.id)), [])

    # -- retry

    async def test_retry(self) -> None:
        for state in (State.FAILED, State.CANCELLED):
            [task] = await self.running(max_attempts=0)
            await self.say(task, "line", progress=0.5, note="half")
            if state is State.FAILED:
                await self.finish(task, state=state, error="broke", result="1")
            else:
                await self.store.cancel(self.ana.id, task.id)
            before = await self.get(task)
            back = await self.store.retry(self.ana.id, task.id)
            self.assertEqual((back.state, back.attempt, back.version), (State.WAITING, 0, before.version + 1))
            self.assertEqual((back.dispatch, back.max_attempts), (1, 3))
            for gone in (back.error, back.result, back.progress, back.note, back.started_at, back.finished_at):
                self.assertIsNone(gone)
            self.assertGreaterEqual(back.run_at, before.run_at)
            self.assertEqual(await self.get(task), back)
            # what still runs of it is fenced, and what was is still there
            self.assertIsNone(await self.finish(task))
            self.assertFalse(await self.say(task, "late", first_line=2))
            self.assertEqual(await self.claim([task], redelivered=True), [])
            self.assertEqual(await self.log(task), [((1, 1, 1), ["line"])])
            self.assertEqual(len(await self.store.failed_attempts(task.id)), state is State.FAILED)
            again = await self.next_attempt("v")
            self.assertEqual((again.id, again.attempt, again.dispatch), (task.id, 1, 2))
            await self.finish(again, "v", state=State.FAILED, error="broke again")
            errors = [f.error for f in await self.store.failed_attempts(task.id)]
            self.assertEqual(errors, ["broke", "broke again"] if state is State.FAILED else ["broke again"])

    async def test_retry_of_a_task_that_was_cancelled_before_its_moment(self) -> None:
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

    async def test_retry_of_anothers_task_is_not_found(self) -> None:
        task = await self.in_state(State.FAILED)
        for user, task_id in ((self.ben.id, task.id), (self.ana.id, 10**15), (self.ana.id, 10**30), (self.ana.id, -1)):
            with self.assertRaises(NotFound):
                await self.store.retry(user, task_id)
        self.assertEqual(await self.get(task), task)

    # -- progress

    async def test_progress_and_note(self) -> None:
        [task] = await self.running()
        steps: Sequence[tuple[float | None, str | None, float | None, str | None]] = [
            (0.25, None, 0.25, None),
            (None, "resizing \N{SNOWMAN}", 0.25, "resizing \N{SNOWMAN}"),
            (None, None, 0.25, "resizing \N{SNOWMAN}"),
            (1 / 3, 'nul\0 \ud800 "quoted" back\\slash {NULL}', 1 / 3, 'nul ? "quoted" back\\slash {NULL}'),
            (1.0, "NULL", 1.0, "NULL"),
            (0.0, "", 0.0, None),
        ]
        for progress, note, shown, said in steps:
            self.assertTrue(await self.say(task, progress=progress, note=note))
            after = await self.get(task)
            self.assertEqual((after.progress, after.note), (shown, said))
            # no change of state
            self.assertEqual((after.version, after.state), (task.version, State.RUNNING))
        [listed] = (await self.store.list_tasks(self.ana.id, TaskQuery(1))).tasks
        self.assertEqual((listed.progress, listed.note), (0.0, None))

    async def test_reports_are_fenced(self) -> None:
        [mine] = await self.running()
        [theirs] = await self.running(worker="v")
        ended = await self.in_state(State.COMPLETED)
        [queued] = await self.create()
        keys = [(mine.id, 1, 1), (mine.id, 2, 1), (mine.id, 1, 2), (theirs.id, 1, 1), (ended.id, 1, 1)]
        keys += [(queued.id, 1, 1), (queued.id, 1, 0), (10**15, 1, 1)]
        reports = [Report(*key, 0.5, f"{n}", 1 + n, [f"line {n}"]) for n, key in enumerate(keys)]
        self.assertEqual(await self.store.report("w", reports), {mine.id})
        self.assertEqual(await self.log(mine), [((1, 1, 1), ["line 0"])])
        self.assertEqual((await self.get(mine)).note, "0")
        for task in (theirs, ended, queued):
            self.assertEqual(await self.get(task), task)
            self.assertEqual(await self.log(task), [])
        self.assertEqual(await self.store.report("w", []), frozenset())

    async def test_several_reports_of_a_task_are_as_one_after_the_other(self) -> None:
        one, two = await self.running(2)
        reports = [
            Report(two.id, 1, 1, 0.1, "first", 1, ["a"]),
            Report(one.id, 1, 1, 0.2, None, 1, ["b"]),
            Report(two.id, 1, 1, 0.3, None, 2, ["c"]),
        ]
        self.assertEqual(await self.store.report("w", reports), {one.id, two.id})
        after = await self.get(two)
        self.assertEqual((after.progress, after.note), (0.3, "first"))
        self.assertEqual(await self.log(two), [((1, 1, 1), ["a"]), ((1, 1, 2), ["c"])])

    # -- the log

    async def test_lines_are_kept_as_they_are(self) -> None:
        [task] = await self.running()
        lines = [text.replace("\r\n", " ").replace("\n", " ") for text in TEXTS]
        await self.say(task, "", *lines, "")
        await self.say(task, "", first_line=len(lines) + 3)
        await self.say(task, "nul\0", "lone \ud800", first_line=len(lines) + 4)
        expected = ["", *lines, "", "", "nul", "lone ?"]
        chunks = await self.store.read_log(task.id, None, 10)
        self.assertEqual([line for chunk in chunks for line in chunk.lines], expected)
        self.assertEqual([chunk.place.line for chunk in chunks], [1, len(lines) + 3, len(lines) + 4])
        for chunk in chunks:
            assert task.started_at is not None
            self.assertLess(abs(chunk.at - task.started_at), timedelta(minutes=10))
            self.assertEqual(chunk.at.utcoffset(), timedelta(0))

    async def test_log_bytes(self) -> None:
        [task] = await self.running()
        self.assertEqual(await self.store.log_bytes(task.id), 0)
        await self.say(task, "abc", "\N{SNOWMAN}")
        await self.say(task, "xy", first_line=3)
        self.assertEqual(await self.store.log_bytes(task.id), 7 + 2)
        self.assertEqual(await self.store.log_bytes(10**15), 0)

    async def test_a_report_repeated_stores_nothing_twice(self) -> None:
        [task] = await self.running()
        for _ in range(2):
            await self.say(task, "one", "two", progress=0.5)
        self.assertEqual(await self.log(task), [((1, 1, 1), ["one", "two"])])
        # what was said meanwhile comes along with it
        await self.say(task, "one", "two", "three")
        await self.say(task, "one", "two")
        self.assertEqual(await self.log(task), [((1, 1, 1), ["one", "two", "three"])])
        self.assertEqual(await self.store.log_bytes(task.id), 13)

    async def test_a_log_is_read_from_any_place(self) -> None:
        [task] = await self.running()
        await self.say(task, "a1", "a2", "a3")
        await self.say(task, "a4", first_line=4)
        await self.say(task, "a9", "a10", first_line=9)
        await self.try_again(task)
        again = await self.next_attempt()
        await self.say(again, "b1", "b2")
        everything = [
            ((1, 1, 1), ["a1", "a2", "a3"]),
            ((1, 1, 4), ["a4"]),
            ((1, 1, 9), ["a9", "a10"]),
            ((2, 2, 1), ["b1", "b2"]),
        ]
        self.assertEqual(await self.log(task), everything)
        # (place, index of the first chunk): the one that the place is in, unless nothing of it is behind it
        cases = [
            ((0, 0, 0), 0),
            ((1, 0, 7), 0),
            ((1, 1, 0), 0),
            ((1, 1, 1), 0),
            ((1, 1, 2), 0),
            ((1, 1, 3), 1),
            ((1, 1, 4), 2),
            ((1, 1, 7), 2),
            ((1, 1, 9), 2),
            ((1, 1, 10), 3),
            ((1, 1, 2**40), 3),
            ((1, 2, 1), 3),
            ((2, 1, 9), 3),
            ((2, 2, 1), 3),
            ((2, 2, 2), 4),
            ((2**40, 1, 1), 4),
        ]
        for place, first in cases:
            self.assertEqual(await self.log(task, place), everything[first:], place)
            self.assertEqual(await self.log(task, place, 1), everything[first : first + 1], place)
        self.assertEqual(await self.log(task, None, 2), everything[:2])
        [other] = await self.create()
        self.assertEqual(await self.log(other), [])

    async def test_the_oldest_lines_are_cut(self) -> None:
        [task] = await self.running()
        await self.say(task, "a1", "a2")
        await self.try_again(task)
        again = await self.next_attempt()
        await self.say(again, "b1", "b2")
        await self.say(again, "b3", "b4", first_line=3)
        # another's log, of the same numbers, is not touched
        other = await self.in_state(State.WAITING)
        other = await self.next_attempt()
        await self.say(other, "other")
        await self.say(again, keep_from=1)
        self.assertEqual(len(await self.log(task)), 3)
        # earlier attempts go with the first line that does, and a chunk once all of it is to go
        await self.say(again, "b5", first_line=5, keep_from=2)
        self.assertEqual([place for place, _ in await self.log(task)], [(2, 2, 1), (2, 2, 3), (2, 2, 5)])
        for _ in range(2):
            await self.say(again, "b6", first_line=6, keep_from=3)
            self.assertEqual([place for place, _ in await self.log(task)], [(2, 2, 3), (2, 2, 5), (2, 2, 6)])
        self.assertEqual(await self.store.log_bytes(task.id), 5 + 2 + 2)
        # what is to be cut need not be stored before
        await self.say(again, "b7", "b8", first_line=7, keep_from=9)
        self.assertEqual(await self.log(task), [])
        await self.say(again, "b9", "b10", first_line=9, keep_from=10)
        self.assertEqual(await self.log(task, (2, 2, 3)), [((2, 2, 9), ["b9", "b10"])])
        self.assertEqual(await self.log(other), [((1, 1, 1), ["other"])])

    # -- workers and users

    async def test_workers_are_listed_while_they_are_seen(self) -> None:
        simulate = KindInfo("simulate", "async", None, 3, "Sleeps.")
        picture = KindInfo("picture:\N{SNOWMAN}", "process", 60.5, 5, 'two\nlines "quoted" \\ \'')
        one = WorkerInfo("b-1", ["tasks", "mail"], [simulate, picture], 10)
        two = WorkerInfo("a-2", [], [], 1)
        self.assertEqual(list(await self.store.list_workers(60)), [])
        await self.store.worker_seen(one)
        await self.store.worker_seen(two)
        self.assertEqual(list(await self.store.list_workers(60)), [two, one])
        self.assertEqual(list(await self.store.list_workers(0)), [])
        # what it said before is replaced
        changed = WorkerInfo("b-1", ["tasks"], [picture], 20)
        await self.store.worker_seen(changed)
        self.assertEqual(list(await self.store.list_workers(60)), [two, changed])
        await self.age_workers(100)
        await self.store.worker_seen(two)
        self.assertEqual(list(await self.store.list_workers(60)), [two])
        self.assertEqual(list(await self.store.list_workers(200)), [two, changed])
        for _ in range(2):
            await self.store.worker_gone("a-2")
        self.assertEqual(list(await self.store.list_workers(200)), [changed])

    async def test_workers_not_seen_for_a_day_are_forgotten(self) -> None:
        worker = WorkerInfo("w", ["q"], [], 1)
        await self.store.worker_seen(worker)
        await self.age_workers(86_000)
        await self.store.list_workers(60)
        self.assertEqual(list(await self.store.list_workers(10**6)), [worker])
        await self.age_workers(1000)
        await self.store.list_workers(60)
        self.assertEqual(list(await self.store.list_workers(10**6)), [])

    async def test_usernames(self) -> None:
        found = await self.store.usernames([self.ana.id, self.ben.id, self.ana.id, 10**15, 10**30, -1])
        self.assertEqual(dict(found), {self.ana.id: "Ana", self.ben.id: "Ben"})
        self.assertEqual(dict(await self.store.usernames([])), {})

    # -- retention

    async def test_what_ended_long_ago_is_deleted_with_all_that_belongs_to_it(self) -> None:
        old, young, open_one, waiting = await self.running(3) + await self.create(1, State.WAITING)
        for task in (old, young, open_one):
            await self.say(task, "line")
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

    async def test_the_walk_goes_on_behind_the_last_task_looked_at(self) -> None:
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

    async def test_the_walk_ends_at_the_first_young_task(self) -> None:
        old, young, behind = [await self.in_state(State.COMPLETED) for _ in range(3)]
        await self.backdate(old.id, 1000, 1000)
        await self.backdate(behind.id, 1000, 1000)
        self.assertEqual(await self.store.delete_finished(100, 0, 2), (1, None))
        self.assertEqual(len(await self.store.find_tasks([young.id, behind.id])), 2)

    async def test_numbers_of_deleted_tasks_are_not_used_again(self) -> None:
        tasks = await self.running(3)
        for task in tasks:
            await self.finish(task)
            await self.backdate(task.id, 1000, 1000)
        await self.store.delete_finished(100, 0, 10)
        [task] = await self.create()
        self.assertGreater(task.id, tasks[-1].id)

    async def test_outbox_rows_of_deleted_tasks_are_in_nobodys_way(self) -> None:
        batch = new_batch()
        rows = [NewTask(self.ana.id, f"t{i}", queue="q", state=State.QUEUED) for i in range(2)]
        gone, left = await self.store.create_tasks(batch, rows)
        await self.store.cancel(self.ana.id, gone.id)
        await self.backdate(gone.id, 1000, 1000)
        await self.store.delete_finished(100, 0, 10)
        [taken] = await self.store.adopt_stale(0, 10)
        self.assertEqual([m.task_id for m in taken.messages[Q]], [left.id])
        self.assertEqual([t.id for t in await self.store.create_tasks(batch, rows)], [left.id])
