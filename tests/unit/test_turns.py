"""taskd.scheduling.turns: a wish stays until a turn has begun after it, and turns come one at a time."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from taskd.model.errors import Unavailable
from taskd.scheduling.turns import DEFECT_PAUSE, GATHER, PAUSE, Turns


class WishesAndTurns(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.began: list[float] = []
        self.answers: list[Deferred[float | None]] = []
        self.next: float | Exception | None = None
        self.slow = False
        self.turns = Turns(self.clock, "pool", self.take_turn)
        self.logged: list[LogEvent] = []
        observer: Any = self.logged.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    async def take_turn(self) -> float | None:
        self.began.append(self.clock.seconds() - 1000)
        if self.slow:
            answer: Deferred[float | None] = Deferred()
            self.answers.append(answer)
            return await answer
        if isinstance(self.next, Exception):
            raise self.next
        return self.next

    def pass_time(self, seconds: float) -> None:
        """Every call comes at its exact time."""
        end = self.clock.seconds() + seconds
        while due := [at for call in self.clock.getDelayedCalls() if (at := call.getTime()) <= end + 1e-9]:
            self.clock.advance(max(0.0, min(due) - self.clock.seconds()))
        self.clock.advance(end - self.clock.seconds())

    def assertBegan(self, *times: float) -> None:
        self.assertEqual([round(at, 3) for at in self.began], list(times))

    def test_without_a_wish_there_is_no_turn(self) -> None:
        self.pass_time(10)
        self.assertBegan()
        self.assertFalse(self.turns.wished)

    def test_wishes_of_one_moment_are_one_turn(self) -> None:
        for _ in range(5):
            self.turns.wish()
        self.assertTrue(self.turns.wished)
        self.assertBegan()
        self.pass_time(1)
        self.assertBegan(0)
        self.assertFalse(self.turns.wished)

    def test_the_most_urgent_wish_counts(self) -> None:
        self.turns.wish(3)
        self.turns.wish(1)
        self.turns.wish(2)
        self.pass_time(4)
        self.assertBegan(1)

    def test_room_gathers_between_turns(self) -> None:
        self.turns.wish()
        self.pass_time(0.01)
        self.turns.wish()
        self.pass_time(1)
        self.assertBegan(0, GATHER)

    def test_a_wish_without_gathering_is_fulfilled_at_once(self) -> None:
        self.turns.wish()
        self.pass_time(0.01)
        self.turns.wish()
        self.turns.wish(gather=False)
        self.clock.advance(0)
        self.assertBegan(0, 0.01)

    def test_a_wish_during_a_turn_makes_another(self) -> None:
        self.slow = True
        self.turns.wish()
        self.pass_time(0.5)
        for _ in range(3):
            self.turns.wish()
        self.pass_time(0.5)
        self.assertBegan(0)
        self.answers.pop().callback(None)
        self.clock.advance(0)
        self.assertBegan(0, 1)
        self.answers.pop().callback(None)
        self.pass_time(1)
        self.assertBegan(0, 1)

    def test_a_turn_says_when_the_next_one_is_useful(self) -> None:
        self.next = 0.2
        self.turns.wish()
        self.pass_time(0.5)
        self.assertBegan(0, 0.2, 0.4)
        self.next = None
        self.pass_time(2)
        self.assertBegan(0, 0.2, 0.4, 0.6)

    def test_a_turn_that_wants_another_at_once_gets_it(self) -> None:
        self.slow = True
        self.turns.wish()
        self.clock.advance(0)
        self.answers.pop().callback(0.0)
        self.clock.advance(0)
        self.assertBegan(0, 0)

    def test_a_turn_that_fails_is_taken_again_and_logged_once(self) -> None:
        self.next = Unavailable("the database is away")
        self.turns.wish()
        self.pass_time(PAUSE + 0.05)
        self.turns.wish(gather=False)
        self.pass_time(0.5 - PAUSE)
        self.assertBegan(0, 0.2, 0.4)
        self.assertTrue(self.turns.wished)
        lines = [line for line in map(formatEvent, self.logged) if "next turn waits" in line]
        self.assertEqual(len(lines), 1)
        self.assertIn("the database is away", lines[0])
        self.next = None
        self.pass_time(5)
        self.assertBegan(0, 0.2, 0.4, 0.6)

    def test_a_defect_is_logged_once_with_its_traceback(self) -> None:
        self.next = ZeroDivisionError("a defect")
        self.turns.wish()
        self.pass_time(2 * DEFECT_PAUSE + 0.05)
        self.assertBegan(0, 1, 2)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.next = None
        self.pass_time(1)
        self.assertFalse(self.turns.wished)

    def test_stop_waits_for_the_turn_under_way_and_begins_no_other(self) -> None:
        self.slow = True
        self.turns.wish()
        self.clock.advance(0)
        self.turns.wish()
        stopped = self.turns.stop()
        self.assertNoResult(stopped)
        self.answers.pop().callback(0.0)
        self.successResultOf(stopped)
        self.turns.wish()
        self.pass_time(5)
        self.assertBegan(0)
        self.successResultOf(self.turns.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_forgets_wishes(self) -> None:
        self.turns.wish()
        self.successResultOf(self.turns.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])
