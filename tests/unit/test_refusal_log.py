"""taskd.api.refusal_log: refused logins in the audit."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from taskd.api.refusal_log import FLUSH_SECONDS, MAX_ROWS, SOON_SECONDS, RefusalLog
from taskd.ports.accounts import Entry
from tests.unit.logins import LoginCase
from tests.unit.stage import now


class RefusalLogTests(LoginCase):
    def setUp(self) -> None:
        super().setUp()
        self.log = RefusalLog(self.clock, self.store)

    def add(self, subject: str = "ana", address: str = "192.0.2.1", outcome: str = "forbidden", times: int = 1) -> None:
        for _ in range(times):
            self.log.add(Entry("login", subject=subject, address=address, outcome=outcome))

    def audit(self) -> Sequence[tuple[str, str | None, str, int]]:
        rows = now(self.store.list_audit(None, 10_000))
        return sorted((r.entry.subject, r.entry.address, r.entry.outcome, r.entry.number) for r in rows)

    def test_one_row_an_account_address_and_minute(self) -> None:
        self.add(times=3)
        self.add(address="192.0.2.2")
        self.add(subject="eva", times=2)
        self.add(outcome="rate_limited", times=4)
        self.assertEqual(self.audit(), [])
        self.clock.advance(FLUSH_SECONDS)
        expected = [
            ("ana", "192.0.2.1", "forbidden", 3),
            ("ana", "192.0.2.1", "rate_limited", 4),
            ("ana", "192.0.2.2", "forbidden", 1),
            ("eva", "192.0.2.1", "forbidden", 2),
        ]
        self.assertEqual(self.audit(), expected)
        self.add()
        self.clock.advance(FLUSH_SECONDS)
        self.assertEqual(self.audit(), sorted([*expected, ("ana", "192.0.2.1", "forbidden", 1)]))

    def test_refusals_without_an_account_are_bounded(self) -> None:
        for uid in range(3 * MAX_ROWS):
            self.log.add(Entry("login", outcome="forbidden", details=f"local uid {uid}"))
        self.assertEqual(self.log.pending(""), 0)
        self.clock.advance(FLUSH_SECONDS)
        rows = self.audit()
        self.assertEqual((len(rows), sum(row[-1] for row in rows)), (MAX_ROWS + 1, 3 * MAX_ROWS))

    def test_without_refusals_there_is_no_timer(self) -> None:
        before = len(self.clock.getDelayedCalls())
        self.add()
        self.assertEqual(len(self.clock.getDelayedCalls()), before + 1)
        self.clock.advance(FLUSH_SECONDS)
        self.assertEqual(len(self.clock.getDelayedCalls()), before)

    def test_the_store_counts_guesses_and_not_what_was_refused_without_one(self) -> None:
        self.add(times=3)
        self.add(outcome="rate_limited", times=50)
        self.assertEqual(self.log.pending("ana"), 3)
        self.clock.advance(FLUSH_SECONDS)
        self.assertEqual((self.log.pending("ana"), now(self.store.count_refusals(["ana"], 3600))), (0, [3]))

    def test_it_can_hurry(self) -> None:
        self.log.hurry()
        self.add()
        self.log.hurry()
        self.clock.advance(SOON_SECONDS)
        self.assertEqual(len(self.audit()), 1)

    def test_what_cannot_be_stored_is_kept(self) -> None:
        self.add(times=2)
        self.runner.away = True
        with capturedLogs() as events:
            self.clock.advance(FLUSH_SECONDS)
        self.assertIn("not in the audit yet", events[0]["log_format"])
        self.add(times=3)
        self.assertEqual(self.log.pending("ana"), 5)
        self.runner.away = False
        self.clock.advance(FLUSH_SECONDS)
        self.assertEqual(self.audit(), [("ana", "192.0.2.1", "forbidden", 5)])
        self.assertEqual(self.log.pending("ana"), 0)

    def test_guesses_that_are_being_stored_are_still_pending(self) -> None:
        self.add(times=2)
        self.runner.slow = True
        self.clock.advance(FLUSH_SECONDS)
        self.add()
        self.assertEqual(self.log.pending("ana"), 3)
        self.runner.run_waiting()
        self.assertEqual(self.log.pending("ana"), 1)

    def test_a_stop_stores_the_rest(self) -> None:
        self.add()
        self.runner.slow = True
        self.clock.advance(FLUSH_SECONDS)
        self.add(subject="eva")
        stopped = Deferred.fromCoroutine(self.log.stop())
        self.runner.run_waiting()
        self.assertNoResult(stopped)
        self.runner.run_waiting()
        self.successResultOf(stopped)
        self.runner.slow = False
        self.assertEqual(len(self.audit()), 2)

    def test_a_stop_without_a_store_says_what_is_lost(self) -> None:
        before = len(self.clock.getDelayedCalls())
        self.add(times=7)
        self.runner.away = True
        with capturedLogs() as events:
            now(self.log.stop())
        self.assertEqual(events[-1]["number"], 7)
        self.assertEqual(len(self.clock.getDelayedCalls()), before)

    def test_cheap_refusals_do_not_fill_the_database(self) -> None:
        for n in range(3 * MAX_ROWS):
            self.add(f"user{n}", f"192.0.2.{n % 200}", "rate_limited")
        self.add("ana")
        self.clock.advance(FLUSH_SECONDS)
        rows = self.audit()
        self.assertEqual(len(rows), MAX_ROWS + 2)
        self.assertEqual(sum(number for *_, number in rows), 3 * MAX_ROWS + 1)
        self.assertIn(("", None, "rate_limited", 2 * MAX_ROWS), rows)
        self.assertIn(("ana", "192.0.2.1", "forbidden", 1), rows)
