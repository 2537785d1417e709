"""The suite of IAttemptStore: claim, finish, release, renew, and leases that expire."""

from __future__ import annotations

from datetime import timedelta, timezone

from taskd.model.states import State
from taskd.ports.attempts import Claim, Outcome
from tests.conformance.store.case import PAYLOADS, TEXTS, StoreCase


class AttemptTests(StoreCase):
    """The suite of IAttemptStore: claim, finish, release, renew, and leases that expire."""

    async def test_claim(self) -> None:
        created = await self.create(3)
        tasks = sorted(await self.claim(created), key=lambda t: t.id)
        self.assertEqual([t.id for t in tasks], [t.id for t in created])
        for task in tasks:
            self.assertEqual((task.state, task.attempt, task.version), (State.RUNNING, 1, 2))
            self.assertIsNotNone(task.started_at)
            self.assertEqual(await self.get(task), task)

    async def test_the_last_of_several_attempts_is_for_a_claim_that_is_alone(self) -> None:
        [task] = await self.running(worker="w1", max_attempts=3)
        for worker, alone, attempt in (("w2", False, 2), ("w3", False, None), ("w3", True, 3)):
            claimed = await self.store.claim(worker, 60, [Claim(task.id, task.dispatch, True, alone)])
            self.assertEqual([t.attempt for t in claimed], [attempt] if attempt else [])
        # a worker that holds it already keeps it
        held = await self.store.claim("w3", 60, [Claim(task.id, task.dispatch, False)])
        self.assertEqual([t.attempt for t in held], [3])

    async def test_the_same_holds_when_it_was_queued_again(self) -> None:
        [task] = await self.create(max_attempts=2)
        await self.store.claim("w1", 0, [Claim(task.id, task.dispatch, False)])
        await self.store.expire_leases(10)
        [again] = (await self.dispatch()).tasks
        for alone, found in ((False, 0), (True, 1)):
            claimed = await self.store.claim("w2", 60, [Claim(again.id, again.dispatch, False, alone)])
            self.assertEqual(len(claimed), found)

    async def test_the_only_attempt_need_not_be_alone(self) -> None:
        self.assertEqual(len(await self.running(3, max_attempts=1)), 3)

    async def test_the_first_claim_sets_the_number_of_attempts(self) -> None:
        [open_one, fixed] = await self.create(1, max_attempts=0) + await self.create(1, max_attempts=2)
        self.assertEqual((await self.get(open_one)).max_attempts, 0)
        claims = [Claim(t.id, 1, False, max_attempts=5) for t in (open_one, fixed)]
        claimed = await self.store.claim("w", 0, claims)
        self.assertEqual({t.id: t.max_attempts for t in claimed}, {open_one.id: 5, fixed.id: 2})
        # a later claim does not change it
        again = await self.store.claim("v", 60, [Claim(open_one.id, 1, True, max_attempts=9)])
        self.assertEqual([(t.attempt, t.max_attempts) for t in again], [(2, 5)])
        self.assertEqual((await self.get(open_one)).max_attempts, 5)

    async def test_claim_needs_the_dispatch_number(self) -> None:
        [task] = await self.create()
        for number in (0, 2):
            self.assertEqual(list(await self.store.claim("w", 60, [Claim(task.id, number, False)])), [])
        self.assertEqual(list(await self.store.claim("w", 60, [Claim(10**15, 1, True)])), [])
        self.assertEqual(await self.get(task), task)

    async def test_claim_repeated_changes_nothing(self) -> None:
        tasks = await self.create(3)
        first = await self.claim(tasks)
        for redelivered in (False, True):
            again = await self.claim(tasks, redelivered=redelivered)
            self.assertEqual(sorted(again, key=lambda t: t.id), sorted(first, key=lambda t: t.id))

    async def test_a_message_twice_in_one_batch_is_claimed_once(self) -> None:
        [task] = await self.create()
        claimed = await self.claim([task, task])
        self.assertEqual([(t.id, t.attempt) for t in claimed], [(task.id, 1)])

    async def test_a_duplicate_message_claims_nothing_from_another_worker(self) -> None:
        [task] = await self.running(worker="one")
        self.assertEqual(await self.claim([task], "two"), [])
        self.assertEqual(await self.get(task), task)

    async def test_redelivery_takes_over_and_fences(self) -> None:
        [task] = await self.running(worker="one")
        [taken] = await self.claim([task], "two", redelivered=True)
        self.assertEqual((taken.attempt, taken.version, taken.state), (2, 3, State.RUNNING))
        self.assertIsNone(await self.finish(task, "one"))
        self.assertIsNone(await self.finish(task, "two"))
        self.assertEqual(await self.store.renew("one", 60, [1, 2, 3]), frozenset())
        self.assertEqual(await self.get(task), taken)
        self.assertIsNotNone(await self.finish(taken, "two"))

    async def test_redelivery_does_not_take_over_the_last_attempt(self) -> None:
        [task] = await self.running(worker="one", max_attempts=1)
        self.assertEqual(await self.claim([task], "two", redelivered=True), [])
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

    async def test_release_spends_no_attempt(self) -> None:
        [task] = await self.running()
        [given] = await self.store.release("w", [Claim(task.id, task.dispatch, False)])
        self.assertEqual((given.state, given.attempt, given.version), (State.WAITING, 0, 3))
        self.assertEqual((given.dispatch, given.started_at, given.run_at), (1, None, task.run_at))
        self.assertEqual(await self.get(task), given)
        self.assertIsNone(await self.finish(task))
        self.assertEqual(await self.claim([task]), [])
        [queued] = (await self.dispatch()).tasks
        self.assertEqual((queued.id, queued.dispatch), (task.id, 2))
        [claimed] = await self.claim([queued], "v")
        self.assertEqual(claimed.attempt, 1)

    async def test_release_repeated_changes_nothing(self) -> None:
        [task] = await self.running()
        held = [Claim(task.id, task.dispatch, False)]
        first = await self.store.release("w", held)
        self.assertEqual(await self.store.release("w", held), first)
        await self.dispatch()
        self.assertEqual(list(await self.store.release("w", held)), [])

    async def test_release_of_tasks_that_are_not_held(self) -> None:
        [mine] = await self.running()
        [queued] = await self.create()
        claims = [Claim(mine.id, 2, False), Claim(queued.id, 1, False), Claim(10**15, 1, False)]
        self.assertEqual(list(await self.store.release("w", claims)), [])
        self.assertEqual(list(await self.store.release("v", [Claim(mine.id, 1, False)])), [])
        self.assertEqual(await self.get(mine), mine)

    async def test_renew_returns_the_tasks_that_are_held(self) -> None:
        mine = await self.running(3)
        await self.running(2, "v")
        await self.create(2)
        await self.finish(mine[0])
        ids = [task.id for task in mine]
        self.assertEqual(await self.store.renew("w", 60, ids), {mine[1].id, mine[2].id})
        self.assertEqual(await self.store.renew("w", 60, ids[:2]), {mine[1].id})
        self.assertEqual(await self.store.renew("nobody", 60, ids), frozenset())
        self.assertEqual(await self.store.renew("w", 60, []), frozenset())

    async def test_tasks_that_are_not_named_are_not_renewed(self) -> None:
        named, other = await self.create(2)
        await self.store.claim("w", 0, [Claim(named.id, 1, False), Claim(other.id, 1, False)])
        await self.store.renew("w", 60, [named.id])
        self.assertEqual([t.id for t in await self.store.expire_leases(10)], [other.id])

    async def test_renewed_lease_does_not_expire(self) -> None:
        [task] = await self.create()
        await self.store.claim("w", 0, [Claim(task.id, 1, False)])
        self.assertEqual(await self.store.renew("w", 60, [task.id]), {task.id})
        self.assertEqual(list(await self.store.expire_leases(10)), [])

    async def test_expired_lease_goes_back_to_waiting(self) -> None:
        [task] = await self.create()
        [task] = await self.store.claim("w", 0, [Claim(task.id, 1, False)])
        [other] = await self.running()
        [back] = await self.store.expire_leases(10)
        self.assertEqual((back.id, back.state, back.attempt), (task.id, State.WAITING, 1))
        self.assertEqual((back.version, back.run_at, back.started_at), (3, task.run_at, None))
        self.assertIsNone(back.error, "the error belongs to the failed attempt")
        self.assertEqual(await self.get(task), back)
        self.assertEqual(await self.get(other), other)
        self.assertIsNone(await self.finish(task))
        self.assertEqual(list(await self.store.expire_leases(10)), [])
        [queued] = (await self.dispatch()).tasks
        [claimed] = await self.claim([queued], "v")
        self.assertEqual((claimed.attempt, claimed.dispatch), (2, 2))

    async def test_expired_lease_of_the_last_attempt_fails(self) -> None:
        [task] = await self.create(max_attempts=1)
        [task] = await self.store.claim("w", 0, [Claim(task.id, 1, False)])
        [failed] = await self.store.expire_leases(10)
        self.assertEqual((failed.state, failed.attempt, failed.version), (State.FAILED, 1, 3))
        self.assertEqual(failed.error, "lease expired on attempt 1 of 1: the worker stopped answering")
        self.assertIsNotNone(failed.finished_at)
        self.assertEqual(await self.get(task), failed)

    async def test_expiry_is_bounded(self) -> None:
        tasks = await self.create(5)
        await self.store.claim("w", 0, [Claim(t.id, 1, False) for t in tasks])
        self.assertEqual(len(await self.store.expire_leases(3)), 3)
        self.assertEqual(len(await self.store.expire_leases(3)), 2)

    async def test_reset_takes_everything_in_flight_back(self) -> None:
        waiting = await self.create(2, State.WAITING)
        queued = await self.create(2)
        running = await self.running(2)
        [last] = await self.running(1, max_attempts=1)
        done = await self.in_state(State.COMPLETED)
        self.assertEqual(await self.store.reset_in_flight(), 5)
        states = [(await self.get(t)).state for t in (*waiting, *queued, *running, last)]
        self.assertEqual(states, [State.WAITING] * 6 + [State.FAILED])
        last = await self.get(last)
        self.assertIn("lease expired", last.error or "")
        assert last.finished_at is not None
        self.assertLess(abs(last.finished_at - last.created_at), timedelta(minutes=10))
        self.assertEqual(await self.get(done), done)
        self.assertEqual(await self.count_outbox(), 0)
        self.assertEqual(await self.store.count_queued(), {})
        self.assertEqual(len((await self.dispatch()).tasks), 6)
        self.assertEqual(await self.store.reset_in_flight(), 6)
