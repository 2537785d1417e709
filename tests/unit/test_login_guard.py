"""taskd.api.login_guard: guessing and floods, with all parts together, on a clock.

A hash takes HASH seconds in one of THREADS threads.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from taskd.api.login_guard import Client
from taskd.api.login_throttle import ACCOUNT_RETRY
from taskd.api.networks import MANY_USERS
from taskd.api.tarpit import CutOff
from taskd.model.errors import Draining, RateLimited, Unavailable, code_missing, code_refused
from tests.unit.logins import HASH, RIGHT, THREADS, LoginCase
from tests.unit.stage import now

OWNER = "192.0.2.1"


class Checking(LoginCase):
    def test_right_and_wrong(self) -> None:
        login = self.server.login("ana")
        self.advance(HASH)
        self.assertIs(self.successResultOf(login), True)
        login = self.server.login("ana", password="no")
        self.advance(HASH)
        self.assertIs(self.successResultOf(login), False)

    def test_a_refusal_is_late_and_costs_no_hash(self) -> None:
        for delay in (1, 2, 4, 8, 16):
            self.server.login("ana", password="no")
            self.advance(HASH + delay)
        self.server.login("ana", password="no")
        self.advance(HASH)
        begun = self.server.hashes.begun
        login = self.server.login("ana")
        self.advance(4.9)
        self.assertNoResult(login)
        self.advance(0.1)
        self.assertEqual(self.failureResultOf(login, RateLimited).value.retry_after, 32)
        self.assertEqual(self.server.hashes.begun, begun)

    def test_refusals_and_wrong_passwords_go_to_the_audit_by_source(self) -> None:
        for n in range(3):
            self.guess("ana", f"2001:db8::{n}")
        wrong = self.outcome(self.server.login("ana", None, "no"))
        self.advance(HASH)
        refused = self.outcome(self.server.login("ana", None, "no"))
        self.advance(120, step=10)
        self.assertEqual((wrong, refused), (["wrong"], ["RateLimited"]))
        rows = Counter[tuple[Any, ...]]()
        for row in now(self.store.list_audit(None, 100)):
            entry = row.entry
            rows[entry.action, entry.subject, entry.address, entry.outcome] += entry.number
        expected = {
            ("login", "ana", "2001:db8::/64", "forbidden"): 3,
            ("login", "ana", None, "forbidden"): 1,
            ("login", "ana", None, "rate_limited"): 1,
        }
        self.assertEqual(rows, expected)

    def test_without_the_store_there_is_no_guess(self) -> None:
        self.runner.away = True
        self.failureResultOf(self.server.login("ana"), Unavailable)
        self.assertEqual(self.server.hashes.begun, 0)

    def second(self, outcome: Any, password: str = RIGHT) -> list[str]:
        """A login of an account whose second factor says this, or raises it."""

        async def say() -> bool:
            if isinstance(outcome, Exception):
                raise outcome
            return bool(outcome)

        client = Client(OWNER, object())
        check = self.server.guard.check("ana", client, False, RIGHT.__eq__, password, second=say)
        found = self.outcome(Deferred.fromCoroutine(check))
        self.advance(6)
        return found

    def test_a_wrong_code_is_a_wrong_guess(self) -> None:
        for delay in (1, 2, 4, 8, 16):
            self.assertEqual(self.second(code_refused()), ["WrongCode"])
            self.advance(delay)
        self.assertEqual(self.second(code_refused()), ["WrongCode"])
        self.assertEqual(self.second(True), ["RateLimited"])
        self.advance(120, step=10)
        rows = [row.entry for row in now(self.store.list_audit(None, 100))]
        self.assertEqual(sum(entry.number for entry in rows if entry.outcome == "wrong_code"), 6)

    def test_only_the_whole_login_forgives(self) -> None:
        for outcome, found in (
            (code_missing(), "TotpRequired"),
            (False, "right"),
            (Unavailable("away"), "Unavailable"),
        ):
            for delay in (1, 2, 4):
                self.assertEqual(self.second(True, "no"), ["wrong"])
                self.advance(delay)
            self.assertEqual(self.second(outcome), [found])
            self.assertEqual(self.second(True, "no"), ["wrong"])
            self.assertEqual(self.second(True), ["RateLimited"], found)
            self.advance(8)
            self.assertEqual(self.second(True), ["right"])
            self.assertEqual(self.second(True, "no"), ["wrong"])
            self.assertEqual(self.second(True), ["right"], "earlier ones are forgotten")

    def test_a_wrong_password_asks_for_no_second_factor(self) -> None:
        self.assertEqual(self.second(ZeroDivisionError(), "no"), ["wrong"])

    def test_a_failing_hash_is_no_guess(self) -> None:
        async def broken(function: Any, *args: Any) -> Any:
            raise ZeroDivisionError

        self.server.queue._run_hash = broken
        for _ in range(200):
            self.failureResultOf(self.server.login("ana"), ZeroDivisionError)
        self.server.queue._run_hash = self.server.hashes
        login = self.server.login("ana")
        self.advance(HASH)
        self.assertTrue(self.successResultOf(login))

    def test_a_closed_connection_waits_for_nothing(self) -> None:
        owner = object()
        for n in range(THREADS):
            self.server.login(f"user{n}")
        waits = self.server.login("ana", owner=owner)
        self.server.guard.leave(owner)
        self.failureResultOf(waits, Draining)
        self.advance(HASH)
        self.assertEqual((self.server.hashes.begun, self.server.queue.waiting), (THREADS, 0))
        self.guess("ana")
        self.server.login("ana", password="no", owner=owner)
        self.advance(HASH)
        held = self.server.login("ana", owner=owner)
        self.assertEqual(len(self.server.tarpit), 1)
        self.server.guard.leave(owner)
        self.failureResultOf(held, Draining)
        self.assertEqual(len(self.server.tarpit), 0)

    def test_a_stop(self) -> None:
        logins = [self.server.login(f"user{n}", password="no") for n in range(THREADS + 2)]
        stopped = Deferred.fromCoroutine(self.server.guard.stop())
        self.successResultOf(stopped)
        for login in logins[THREADS:]:
            self.failureResultOf(login, Draining)
        self.advance(HASH)
        for login in logins[:THREADS]:
            self.assertIs(self.successResultOf(login), False)

    def test_registrations(self) -> None:
        client = Client("2001:db8::1", object())
        for _ in range(20):
            now(self.server.guard.registration(client))
            made = Deferred.fromCoroutine(self.server.guard.hash_new(client, False, str.upper, "a"))
            self.advance(HASH)
            self.assertEqual(self.successResultOf(made), "A")
        refused = Deferred.fromCoroutine(self.server.guard.registration(Client("2001:db8::2", object())))
        self.advance(4.9)
        self.assertNoResult(refused)
        self.advance(0.1)
        self.failureResultOf(refused, RateLimited)

    def test_many_users_behind_one_private_address_are_reported(self) -> None:
        with capturedLogs() as events:
            for n in range(MANY_USERS):
                self.server.login(f"user{n}", "10.0.0.1")
                self.advance(HASH)
        self.assertEqual([event["address"] for event in events], ["10.0.0.1"])


class Alike(LoginCase):
    """The queue and the limits know nothing of accounts: ``matches`` alone knows whether there is one."""

    def setUp(self) -> None:
        super().setUp()
        self.order: list[str] = []

    def note(self, good: bool, name: str) -> None:
        self.order.append(name)

    def test_the_line_does_not_depend_on_the_account(self) -> None:
        names = ["exists", "missing", "exists too", "missing too"]
        for n, name in enumerate(names):
            self.server.login(name, f"198.51.100.{n}", "no").addCallback(self.note, name)
        self.advance(HASH)
        self.assertEqual(self.order, names)
        self.assertEqual(self.guess("exists", "198.51.100.6"), self.guess("missing", "198.51.100.7"))


class Crowd(LoginCase):
    """A thousand honest logins at once."""

    def all_log_in(self, address: Callable[[int], str], account: Callable[[int], str]) -> None:
        began = self.clock.seconds()
        ends: list[float] = []
        for n in range(1000):
            self.server.login(account(n), address(n)).addCallback(
                lambda good: ends.append(self.clock.seconds() - began) if good else self.fail("refused")
            )
        self.advance(1.3 * 1000 * HASH / THREADS)
        self.assertEqual(len(ends), 1000)

    def test_from_one_address(self) -> None:
        self.all_log_in(lambda n: OWNER, "user{}".format)

    def test_from_many_addresses(self) -> None:
        self.all_log_in(lambda n: f"10.0.{n // 250}.{n % 250}", "user{}".format)

    def test_of_one_account(self) -> None:
        self.all_log_in(lambda n: f"10.0.{n // 250}.{n % 250}", lambda n: "ana")


class Flood(LoginCase):
    """200 addresses send wrong passwords, each over as many connections as it likes, and again as soon as one is
    answered or closed."""

    ADDRESSES = 200

    def flood(self, account: Callable[[int], str], connections: int = 3) -> None:
        self.numbers = itertools.count()
        self.guesses = Counter[str]()
        self.cut = 0
        self.running = True
        for n in range(self.ADDRESSES * connections):
            self.attack(f"198.51.100.{n % self.ADDRESSES}", account)

    def attack(self, address: str, account: Callable[[int], str]) -> None:
        key = account(next(self.numbers))

        def again(result: Any) -> None:
            if result is False:
                self.guesses[key] += 1
            self.cut += bool(getattr(result, "check", lambda _: False)(CutOff))
            if self.running:
                # a new connection takes a moment
                self.clock.callLater(1.0, self.attack, address, account)

        self.server.login(key, address, "no").addBoth(again)

    def timed(self, key: str, address: str, known: bool) -> float:
        """Log in with the right password; how many seconds that takes."""
        began = self.clock.seconds()
        login = self.server.login(key, address, known=known)
        while not login.called:
            self.clock.advance(HASH / 4)
        self.assertTrue(self.successResultOf(login))
        return self.clock.seconds() - began

    def test_on_other_names(self) -> None:
        self.flood("name{}".format)
        self.advance(10)
        for n in range(10):
            self.assertLess(self.timed("ana", OWNER, True), 2.0)
            self.assertLess(self.timed("eva", f"203.0.113.{n}", False), 1.5 * self.ADDRESSES * HASH / THREADS)
        self.assertLess(max(self.guesses.values()), 2)

    def test_on_one_account(self) -> None:
        self.server = self.new_server(held=100)
        self.flood(lambda n: "ana", 1)
        for _ in range(6):
            self.advance(15)
            self.assertLess(self.timed("ana", OWNER, True), 2.0)
            self.assertLess(self.timed("eva", "203.0.113.1", False), 1.5 * self.ADDRESSES * HASH / THREADS)
        self.assertLessEqual(self.guesses["ana"], 100)
        self.assertGreater(self.cut, 0, "more refusals than can be held")
        self.assertLessEqual(len(self.server.tarpit), 100)
        self.assertEqual(self.failed_retry(), ACCOUNT_RETRY)

    def failed_retry(self) -> float | None:
        """``retry_after`` of the right password from a new address."""
        self.running = False
        self.advance(6)
        login = self.server.login("ana", "203.0.113.7")
        self.advance(6)
        return self.failureResultOf(login, RateLimited).value.retry_after

    def test_from_the_address_of_an_owner(self) -> None:
        """From one address the line is first come first served, but known devices are not in the line of strangers."""
        self.ADDRESSES = 1
        self.flood("name{}".format, 500)
        self.advance(5)
        self.assertLess(self.timed("ana", "198.51.100.0", True), 2.0)

    def test_one_guesser_of_one_account(self) -> None:
        """At most a dozen guesses an hour: the delays from 1 second to 15 minutes."""
        self.ADDRESSES = 1
        self.flood(lambda n: "ana", 4)
        self.advance(3600, step=0.5)
        self.running = False
        self.assertLess(self.guesses["ana"], 20)
