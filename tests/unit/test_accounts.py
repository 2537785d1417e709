"""taskd.api.accounts: registration, login and session tokens, through the protocol."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import bcrypt
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from taskd.api.hash_queue import MAX_WAITING_EACH, HashPool
from taskd.api.login_guard import Client
from taskd.model.errors import BadRequest, RateLimited
from taskd.model.tokens import token_hash
from tests.unit.stage import ADMIN, PASSWORD, SESSION, Stage, StageCase


class Hashes:
    """A fake hash pool that counts its hashes. It hashes at once, or while ``slow`` in :meth:`run_waiting`."""

    def __init__(self) -> None:
        self.slow = False
        self.done = 0
        self._waiting: list[Callable[[], None]] = []

    def __call__(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        result: Deferred[Any] = Deferred()

        def work() -> None:
            self.done += 1
            result.callback(function(*args))

        if self.slow:
            self._waiting.append(work)
        else:
            work()
        return result

    def run_waiting(self) -> None:
        """Run the waiting hashes."""
        waiting, self._waiting = self._waiting, []
        for work in waiting:
            work()


class AccountCase(StageCase):
    wait = 0.0

    def setUp(self) -> None:
        self.hashes = Hashes()
        self.stage = Stage(run_hash=self.hashes)
        self.addCleanup(self.stage.close)
        self.client = self.stage.connect()

    def register(self, username: str, password: str = PASSWORD) -> dict[str, Any]:
        return self.client.ask("register", username=username, password=password)

    def login(self, username: str, password: str = PASSWORD) -> dict[str, Any]:
        # whoever has sent wrong passwords waits before the next one
        self.stage.clock.advance(self.wait)
        reply = self.client.ask("login", username=username, password=password)
        self.wait = 0.0 if reply["ok"] else max(1.0, 2 * self.wait)
        return reply


class Registering(AccountCase):
    def test_success(self) -> None:
        reply = self.register("Ana")
        self.assertEqual((reply["status"], reply["username"], reply["user_id"]), ("success", "Ana", 1))
        self.assertNotIn("token", reply)
        self.assertRefused(self.client.ask("whoami"), "auth_required")

    def test_the_password_is_stored_as_a_hash(self) -> None:
        self.register("ana")
        [(stored,)] = self.stage.sql("SELECT password FROM users")
        self.assertRegex(stored, r"^\$2b\$04\$.{53}$")

    def test_a_taken_name_is_refused_in_every_spelling(self) -> None:
        self.register("Straße")
        for name in ("Straße", "STRASSE", "strasse", "ｓｔｒａｓｓｅ"):  # noqa: RUF001
            reply = self.register(name)
            self.assertRefused(reply, "conflict", "username")
            self.assertEqual(reply["status"], "in_use")

    def test_of_two_simultaneous_registrations_of_a_name_one_succeeds(self) -> None:
        self.hashes.slow = True
        clients = [self.stage.connect() for _ in range(2)]
        ids = [client.start("register", username="ana", password=PASSWORD) for client in clients]
        self.hashes.run_waiting()
        statuses = [client.reply(n)["status"] for client, n in zip(clients, ids, strict=True)]
        self.assertEqual(sorted(statuses), ["in_use", "success"])
        self.assertEqual(self.stage.sql("SELECT count(*) FROM users"), [(1,)])

    def test_invalid_names_are_refused(self) -> None:
        for name in ("", " ana", "a\0b", "a\u202eb", "a\u200bb", "x" * 65, "\u3164"):
            self.assertRefused(self.register(name), "bad_request", "username")
        self.assertEqual(self.hashes.done, 0)

    def test_a_name_may_have_64_characters_after_normalisation(self) -> None:
        self.assertTrue(self.register("e\u0301" * 64)["ok"])
        self.assertEqual(self.login("é" * 64)["username"], "é" * 64)

    def test_invalid_passwords_are_refused(self) -> None:
        for password in ("", "x" * 7, "x" * 73, "ñ" * 36 + "x", "abcd\0efgh"):
            self.assertRefused(self.register("ana", password), "bad_request", "password")
        self.assertEqual(self.hashes.done, 0)

    def test_the_last_byte_of_the_longest_password_counts(self) -> None:
        password = "🦀" * 17 + "abcd"
        self.assertTrue(self.register("ana", password)["ok"])
        self.assertEqual(self.login("ana", password[:-1] + "e")["status"], "wrong_credentials")
        self.assertEqual(self.login("ana", password)["status"], "logged_in")

    def test_missing_fields_are_named(self) -> None:
        self.assertRefused(self.client.ask("register", username="ana"), "bad_request", "password")
        self.assertRefused(self.client.ask("register", password=PASSWORD), "bad_request", "username")

    def test_no_reply_contains_a_password(self) -> None:
        self.register("ana", "hunter2hunter2")
        for reply in (self.register("ana", "hunter2\0hunter2"), self.login("ana", "hunter2hunter3")):
            self.assertNotIn("hunter2", str(reply))

    def test_the_name_of_an_admin_is_refused_in_every_spelling_and_from_everywhere(self) -> None:
        for host in ("192.0.2.1", "127.0.0.1"):
            for name in (ADMIN, ADMIN.upper(), "\uff32oot"):
                reply = self.stage.connect(host).ask("register", username=name, password=PASSWORD)
                self.assertRefused(reply, "forbidden", "username")
                self.assertIn("TASKD_ADMINS", reply["message"])
        self.assertEqual(self.hashes.done, 0)
        self.assertEqual(self.stage.sql("SELECT count(*) FROM users"), [(0,)])


class Admins(StageCase):
    def test_a_weight_is_set(self) -> None:
        ana = self.stage.user_id("ana")
        admin = self.stage.admin()
        for name, weight in (("ana", 2.5), ("ANA", 1000), ("ana", 0.001)):
            reply = admin.ask("set_weight", username=name, weight=weight)
            self.assertEqual((reply["ok"], reply["username"], reply["weight"]), (True, name, weight))
            self.assertEqual(self.stage.sql("SELECT weight FROM users WHERE id = ?", ana), [(weight,)])

    def test_weights_out_of_range_are_refused(self) -> None:
        admin = self.stage.admin()
        for weight in (0, 0.0009, -1, 1000.1, 10**400, "1", None, True):
            reply = admin.ask("set_weight", username=ADMIN, weight=weight)
            self.assertRefused(reply, "bad_request", "weight")
        for word in (b"NaN", b"Infinity"):
            admin.send(b'{"action":"set_weight","username":"root","weight":' + word + b"}")
            self.assertRefused(admin.line(), "bad_json")
        self.assertEqual(self.stage.sql("SELECT weight FROM users"), [(1.0,)])

    def test_a_user_who_does_not_exist(self) -> None:
        reply = self.stage.admin().ask("set_weight", username="nobody", weight=2)
        self.assertRefused(reply, "not_found", "username")
        self.assertEqual(reply["status"], "no_user")

    def test_others_may_not_set_weights(self) -> None:
        reply = self.stage.client("ana").ask("set_weight", username="ana", weight=2)
        self.assertRefused(reply, "forbidden")
        self.assertRefused(self.stage.connect().ask("set_weight", username="ana", weight=2), "auth_required")
        self.assertEqual(self.stage.sql("SELECT weight FROM users"), [(1.0,)])

    def test_an_admin_is_one_with_a_token_too_and_until_logout(self) -> None:
        token = self.stage.admin().ask("login", username=ADMIN.upper(), password=PASSWORD)["token"]
        client = self.stage.connect()
        self.assertTrue(client.ask("login", token=token)["ok"])
        self.assertTrue(client.ask("set_weight", username=ADMIN, weight=2)["ok"])
        client.ask("logout")
        self.assertRefused(client.ask("set_weight", username=ADMIN, weight=2), "auth_required")


class LoggingIn(AccountCase):
    def setUp(self) -> None:
        super().setUp()
        self.register("Ana")

    def test_success(self) -> None:
        reply = self.login("ANA")
        self.assertEqual(
            {name: reply[name] for name in ("status", "username", "user_id", "expires_in")},
            {"status": "logged_in", "username": "Ana", "user_id": 1, "expires_in": SESSION},
        )
        self.assertGreaterEqual(len(reply["token"]), 32)
        self.assertEqual(self.client.ask("whoami")["username"], "Ana")

    def test_an_unknown_user_is_refused(self) -> None:
        """It gets the same answer as a wrong password, and costs the same work."""
        done = self.hashes.done
        unknown, wrong = self.login("eva"), self.login("ana", "wrong horse")
        self.assertEqual({**unknown, "id": 0}, {**wrong, "id": 0})
        self.assertRefused(unknown, "forbidden", "password")
        self.assertEqual(unknown["status"], "wrong_credentials")
        self.assertEqual(self.hashes.done, done + 2)

    def test_an_unknown_user_is_named_where_the_settings_say_so(self) -> None:
        self.stage.accounts._reveal_unknown = True
        reply = self.login("eva")
        self.assertRefused(reply, "not_found", "username")
        self.assertEqual(reply["status"], "no_user")
        self.assertIn("register", reply["message"])

    def test_a_wrong_password_is_refused(self) -> None:
        for password in ("wrong horse", "", "x", PASSWORD + " ", "x" * 5000):
            reply = self.login("ana", password)
            self.assertRefused(reply, "forbidden", "password")
            self.assertEqual(reply["status"], "wrong_credentials")
        self.assertRefused(self.client.ask("whoami"), "auth_required")

    def test_an_overlong_password_is_wrong_and_still_costs_one_hash(self) -> None:
        self.register("eva", "x" * 72)
        done = self.hashes.done
        self.assertEqual(self.login("eva", "x" * 73)["status"], "wrong_credentials")
        self.assertEqual(self.hashes.done, done + 1)

    def test_a_password_with_a_nul_byte_is_refused(self) -> None:
        self.assertRefused(self.login("ana", PASSWORD + "\0more"), "bad_request", "password")

    def test_a_corrupt_stored_hash_means_wrong_credentials(self) -> None:
        for stored in ("", "nonsense", "$2b$04$short", "$2b$99$" + "." * 53, "ñ"):
            self.stage.sql("UPDATE users SET password = ?", stored)
            self.assertEqual(self.login("ana")["status"], "wrong_credentials")
        self.assertTrue(self.client.ask("ping")["ok"])

    def test_a_panic_of_bcrypt_means_wrong_credentials(self) -> None:
        class Panic(BaseException):
            """What pyo3 raises when Rust code panics."""

        def check(secret: bytes, stored: bytes) -> bool:
            raise Panic

        self.patch(bcrypt, "checkpw", check)
        self.assertEqual(self.login("ana")["status"], "wrong_credentials")

    def test_missing_fields_are_named(self) -> None:
        self.assertRefused(self.client.ask("login"), "bad_request", "username")
        self.assertRefused(self.client.ask("login", username="ana"), "bad_request", "password")
        self.assertRefused(self.client.ask("login", password="x"), "bad_request", "username")

    def test_a_second_login_replaces_the_first_and_ends_its_watch(self) -> None:
        """A failed login changes nothing."""
        self.register("eva")
        self.login("ana")
        self.client.ask("watch")
        self.login("eva", "wrong horse")
        self.assertEqual(self.client.ask("whoami")["username"], "Ana")
        self.stage.announce(self.stage.create("ana"))
        self.assertEqual(len(self.client.events()), 1)
        self.login("eva")
        self.assertEqual(self.client.ask("whoami")["username"], "eva")
        self.stage.announce([*self.stage.create("ana"), *self.stage.create("eva")])
        self.assertEqual(self.client.events(), [])

    def test_requests_sent_behind_a_login_belong_to_the_new_user(self) -> None:
        login = {"action": "login", "username": "ana", "password": PASSWORD}
        self.hashes.slow = True
        self.client.send({"id": 1, **login}, {"id": 2, "action": "whoami"})
        self.hashes.run_waiting()
        self.assertEqual([line["username"] for line in self.client.lines()], ["Ana", "Ana"])


class Sessions(AccountCase):
    def setUp(self) -> None:
        super().setUp()
        self.register("Ana")
        self.token = self.login("ana")["token"]

    def test_a_token_logs_in_another_connection_without_hashing(self) -> None:
        done = self.hashes.done
        other = self.stage.connect()
        reply = other.ask("login", token=self.token)
        self.assertEqual((reply["status"], reply["token"], reply["username"]), ("logged_in", self.token, "Ana"))
        self.assertNotIn("expires_in", reply, "the session is older than this login")
        self.assertEqual(other.ask("whoami")["user_id"], 1)
        self.assertEqual(self.hashes.done, done)

    def test_only_the_hash_of_a_token_is_stored(self) -> None:
        [(stored,)] = self.stage.sql("SELECT token_hash FROM sessions")
        self.assertEqual(stored, token_hash(self.token))
        self.assertNotIn(self.token.encode(), stored)

    def test_every_login_gets_a_new_token(self) -> None:
        self.assertNotEqual(self.login("ana")["token"], self.token)

    def test_invalid_tokens_are_refused(self) -> None:
        for token in ("", "x", self.token + "x", self.token[:-1], "\0", "ñ" * 5000):
            self.assertRefused(self.stage.connect().ask("login", token=token), "auth_required", "token")

    def test_logout_ends_the_session_and_the_watch(self) -> None:
        self.client.ask("watch")
        self.assertEqual(self.client.ask("logout")["status"], "success")
        self.assertRefused(self.client.ask("whoami"), "auth_required")
        self.assertRefused(self.client.ask("login", token=self.token), "auth_required", "token")
        self.assertRefused(self.client.ask("logout"), "auth_required")
        self.stage.announce(self.stage.create("ana"))
        self.assertEqual(self.client.events(), [])

    def test_a_logout_that_failed_with_the_store_away_can_be_repeated(self) -> None:
        self.stage.runner.away = True
        self.assertRefused(self.client.ask("logout"), "unavailable")
        self.stage.runner.away = False
        self.assertTrue(self.client.ask("logout")["ok"])
        self.assertRefused(self.client.ask("login", token=self.token), "auth_required", "token")

    def test_a_session_expires(self) -> None:
        self.stage.clock.advance(SESSION - 1)
        self.assertTrue(self.stage.connect().ask("login", token=self.token)["ok"])
        self.stage.clock.advance(1)
        self.assertRefused(self.stage.connect().ask("login", token=self.token), "auth_required", "token")


class HashLimit(AccountCase):
    """A line of logins that is full."""

    def client_of(self, n: int) -> Client:
        return Client("192.0.2.1", n)

    def test_who_finds_no_place_learns_when_to_come_again(self) -> None:
        stage = Stage(run_hash=self.hashes, threads=1)
        self.addCleanup(stage.close)
        stage.client("ana")
        self.hashes.slow = True
        logins = [
            Deferred.fromCoroutine(stage.accounts.login(self.client_of(n), "ana", PASSWORD))
            for n in range(MAX_WAITING_EACH + 1)
        ]
        late = Deferred.fromCoroutine(stage.accounts.login(self.client_of(-1), "ana", PASSWORD))
        self.assertNoResult(late)
        stage.clock.advance(10)
        error = self.failureResultOf(late, RateLimited)
        self.assertGreaterEqual(error.value.retry_after, 1)
        for _ in logins:
            self.hashes.run_waiting()
            stage.run_pending()
        self.assertEqual(len([self.successResultOf(login) for login in logins]), MAX_WAITING_EACH + 1)

    def test_a_failing_hash_frees_its_place_in_the_line(self) -> None:
        async def fail(function: Any, *args: Any) -> Any:
            raise ZeroDivisionError

        stage = Stage(run_hash=fail, threads=1)
        self.addCleanup(stage.close)
        for n in range(5):
            registering = Deferred.fromCoroutine(stage.accounts.register(self.client_of(n), f"u{n}", PASSWORD))
            stage.run_pending()
            self.failureResultOf(registering, ZeroDivisionError)


class WithoutProtocol(AccountCase):
    """Arguments that cannot arrive as JSON, and errors as they are raised."""

    def test_surrogates_are_refused(self) -> None:
        accounts, client = self.stage.accounts, Client("192.0.2.1", self)
        for call in (
            accounts.register(client, "ana", "secret\ud800secret"),
            accounts.register(client, "a\ud800", PASSWORD),
            accounts.login(client, "ana", "secret\ud800secret"),
        ):
            self.failureResultOf(Deferred.fromCoroutine(call), BadRequest)


class HashPoolTests(TestCase):
    """HashPool with real threads."""

    async def test_hashes_run_outside_the_reactor_thread(self) -> None:
        pool = HashPool(reactor, threads=2)  # type: ignore[arg-type]
        pool.start()
        threads = await gatherResults([pool(threading.current_thread) for _ in range(10)])
        self.assertNotIn(threading.current_thread(), threads)
        self.assertLessEqual(len(set(threads)), 2)
        with self.assertRaises(ZeroDivisionError):
            await pool(divmod, 1, 0)
        pool.stop()

    async def test_stop_waits_only_for_hashes_that_have_begun(self) -> None:
        pool = HashPool(reactor, threads=1)  # type: ignore[arg-type]
        pool.start()
        begun, may_end = threading.Event(), threading.Event()
        done: list[int] = []

        def work(n: int) -> None:
            begun.set()
            may_end.wait(5)
            done.append(n)

        for n in range(5):
            pool(work, n)
        begun.wait(5)
        may_end.set()
        pool.stop()
        self.assertEqual(done, [0])
