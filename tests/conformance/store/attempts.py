"""The suite of IAttemptStore: how attempts end, and what is given back."""

from __future__ import annotations

from datetime import timedelta, timezone

from taskd.model.errors import BadRequest
from taskd.model.states import State
from taskd.ports.attempts import Begun, Held, Outcome
from tests.conformance.store.case import PAYLOADS, TEXTS, StoreCase


class AttemptTests(StoreCase):
    """The suite of IAttemptStore: how attempts end, and what is given back."""

    async def test_finish(self) -> None:
        done, failed, nothing = await self.running(3)
        outcomes = [
            Outcome(done.id, 1, 1, State.COMPLETED, '{"x": [1, 2]}'),
            Outcome(failed.id, 1, 1, State.FAILED, None, "it broke"),
            Outcome(nothing.id, 1, 1, State.COMPLETED),
        ]
        finished = await self.store.finish("w", outcomes)
        self.assertEqual(set(finished), {done.id, failed.id, nothing.id})
        done, failed, nothing = [await self.get(t) for t in (done, failed, nothing)]
        self.assertEqual((done.state, done.result, done.error), (State.COMPLETED, '{"x": [1, 2]}', None))
        self.assertEqual((failed.state, failed.result, failed.error), (State.FAILED, None, "it broke"))
        self.assertIsNone(nothing.result)
        for task in (done, failed, nothing):
            self.assertEqual((task.version, task.attempt, task.worker), (3, 1, "w"))
            self.assertEqual(tuple(finished[task.id]), (task.version, task.started_at, task.finished_at, None))
            assert task.started_at and task.finished_at
            self.assertGreaterEqual(task.finished_at, task.started_at)
            self.assertEqual(task.finished_at.tzinfo, timezone.utc)
        self.assertEqual(await self.standing(), [])

    async def test_it_does_not_matter_whether_the_begin_was_stored(self) -> None:
        for state in (State.COMPLETED, State.FAILED, State.WAITING):
            queued, running = await self.queued(2)
            await self.store.begin("w", [Begun(running.id, 1, 2.0)], False)
            outcomes = [Outcome(t.id, 1, 1, state, error="it broke", age=5.0) for t in (queued, running)]
            finished = await self.store.finish("w", outcomes)
            for task, seconds in ((queued, 5), (running, None)):
                after = await self.get(task)
                self.assertEqual((after.state, after.version, after.attempt), (state, 3, 1))
                self.assertEqual(finished[task.id].version, 3)
                if state is State.WAITING:
                    self.assertIsNone(after.started_at)
                    continue
                assert after.started_at and after.finished_at
                self.assertEqual(finished[task.id].started_at, after.started_at)
                # the age is only used if no begin was stored
                if seconds is not None:
                    self.assertEqual(after.finished_at - after.started_at, timedelta(seconds=seconds))
                else:
                    self.assertLess(after.finished_at - after.started_at, timedelta(seconds=4.9))
            if state is not State.COMPLETED:
                [failed] = await self.store.failed_attempts(queued.id)
                self.assertEqual(failed.ended_at - failed.started_at, timedelta(seconds=5))
            self.assertEqual(await self.standing(), [])

    async def test_finish_is_fenced(self) -> None:
        for make in (self.queued, self.running):
            [task] = await make()
            for dispatch, attempt, worker in ((2, 1, "w"), (1, 0, "w"), (1, 2, "w"), (1, 1, "v")):
                outcome = Outcome(task.id, dispatch, attempt, State.COMPLETED)
                for again in (False, True):
                    self.assertEqual(await self.store.finish(worker, [outcome], again), {})
            self.assertEqual(await self.get(task), task)

    async def test_what_is_not_held_cannot_be_finished(self) -> None:
        cancelled, retried, given, again = await self.running(4)
        for task in (cancelled, retried):
            await self.store.cancel(self.ana.id, task.id)
        await self.store.retry(self.ana.id, retried.id)
        await self.release([given, again])
        [waiting] = await self.create()
        # it is held by the same worker again, but under another number
        turn = await self.turn(limit=2)
        self.assertEqual({t.id for t in turn.tasks}, {given.id, again.id})
        before = [await self.get(task) for task in (cancelled, retried, given, again, waiting)]
        for state in (State.COMPLETED, State.FAILED, State.WAITING):
            outcomes = [Outcome(task.id, 1, 1, state) for task in before]
            for repeated in (False, True):
                self.assertEqual(await self.store.finish("w", outcomes, repeated), {})
        self.assertEqual([await self.get(task) for task in before], before)
        for task in before:
            self.assertEqual(list(await self.store.failed_attempts(task.id)), [])

    async def test_finish_repeated_counts_once(self) -> None:
        for make in (self.queued, self.running):
            [task] = await make()
            first = await self.finish(task, result="1")
            self.assertIsNone(await self.finish(task, result="1"))
            self.assertEqual(await self.finish(task, result="1", again=True), first)
            self.assertIsNone(await self.finish(task, state=State.FAILED, again=True))
            self.assertEqual((await self.get(task)).version, first.version)

    async def test_results_are_stored_unchanged(self) -> None:
        large = '"' + "x\u00e9" * (128 * 1024) + '"'
        results = ["null", "0", '"NULL"', '""', *PAYLOADS, large]
        tasks = await self.running(len(results))
        outcomes = [Outcome(t.id, 1, 1, State.COMPLETED, r) for t, r in zip(tasks, results, strict=True)]
        await self.store.finish("w", outcomes)
        self.assertEqual([(await self.get(t)).result for t in tasks], results)

    async def test_errors_are_stored_whatever_they_contain(self) -> None:
        errors = [*TEXTS, "nul\0inside", "lone \ud800 surrogate"]
        tasks = await self.running(len(errors))
        outcomes = [Outcome(t.id, 1, 1, State.FAILED, None, e) for t, e in zip(tasks, errors, strict=True)]
        self.assertEqual(len(await self.store.finish("w", outcomes)), len(errors))
        stored = [(await self.get(t)).error for t in tasks]
        self.assertEqual(stored, [*TEXTS, "nulinside", "lone ? surrogate"])

    async def test_an_outcome_that_cannot_be_stored_is_refused(self) -> None:
        good, failing, bad = await self.running(3)
        for result in ('"nul\0"', '"lone \ud800"'):
            for state in (State.COMPLETED, State.FAILED):
                outcomes = [
                    Outcome(good.id, 1, 1, State.COMPLETED, "1"),
                    Outcome(failing.id, 1, 1, State.FAILED, None, "nul\0", "trace\0"),
                    Outcome(bad.id, 1, 1, state, result, "broke"),
                ]
                with self.assertRaises(BadRequest):
                    await self.store.finish("w", outcomes)
        self.assertEqual(await self.get(bad), bad)
        # and fails at once with a reason that can be stored
        await self.finish(bad, state=State.FAILED, error="its result contains \0")
        self.assertEqual((await self.get(bad)).error, "its result contains ")

    async def test_release_spends_no_attempt(self) -> None:
        for make in (self.queued, self.running):
            [task] = await make(payload='{"x":1}')
            [given] = await self.release([task])
            self.assertEqual((given.state, given.attempt, given.version), (State.WAITING, 0, task.version + 1))
            self.assertEqual((given.dispatch, given.started_at, given.run_at), (1, None, task.run_at))
            self.assertEqual((given.losses, given.returns, given.worker), (0, 0, None))
            self.assertEqual(given.payload, "{}", "the answer leaves the payload out")
            given.payload = '{"x":1}'
            self.assertEqual(await self.get(task), given)
            self.assertEqual(await self.standing(), [])
            self.assertIsNone(await self.finish(task))
            again = await self.next_attempt("v")
            self.assertEqual((again.id, again.dispatch, again.attempt), (task.id, 2, 1))
            await self.finish(again, "v")

    async def test_release_repeated_changes_nothing(self) -> None:
        for stopping in (False, True):
            [task] = await self.running()
            await self.release([task], stopping=stopping)
            before = await self.get(task)
            self.assertEqual(await self.release([task], stopping=stopping), [])
            self.assertEqual(await self.get(task), before)
            # not even when the worker holds it again
            [again] = await self.assign()
            self.assertEqual(await self.release([task], stopping=stopping), [])
            self.assertEqual(await self.get(task), again)
            await self.finish(again)

    async def test_a_worker_that_stops_returns_what_it_runs(self) -> None:
        [task] = await self.running()
        for returns in (1, 2, 3):
            self.assertEqual(task.returns, returns - 1)
            [back] = await self.release([task], stopping=True)
            self.assertEqual((back.returns, back.attempt, back.losses), (returns, 0, 0))
            task = await self.next_attempt()
        [back] = await self.release([task])
        self.assertEqual(back.returns, 3, "another release does not count")
        [back] = await self.release(await self.assign(), stopping=True)
        self.assertEqual(back.returns, 3, "nor does that of a task that has not begun")
        # nor does the end of an attempt, and only the owner's retry begins again
        await self.finish(await self.next_attempt(), state=State.FAILED)
        self.assertEqual((await self.get(task)).returns, 3)
        self.assertEqual((await self.store.retry(self.ana.id, task.id)).returns, 0)

    async def test_release_of_a_cancelled_task_ends_only_its_hold(self) -> None:
        for make in (self.queued, self.running):
            [task] = await make()
            cancelled = await self.store.cancel(self.ana.id, task.id)
            self.assertEqual(await self.standing(), [(task.id, 1, False)])
            for _ in range(2):
                self.assertEqual(await self.release([task], stopping=True), [])
                self.assertEqual(await self.standing(), [])
                self.assertEqual(await self.get(task), cancelled)
            self.assertEqual(await self.due(), [])

    async def test_release_of_a_retried_task_puts_it_into_the_backlog(self) -> None:
        for make in (self.queued, self.running):
            [task] = await make()
            await self.store.cancel(self.ana.id, task.id)
            retried = await self.store.retry(self.ana.id, task.id)
            self.assertEqual(await self.standing(), [(task.id, 1, False)])
            self.assertEqual(await self.due(), [])
            [given] = await self.release([task], stopping=True)
            self.assertEqual((given.id, given.state, given.version), (task.id, State.WAITING, retried.version))
            self.assertEqual((given.attempt, given.returns, given.dispatch), (0, 0, 1))
            self.assertEqual(await self.standing(), [])
            self.assertEqual(await self.release([task]), [])
            self.assertEqual(await self.due(), [task.id])

    async def test_release_of_what_is_not_held(self) -> None:
        [mine] = await self.running()
        [theirs] = await self.queued(1, "v")
        [waiting] = await self.create()
        wrong = [Held(mine.id, 2), Held(mine.id, 0), Held(theirs.id, 1), Held(waiting.id, 0), Held(10**15, 1)]
        for held in ([], wrong):
            self.assertEqual(list(await self.store.release("w", held)), [])
        self.assertEqual(list(await self.store.release("v", [Held(mine.id, 1)])), [])
        for task in (mine, theirs, waiting):
            self.assertEqual(await self.get(task), task)
