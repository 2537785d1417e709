"""taskd.api.login_throttle: who may guess a password, and when."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from taskd.api.login_throttle import ACCOUNT_RETRY, Guess
from taskd.model.errors import RateLimited, Unavailable
from tests.unit.logins import LoginCase, Server
from tests.unit.stage import now

A, B, C = "192.0.2.1", "192.0.2.2", "2001:db8::/64"


class ThrottleCase(LoginCase):
    def begin(self, account: str = "ana", network: str = A, known: bool = False, server: Server | None = None) -> Guess:
        throttle = (server or self.server).throttle
        now(throttle.check(account, network, known))
        return throttle.begin(account, network, known)

    def wrong(self, account: str = "ana", network: str = A, known: bool = False, server: Server | None = None) -> None:
        """A wrong password, as the guard tells of it."""
        self.begin(account, network, known, server).failed()
        (server or self.server).guard._count("login", account, network, "forbidden")

    def refused(
        self, account: str = "ana", network: str = A, known: bool = False, server: Server | None = None
    ) -> float:
        """The ``retry_after`` of a refusal."""
        with self.assertRaises(RateLimited) as caught:
            self.begin(account, network, known, server)
        assert caught.exception.retry_after is not None
        self.assertIn(f"in {caught.exception.retry_after} seconds", caught.exception.message)
        return caught.exception.retry_after


class Delays(ThrottleCase):
    def test_the_delay_doubles_up_to_a_quarter_of_an_hour(self) -> None:
        delays = []
        for _ in range(13):
            self.wrong()
            delays.append(self.refused())
            self.clock.advance(delays[-1] - 0.5)
            self.assertEqual(self.refused(), 1)
            self.clock.advance(0.5)
        self.assertEqual(delays, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900])

    def test_it_is_for_one_account_and_one_source(self) -> None:
        for _ in range(5):
            self.wrong()
            self.clock.advance(900)
        self.wrong()
        self.assertEqual(self.refused(), 32)
        for account, network in (("ana", B), ("eva", A), ("ana", C)):
            self.begin(account, network).dropped()

    def test_a_success_ends_it(self) -> None:
        self.wrong()
        self.clock.advance(1)
        self.wrong()
        self.clock.advance(2)
        self.begin().succeeded()
        self.wrong()
        self.assertEqual(self.refused(), 1)

    def test_it_is_forgotten_after_a_day(self) -> None:
        for day, delay in ((23 * 3600, 2), (25 * 3600, 1)):
            self.wrong(account=str(day))
            self.clock.advance(day)
            self.wrong(account=str(day))
            self.assertEqual(self.refused(account=str(day)), delay)

    def test_a_known_source_has_it_as_well(self) -> None:
        self.wrong(known=True)
        self.assertEqual(self.refused(known=True), 1)

    def test_guesses_at_the_same_time_gain_nothing(self) -> None:
        first = [self.begin() for _ in range(4)]
        for guess in first:
            guess.failed()
        self.assertEqual(self.refused(), 8)
        self.clock.advance(8)
        one = self.begin()
        self.assertEqual(self.refused(), 1)
        one.failed()
        self.assertEqual(self.refused(), 16)

    def test_a_guess_that_was_not_checked_costs_nothing(self) -> None:
        for _ in range(1000):
            self.begin().dropped()
        self.begin().succeeded()

    def test_who_has_very_many_addresses_gains_nothing_by_being_forgotten(self) -> None:
        self.server = self.new_server(most=1000, guesses=0, logins=0)
        for _ in range(8):
            self.wrong()
            self.clock.advance(128)
        for n in range(5000):
            if self.allowed(str(n), f"2001:db8:0:{n:x}::/64"):
                self.wrong(str(n), f"2001:db8:0:{n:x}::/64")
            self.clock.advance(0.01)
        self.clock.advance(128)
        self.wrong()
        self.assertEqual(self.refused(), 128)
        # others who share its cell by chance are rare, and new ones do not drive each other up
        self.clock.advance(2)
        allowed = [n for n in range(500) if self.allowed(f"new{n}", B)]
        self.assertGreater(len(allowed), 450)

    def allowed(self, account: str, network: str) -> bool:
        try:
            self.begin(account, network).dropped()
        except RateLimited:
            return False
        return True


class Sources(ThrottleCase):
    def test_a_source_has_60_wrong_passwords_a_minute(self) -> None:
        for n in range(60):
            self.wrong(f"user{n}")
        self.assertEqual(self.refused("ana"), 1)
        self.begin("ana", B).dropped()
        self.clock.advance(1)
        self.wrong("ana")
        self.refused("eva")

    def test_right_passwords_do_not_count(self) -> None:
        for n in range(1000):
            self.begin(f"user{n}").succeeded()

    def test_known_devices_neither_use_it_nor_are_under_it(self) -> None:
        for n in range(100):
            self.wrong(f"user{n}", known=True)
        for n in range(60):
            self.wrong(f"other{n}")
        self.refused("eva")
        self.begin("eva", known=True).succeeded()

    def test_20_registrations_an_hour(self) -> None:
        for _ in range(20):
            self.server.throttle.register(A)
        with self.assertRaises(RateLimited) as caught:
            self.server.throttle.register(A)
        self.assertEqual(caught.exception.retry_after, 180)
        self.server.throttle.register(B)
        self.clock.advance(180)
        self.server.throttle.register(A)

    def test_without_limits(self) -> None:
        self.server = self.new_server(logins=0, registrations=0, guesses=0)
        for n in range(500):
            self.server.throttle.register(A)
            self.wrong("ana", f"10.0.{n // 250}.{n % 250}")
            self.wrong(f"user{n}")


class Strangers(ThrottleCase):
    def use_up(self, server: Server | None = None, first: int = 0, number: int = 100) -> None:
        for n in range(first, first + number):
            self.wrong("ana", f"198.51.100.{n}", server=server)

    def test_an_account_has_100_wrong_passwords_an_hour_from_all_strangers(self) -> None:
        self.use_up()
        self.assertEqual(self.refused(network=B), ACCOUNT_RETRY)
        self.begin("eva", B).dropped()
        self.begin("ana", B, known=True).succeeded()
        self.refused(network=B)

    def test_an_hour_later_they_may_again(self) -> None:
        self.use_up()
        self.advance(120, step=30)
        self.refused(network=B)
        self.advance(3600, step=30)
        self.begin(network=B).dropped()

    def test_trying_on_does_not_make_it_longer(self) -> None:
        self.use_up()
        for _ in range(62):
            for _ in range(20):
                self.guess_refused()
            self.advance(60, step=30)
        self.begin(network=B).dropped()

    def guess_refused(self) -> None:
        try:
            self.begin(network=C).dropped()
        except RateLimited:
            self.server.guard._count("login", "ana", C, "rate_limited")

    def test_guesses_under_way_count(self) -> None:
        self.use_up(number=98)
        guesses = [self.begin(network=B), self.begin(network=C)]
        self.refused(network="192.0.2.9")
        guesses[0].succeeded()
        self.begin(network="192.0.2.9").dropped()

    def test_the_guesses_of_other_servers_count(self) -> None:
        other = self.new_server()
        self.use_up(other, number=60)
        self.advance(60, step=30)
        self.use_up(first=60, number=40)
        self.refused(network=B)
        self.advance(60, step=30)
        self.refused(network=B, server=other)

    def test_servers_tell_each_other_soon(self) -> None:
        """Guesses in turn on two servers: not twice as many are allowed."""
        servers = [self.server, self.new_server()]
        made = 0
        for n in range(400):
            try:
                self.wrong("ana", f"198.51.{n // 200}.{n % 200}", server=servers[n % 2])
                made += 1
            except RateLimited:
                pass
            self.advance(0.5, step=0.5)
        self.assertLess(made, 125)
        self.assertGreaterEqual(made, 100)

    def test_a_restarted_server_knows_what_was_guessed(self) -> None:
        self.use_up()
        now(self.server.refusals.stop())
        self.refused(network=B, server=self.new_server())

    def test_forgetting_an_account_does_not_help(self) -> None:
        self.server = self.new_server(most=10)
        for n in range(100):
            self.wrong("ana", f"198.51.100.{n}")
            self.clock.advance(1)
        for n in range(50):
            self.wrong(f"user{n}", B)
            self.clock.advance(1)
        self.assertEqual(self.refused(network=C), ACCOUNT_RETRY)

    def test_the_store_is_read_once_for_callers_at_the_same_time(self) -> None:
        self.runner.slow = True
        checks = [Deferred.fromCoroutine(self.server.throttle.check("ana", A, False)) for _ in range(50)]
        self.assertEqual(self.runner.waiting, 1)
        self.runner.run_waiting()
        for check in checks:
            self.successResultOf(check)
        self.runner.slow = False
        calls = self.runner.calls
        self.begin().dropped()
        self.assertEqual(self.runner.calls, calls)

    def test_without_the_store_all_callers_are_told(self) -> None:
        self.runner.slow = self.runner.away = True
        checks = [Deferred.fromCoroutine(self.server.throttle.check("ana", A, False)) for _ in range(3)]
        self.runner.run_waiting()
        for check in checks:
            self.failureResultOf(check, Unavailable)
        now(self.server.throttle.check("ana", A, True))
        self.runner.slow = self.runner.away = False
        self.begin().dropped()
