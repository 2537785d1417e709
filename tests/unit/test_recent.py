"""taskd.api.crowds, recent and rate_limit: counts and limits by source, in bounded memory."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from twisted.internet.task import Clock

from taskd.api.crowds import Crowds
from taskd.api.rate_limit import RateLimit
from taskd.api.recent import Recent


class TestCrowds:
    def test_it_counts_like_a_counter(self) -> None:
        rng, crowds, expected = random.Random(1), Crowds[int](), Counter[int]()
        for _ in range(5000):
            key = rng.randrange(8)
            if expected[key] and rng.random() < 0.5:
                crowds.remove(key)
                expected[key] -= 1
            else:
                crowds.add(key)
                expected[key] += 1
            assert crowds.count(key) == expected[key]
            assert crowds.total == expected.total()
            assert len(crowds) == len(+expected)
            if crowds.total:
                assert expected[crowds.largest()] == max(expected.values())


class TestRecent:
    def recent(self, most: int) -> Recent[str | int, int]:
        self.oldest = 0
        return Recent(lambda value: value > self.oldest, max, most)

    def test_what_is_evicted_stays_as_a_bound(self) -> None:
        recent = self.recent(64)
        recent.set("attacker", 1000)
        for n in range(10_000):
            recent.set(n, 1)
        assert len(recent) == 64
        assert recent.get("attacker") == 1000

    def test_memory_is_bounded(self) -> None:
        recent = self.recent(64)
        for n in range(10_000):
            recent.set(n, 1)
        assert len(recent) + len(recent._cells) <= 64 + 16

    def test_what_means_nothing_is_forgotten(self) -> None:
        recent = self.recent(64)
        for n in range(1, 65):
            recent.set(n, n)
        self.oldest = 60
        assert recent.get(60) is None and recent.get(61) == 61
        for n in range(100, 140):
            recent.set(n, n)
        assert len(recent) == 44, "the 60 were dropped, two with each new one"
        recent.clear(100)
        assert recent.get(100) is None

    def test_keys_that_share_a_cell(self) -> None:
        recent = self.recent(4)
        for n in range(100):
            recent.set(n, 7)
        assert (recent.get("honest"), recent.own("honest")) == (7, None), "all share one cell"
        recent.set("honest", 1)
        assert (recent.get("honest"), recent.own("honest")) == (7, 1)
        recent.clear("honest")
        assert recent.get("honest") is None
        recent.set("honest", 2)
        assert recent.get("honest") == 2
        for n in range(4):
            recent.set(n, 1)
        assert recent.get("honest") == 7, "it was evicted itself"


class TestRateLimit:
    def test_a_burst_then_the_rate(self) -> None:
        clock = Clock()
        limit = RateLimit(clock, 6, 60.0)
        for _ in range(6):
            assert limit.wait("a") == 0
            limit.take("a")
        assert limit.wait("a") == pytest.approx(10)
        assert limit.wait("b") == 0
        clock.advance(9.5)
        assert limit.wait("a") == pytest.approx(0.5)
        clock.advance(0.5)
        assert limit.wait("a") == 0
        limit.take("a")
        assert limit.wait("a") == pytest.approx(10)
        clock.advance(3600)
        for _ in range(6):
            assert limit.wait("a") == 0
            limit.take("a")
        assert limit.wait("a") > 0

    def test_a_token_that_is_given_back(self) -> None:
        limit = RateLimit(Clock(), 1, 60.0)
        limit.take("a")
        assert limit.wait("a") == 60
        limit.give_back("a")
        limit.give_back("a")
        assert limit.wait("a") == 0
        limit.take("a")
        assert limit.wait("a") == 60, "there is never more than the bucket holds"

    def test_0_is_no_limit(self) -> None:
        limit = RateLimit(Clock(), 0, 60.0)
        for _ in range(1000):
            limit.take("a")
        assert limit.wait("a") == 0

    def test_other_sources_do_not_make_it_forget(self) -> None:
        limit = RateLimit(Clock(), 10, 3600.0, most=100)
        for _ in range(10):
            limit.take("a")
        for n in range(5000):
            limit.take(str(n))
        assert limit.wait("a") == pytest.approx(360)
        assert sum(limit.wait(f"new{n}") > 0 for n in range(1000)) < 100, "others do not share its fate"
