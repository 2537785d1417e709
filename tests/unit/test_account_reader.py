"""Who logs in at the same time shares what is read from the store."""

from __future__ import annotations

from taskd.api.account_reader import MOST_READ, AccountReader
from taskd.model.errors import Unavailable
from taskd.ports.accounts import Entry
from tests.unit.stage import StageCase, now


class ReaderTests(StageCase):
    def setUp(self) -> None:
        super().setUp()
        self.ana = self.stage.user_id("ana")
        self.reader = AccountReader(self.stage.clock, self.stage.store, 3600)
        self.runner = self.stage.runner
        self.runner.slow = True

    def answer(self) -> int:
        """Answer the waiting statements. Returns how many there were."""
        count = self.runner.waiting
        self.runner.run_waiting()
        self.stage.pass_time(0.1)
        return count

    def test_a_flood_needs_few_statements(self) -> None:
        found = [self.reader.account(f"name{n}", "") for n in range(2 * MOST_READ)] + [self.reader.account("ana", "")]
        statements = 0
        while not found[-1].called:
            self.stage.pass_time(0.1)
            statements += self.answer()
        self.assertLessEqual(statements, 4)
        account = self.successResultOf(found[-1])
        assert account is not None
        self.assertEqual(account.user.id, self.ana)
        self.assertEqual({self.successResultOf(each) for each in found[:-1]}, {None})

    def test_each_gets_its_own_number_of_guesses(self) -> None:
        now(self.stage.other_store.audit([Entry("login", subject="ana", outcome="wrong_credentials", number=3)]))
        first, *others = (self.reader.guesses(key) for key in ("ana", "ben", "ana"))
        self.answer()
        self.answer()
        self.assertEqual([self.successResultOf(each) for each in (first, *others)], [3, 0, 3])

    def test_without_the_store_all_are_told(self) -> None:
        found = [self.reader.account("ana", ""), self.reader.account("ben", "")]
        self.runner.away = True
        self.answer()
        self.answer()
        for each in found:
            self.failureResultOf(each, Unavailable)
