"""taskd.api.hash_queue: whose password is hashed next."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taskd.api.hash_queue import LEISURE, MAX_LEISURE, HashQueue, Place
from taskd.model.errors import Draining, Forbidden, RateLimited
from tests.unit.logins import HASH, SlowHashes


class QueueCase(SynchronousTestCase):
    THREADS = 1

    def setUp(self) -> None:
        self.clock = Clock()
        self.hashes = SlowHashes(self.clock, self.THREADS)
        self.queue = self.new_queue()
        self.done: list[str] = []

    def new_queue(self, most: int = 100, each: int = 10) -> HashQueue:
        return HashQueue(self.clock, self.hashes, self.THREADS, most, each)

    def put(self, *names: str, known: bool = False, owner: Hashable = None, **options: Any) -> list[Deferred[Any]]:
        """Let these wait; the first letter of a name is the source."""
        return [
            self.queue.run(Place(name[0], known, owner, **options), self.done.append, name).addErrback(self._lost, name)
            for name in names
        ]

    def _lost(self, failure: Any, name: str) -> Any:
        self.done.append(f"{name}: {failure.type.__name__}")
        return failure

    def work(self, hashes: int) -> str:
        """Let the threads do so many hashes each, and say what was done."""
        for _ in range(hashes):
            self.clock.advance(HASH)
        done = " ".join(self.done)
        self.done.clear()
        return done


class Turns(QueueCase):
    def test_sources_take_turns_and_each_is_first_come_first_served(self) -> None:
        self.put("a1", "a2", "a3", "a4")
        self.put("b1", "b2")
        self.put("c1")
        self.assertEqual(self.work(10), "a1 a2 b1 c1 a3 b2 a4")

    def test_a_new_source_waits_one_round(self) -> None:
        self.put("a1", "a2", "a3", "b1", "b2", "b3")
        self.assertEqual(self.work(3), "a1 a2 b1")
        self.put("c1")
        # b is before c, because it waited already
        self.assertEqual(self.work(10), "a3 b2 c1 b3")

    def test_known_devices_get_every_second_hash(self) -> None:
        self.put("a1", "a2", "a3", "a4", "b1")
        self.put("a5", "d1", "a6", known=True)
        self.assertEqual(self.work(20), "a1 a5 a2 d1 b1 a6 a3 a4")

    def test_strangers_are_not_starved_by_known_devices(self) -> None:
        self.put(*(f"a{n}" for n in range(8)), known=True)
        self.put("b1", "b2")
        self.assertEqual(self.work(5), "a0 b1 a1 b2 a2")

    def test_an_idle_lane_costs_nothing(self) -> None:
        self.put("a1", "a2", "a3", known=True)
        self.assertEqual(self.work(3), "a1 a2 a3")
        self.put("a1", "a2", "a3")
        self.assertEqual(self.work(3), "a1 a2 a3")

    def test_results_and_errors_come_back(self) -> None:
        good = self.queue.run(Place("a"), divmod, 7, 2)
        bad = self.queue.run(Place("a"), divmod, 7, 0)
        self.clock.advance(HASH)
        self.clock.advance(HASH)
        self.assertEqual(self.successResultOf(good), (3, 1))
        self.failureResultOf(bad, ZeroDivisionError)
        self.assertEqual(self.queue.waiting, 0)
        self.put("a1")
        self.assertEqual(self.work(1), "a1")


class Threads(QueueCase):
    THREADS = 4

    def test_all_threads_work(self) -> None:
        self.put(*(f"a{n}" for n in range(9)))
        self.assertEqual((self.hashes.busy, self.queue.waiting), (4, 5))
        self.assertEqual(len(self.work(2).split()), 8)

    def test_the_known_lane_gets_half_of_the_threads_while_both_wait(self) -> None:
        self.put(*(f"a{n}" for n in range(10)), *(f"b{n}" for n in range(10)))
        self.put(*(f"k{n}" for n in range(10)), known=True)
        self.assertEqual(self.work(1), "a0 a1 a2 a3")
        for _ in range(4):
            self.assertEqual(self.work(1).count("k"), 2)


class Admission(QueueCase):
    def refuse(self) -> None:
        raise Forbidden("no")

    def test_who_is_not_admitted_costs_no_hash(self) -> None:
        self.put("a1")
        [refused] = self.put("b1", admit=self.refuse)
        self.put("c1")
        self.assertNoResult(refused)
        self.assertEqual(self.work(2), "a1 b1: Forbidden c1")
        self.failureResultOf(refused, Forbidden)
        self.assertEqual(self.hashes.begun, 2)

    def test_a_defect_in_admit_stops_nothing(self) -> None:
        [broken] = self.put("a1", admit=lambda: 1 // 0)
        self.put("a2")
        self.failureResultOf(broken, ZeroDivisionError)
        self.assertEqual(self.work(1), "a1: ZeroDivisionError a2")

    def test_many_refusals_do_not_block_the_reactor(self) -> None:
        self.queue = self.new_queue(5000, 5000)
        self.put("a0")
        refused = self.put(*(f"b{n}" for n in range(1000)), admit=self.refuse)
        self.put("c1")
        self.clock.advance(HASH)
        self.assertLess(len([d for d in refused if d.called]), 200)
        self.clock.advance(HASH)
        for _ in range(10):
            self.clock.advance(0)
        for each in refused:
            self.failureResultOf(each, Forbidden)
        self.assertEqual(self.hashes.begun, 2)

    def test_a_refused_caller_may_come_again_at_once(self) -> None:
        again: list[Deferred[Any]] = []

        def retry(failure: Any) -> None:
            again.extend(self.put("a2"))

        self.put("a0")
        self.queue.run(Place("a", admit=self.refuse), len, "").addErrback(retry)
        self.assertEqual(self.work(3), "a0 a2")


class Full(QueueCase):
    def test_a_source_has_a_bounded_line(self) -> None:
        self.put(*(f"a{n}" for n in range(11)))
        [refused] = self.put("a11")
        error = self.failureResultOf(refused, RateLimited).value
        # 10 wait and one runs
        self.assertEqual(error.retry_after, 3)
        self.assertIn("3 seconds", error.message)
        [other] = self.put("b1")
        self.assertNoResult(other)

    def test_in_a_full_line_the_longest_makes_room(self) -> None:
        self.queue = self.new_queue(6)
        before = self.put("x0", "a1", "a2", "a3", "a4", "b1", "b2")
        self.put("c1")
        self.failureResultOf(before[4], RateLimited)
        [third] = self.put("b3")
        self.failureResultOf(third, RateLimited)
        self.put("d1")
        self.failureResultOf(before[3], RateLimited)
        self.done.clear()
        self.assertEqual(self.work(9), "x0 a1 b1 c1 d1 a2 b2")

    def test_one_login_each_is_never_pushed_out(self) -> None:
        self.queue = self.new_queue(3)
        self.put("x0", "a1", "b1", "c1")
        [refused] = self.put("d1")
        self.failureResultOf(refused, RateLimited)

    def test_strangers_do_not_fill_the_lane_of_known_devices(self) -> None:
        self.queue = self.new_queue(3)
        self.put("x0", "a1", "b1", "c1")
        self.put("d1", known=True)
        self.assertEqual(self.work(2), "x0 d1")

    def test_the_time_to_wait_follows_the_measured_time_of_a_hash(self) -> None:
        for _ in range(3):
            self.put("a1")
            self.work(1)
        self.assertAlmostEqual(self.queue.hash_seconds, HASH)
        self.put("x0", *(f"a{n}" for n in range(10)), *(f"b{n}" for n in range(10)))
        # one more hash of b: 10 of its own and 10 of a, and the one that runs
        before = self.queue.wait_seconds("b")
        self.assertAlmostEqual(before, 21 * HASH)
        self.assertAlmostEqual(self.queue.wait_seconds("c"), 3 * HASH)
        self.assertAlmostEqual(self.queue.wait_seconds("c", known=True), HASH)


class Leaving(QueueCase):
    def test_a_connection_that_is_closed_leaves_the_line(self) -> None:
        gone, other = object(), object()
        self.put("x0")
        left = self.put("a1", "b1", owner=gone)
        self.put("a2", owner=other)
        self.queue.leave(gone)
        for each in left:
            self.failureResultOf(each, Draining)
        self.assertEqual(self.queue.waiting, 1)
        self.done.clear()
        self.assertEqual(self.work(3), "x0 a2")
        self.assertEqual(self.hashes.begun, 2)
        self.queue.leave(other)

    def test_a_hash_that_has_begun_goes_on(self) -> None:
        gone = object()
        self.put("a1", owner=gone)
        self.queue.leave(gone)
        self.assertEqual(self.work(1), "a1")

    def test_cancelling_is_leaving(self) -> None:
        self.put("x0")
        [waits] = self.put("a1")
        waits.cancel()
        self.failureResultOf(waits, CancelledError)
        self.assertEqual(self.queue.waiting, 0)
        [runs] = self.put("a2")
        self.clock.advance(HASH)
        runs.cancel()
        self.failureResultOf(runs, CancelledError)
        self.put("a3")
        self.clock.advance(HASH)
        self.clock.advance(HASH)
        self.assertEqual(self.done[-1], "a3")

    def test_owners_are_not_kept(self) -> None:
        for n in range(10):
            self.put("a1", owner=n)
            self.work(1)
        self.assertEqual(self.queue._owned, {})

    def test_a_stop_ends_the_waiting(self) -> None:
        waits = self.put("x0", "a1", "b1")
        known = self.put("c1", known=True)
        self.queue.stop()
        for each in [*waits[1:], *known, *self.put("d1")]:
            self.failureResultOf(each, Draining)
        self.done.clear()
        self.assertEqual(self.work(1), "x0")
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Leisure(QueueCase):
    """What nobody waits for."""

    THREADS = 2

    def put_off(self, *names: str) -> list[Deferred[Any]]:
        """Let these wait for a time when nobody else does."""
        return [self.queue.run(LEISURE, self.done.append, name).addErrback(self._lost, name) for name in names]

    def test_it_begins_in_a_later_turn_and_one_at_a_time(self) -> None:
        self.put_off("x1", "x2", "x3")
        self.assertEqual(self.hashes.begun, 0)
        self.clock.advance(0)
        self.assertEqual(self.hashes.busy, 1)
        self.assertEqual(self.work(1), "x1")
        self.clock.advance(0)
        self.assertEqual(self.hashes.busy, 1)
        self.clock.advance(HASH)
        self.clock.advance(0)
        self.assertEqual(self.work(2), "x2 x3")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_logins_go_first(self) -> None:
        self.put_off("x1")
        self.put("a1", "a2", "a3")
        self.clock.advance(0)
        self.assertEqual(self.work(1), "a1 a2")
        self.assertEqual(self.work(1), "a3 x1", "a thread was free, and nobody waited")

    def test_it_is_left_out_while_logins_wait(self) -> None:
        self.put("a1", "a2", "a3")
        [late] = self.put_off("x1")
        self.failureResultOf(late, RateLimited)
        self.assertEqual(self.work(3), "x1: RateLimited a1 a2 a3")

    def test_few_wait(self) -> None:
        waiting = self.put_off(*(f"x{n}" for n in range(MAX_LEISURE)))
        [late] = self.put_off("y")
        self.failureResultOf(late, RateLimited)
        self.assertEqual(self.queue.waiting, 0, "a login need not wait for them")
        self.queue.stop()
        for each in waiting:
            self.failureResultOf(each, Draining)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.failureResultOf(self.put_off("z")[0], Draining)

    def test_one_that_is_cancelled_leaves(self) -> None:
        first, second = self.put_off("x1", "x2")
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.clock.advance(0)
        self.assertEqual(self.work(1), "x1: CancelledError x2")
        self.successResultOf(second)
