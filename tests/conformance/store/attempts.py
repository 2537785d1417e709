"""The suite of IAttemptStore: claim, finish, release, and what a worker holds."""

from __future__ import annotations

from datetime import timezone

from taskd.model.errors import BadRequest
from taskd.model.states import State
from taskd.ports.attempts import Claim, Held, Outcome
from taskd.ports.logs import Report
from tests.conformance.store.case import PAYLOADS, TEXTS, StoreCase


class AttemptTests(StoreCase):
    """The suite of IAttemptStore: claim, finish, release, and what a worker holds."""

    async def test_claim(self) -> None:
        created = await self.create(3)
        tasks = sorted(await self.claim(created), key=lambda t: t.id)
        self.assertEqual([t.id for t in tasks], [t.id for t in created])
        for task in tasks:
            self.assertEqual((task.state, task.attempt, task.version), (State.RUNNING, 1, 2))
            self.assertIsNotNone(task.started_at)
            self.assertEqual(await self.get(task), task)

    async def test_the_first_claim_sets_the_number_of_attempts(self) -> None:
        [open_one, fixed] = await self.create(1, max_attempts=0) + await self.create(1, max_attempts=2)
        self.assertEqual((await self.get(open_one)).max_attempts, 0)
        await self.serve()
        claimed = await self.store.claim("w", [Claim(t.id, 1, max_attempts=5) for t in (open_one, fixed)])
        self.assertEqual({t.id: t.max_attempts for t in claimed}, {open_one.id: 5, fixed.id: 2})
        # a later claim does not change it
        await self.release(claimed)
        [queued, _] = (await self.dispatch()).tasks
        again = await self.store.claim("w", [Claim(queued.id, 2, max_attempts=9)])
        self.assertEqual([(t.attempt, t.max_attempts) for t in again], [(1, 5)])
        self.assertEqual((await self.get(open_one)).max_attempts, 5)

    async def test_claim_needs_the_dispatch_number(self) -> None:
        [task] = await self.create()
        await self.serve()
        for number in (0, 2):
            self.assertEqual(list(await self.store.claim("w", [Claim(task.id, number)])), [])
        self.assertEqual(list(await self.store.claim("w", [Claim(10**15, 1)])), [])
        self.assertEqual(list(await self.store.claim("w", [])), [])
        self.assertEqual(await self.get(task), task)

    async def test_only_a_living_worker_claims(self) -> None:
        [task] = await self.create()
        claims = [Claim(task.id, 1)]
        self.assertEqual(list(await self.store.claim("w", claims)), [], "not registered")
        for name in ("w", "gone", "v"):
            await self.serve(name)
        await self.fence()
        await self.die("gone")
        for dead in ("w", "gone"):
            self.assertEqual(list(await self.store.claim(dead, claims)), [])
        self.assertEqual(await self.get(task), task)
        await self.store.worker_draining("v")
        self.assertEqual([t.id for t in await self.store.claim("v", claims)], [task.id])

    async def test_claim_repeated_changes_nothing(self) -> None:
        tasks = await self.create(3)
        first = await self.claim(tasks)
        await self.store.report("w", [Report(first[0].id, 1, 1, 0.5, "half")])
        first[0] = await self.get(first[0])
        again = await self.claim(tasks)
        self.assertEqual(sorted(again, key=lambda t: t.id), sorted(first, key=lambda t: t.id))

    async def test_a_message_twice_in_one_batch_is_claimed_once(self) -> None:
        [task] = await self.create()
        claimed = await self.claim([task, task])
        self.assertEqual([(t.id, t.attempt) for t in claimed], [(task.id, 1)])

    async def test_a_running_task_is_not_taken_over(self) -> None:
        [task] = await self.running(worker="one")
        self.assertEqual(await self.claim([task], "two"), [])
        self.assertEqual(await self.get(task), task)

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
            self.assertEqual((task.version, task.attempt), (3, 1))
            self.assertEqual(tuple(finished[task.id]), (task.version, task.finished_at, None))
            assert task.started_at and task.finished_at
            self.assertGreaterEqual(task.finished_at, task.started_at)
            self.assertEqual(task.finished_at.tzinfo, timezone.utc)

    async def test_finish_is_fenced(self) -> None:
        [task] = await self.running(max_attempts=3)
        for dispatch, attempt, worker in ((2, 1, "w"), (1, 0, "w"), (1, 2, "w"), (1, 1, "v")):
            outcome = Outcome(task.id, dispatch, attempt, State.COMPLETED)
            for again in (False, True):
                self.assertEqual(await self.store.finish(worker, [outcome], again), {})
        self.assertEqual(await self.get(task), task)

    async def test_finish_repeated_counts_once(self) -> None:
        [task] = await self.running()
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
        [task] = await self.running()
        [given] = await self.release([task])
        self.assertEqual((given.state, given.attempt, given.version), (State.WAITING, 0, 3))
        self.assertEqual((given.dispatch, given.started_at, given.run_at), (1, None, task.run_at))
        self.assertEqual((given.losses, given.returns), (0, 0))
        self.assertEqual(await self.get(task), given)
        self.assertIsNone(await self.finish(task))
        self.assertEqual(await self.claim([task]), [])
        [queued] = (await self.dispatch()).tasks
        self.assertEqual((queued.id, queued.dispatch), (task.id, 2))
        [claimed] = await self.claim([queued], "v")
        self.assertEqual(claimed.attempt, 1)

    async def test_release_repeated_changes_nothing(self) -> None:
        for stopping in (False, True):
            [task] = await self.running()
            first = await self.release([task], stopping=stopping)
            self.assertEqual(await self.release([task], stopping=stopping), first)
            await self.dispatch()
            self.assertEqual(await self.release([task], stopping=stopping), [])

    async def test_a_worker_that_stops_returns_its_tasks(self) -> None:
        [task] = await self.create()
        for returns in (1, 2, 3):
            [task] = await self.claim([task])
            self.assertEqual(task.returns, returns - 1)
            [back] = await self.release([task], stopping=True)
            self.assertEqual((back.returns, back.attempt, back.losses), (returns, 0, 0))
            [task] = (await self.dispatch()).tasks
        [task] = await self.claim([task])
        [back] = await self.release([task])
        self.assertEqual(back.returns, 3, "another release does not count")
        # nor does the end of an attempt, and only the owner's retry begins again
        [task] = await self.claim((await self.dispatch()).tasks)
        await self.finish(task, state=State.FAILED)
        self.assertEqual((await self.get(task)).returns, 3)
        self.assertEqual((await self.store.retry(self.ana.id, task.id)).returns, 0)

    async def test_release_of_tasks_that_are_not_held(self) -> None:
        [mine] = await self.running()
        [queued] = await self.create()
        wrong = [
            Held(mine.id, 2, 1),
            Held(mine.id, 1, 2),
            Held(mine.id, 1, 0),
            Held(queued.id, 1, 1),
            Held(10**15, 1, 1),
        ]
        for held in ([], wrong):
            self.assertEqual(list(await self.store.release("w", held)), [])
        self.assertEqual(list(await self.store.release("v", [Held(mine.id, 1, 1)])), [])
        self.assertEqual(await self.get(mine), mine)
        self.assertEqual(await self.get(queued), queued)

    async def test_held_by_lists_what_is_running_under_a_name(self) -> None:
        mine = await self.running(4)
        await self.running(2, "v")
        queued = await self.create(2)
        await self.finish(mine[0])
        await self.release([mine[1]])
        held = sorted(await self.store.held_by("w"))
        self.assertEqual(held, [(t.id, 1, 1) for t in mine[2:]])
        self.assertIsInstance(held[0], Held)
        self.assertEqual(list(await self.store.held_by("nobody")), [])
        # a claim whose answer was lost
        await self.store.claim("w", [Claim(queued[0].id, 1)])
        self.assertIn((queued[0].id, 1, 1), await self.store.held_by("w"))
        await self.fence()
        self.assertEqual(list(await self.store.held_by("w")), [])
