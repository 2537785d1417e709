"""taskd.api.tarpit: refusals that are answered late."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taskd.api.hash_queue import MAX_WAITING
from taskd.api.tarpit import ANSWERED, ANSWERED_SECONDS, CutOff, Tarpit
from taskd.model.errors import Draining, RateLimited


class TarpitTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.tarpit = Tarpit(self.clock, most=4)

    def refuse(self, network: str, seconds: float = 60, owner: object = None) -> Deferred[None]:
        error = RateLimited("later", retry_after=seconds)
        return Deferred.fromCoroutine(self.tarpit.refuse(error, network, owner or object()))

    def test_a_refusal_comes_after_its_time_at_most_5_seconds(self) -> None:
        short, long = self.refuse("a", 2), self.refuse("a", 900)
        self.clock.advance(1.9)
        self.assertNoResult(short)
        self.clock.advance(0.1)
        error = self.failureResultOf(short, RateLimited).value
        self.assertEqual((type(error), error.retry_after), (RateLimited, 2))
        self.clock.advance(2.9)
        self.assertNoResult(long)
        self.clock.advance(0.1)
        self.assertEqual(self.failureResultOf(long, RateLimited).value.retry_after, 900)
        self.assertEqual(len(self.tarpit), 0)

    def test_beyond_the_most_connections_are_cut_off(self) -> None:
        held = [self.refuse("a") for _ in range(4)]
        error = self.failureResultOf(self.refuse("a"), CutOff).value
        self.assertEqual((error.code, error.retry_after), ("rate_limited", 60))
        self.clock.advance(5)
        for each in held:
            self.assertIs(type(self.failureResultOf(each).value), RateLimited)

    def test_the_source_with_most_is_cut_off_first(self) -> None:
        attacker = [self.refuse("a") for _ in range(4)]
        honest = self.refuse("b")
        self.failureResultOf(attacker[0], CutOff)
        self.assertNoResult(honest)
        second = self.refuse("b")
        self.failureResultOf(attacker[1], CutOff)
        self.failureResultOf(self.refuse("b"), CutOff)
        self.clock.advance(5)
        for each in (honest, second, *attacker[2:]):
            self.assertIs(type(self.failureResultOf(each).value), RateLimited)

    def test_all_that_a_full_line_refuses_to_64_connections_of_200_addresses_are_held(self) -> None:
        # whose connection was cut instead would come again at once
        self.tarpit = Tarpit(self.clock)
        refused = [self.refuse(f"10.0.0.{n % 200}") for n in range(200 * 64 - MAX_WAITING)]
        self.clock.advance(4.9)
        for each in refused:
            self.assertNoResult(each)
        self.clock.pump([0.1, *[ANSWERED_SECONDS] * (len(refused) // ANSWERED + 1)])
        for each in refused:
            self.assertIs(type(self.failureResultOf(each).value), RateLimited)

    def test_a_wave_is_answered_bit_by_bit(self) -> None:
        self.tarpit = Tarpit(self.clock)
        refused = [self.refuse("a") for _ in range(3 * ANSWERED)]
        gone = object()
        leaving = self.refuse("a", owner=gone)
        self.clock.advance(5)
        self.assertEqual(sum(each.called for each in refused), ANSWERED)
        self.tarpit.leave(gone)
        self.failureResultOf(leaving, Draining)
        self.clock.advance(ANSWERED_SECONDS)
        self.assertEqual(sum(each.called for each in refused), 2 * ANSWERED)
        self.tarpit.stop()
        for each in refused:
            self.failureResultOf(each, RateLimited)
        self.assertEqual((len(self.tarpit), self.clock.getDelayedCalls()), (0, []))

    def test_a_connection_that_is_closed_frees_its_place(self) -> None:
        owner = object()
        held = self.refuse("a", owner=owner)
        self.tarpit.leave(owner)
        self.failureResultOf(held, Draining)
        self.tarpit.leave(owner)
        self.assertEqual((len(self.tarpit), self.clock.getDelayedCalls()), (0, []))

    def test_a_stop_answers_all(self) -> None:
        held = [self.refuse("a"), self.refuse("b")]
        self.tarpit.stop()
        for each in held:
            self.failureResultOf(each, RateLimited)
        self.assertEqual(self.clock.getDelayedCalls(), [])
