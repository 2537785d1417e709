"""taskd.api.password_hashes: the work of a wrong password, and hashes that get the present cost."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import bcrypt
import pytest

from taskd.api.password_hashes import READ_SECONDS, matches, rounds_of
from tests.unit.stage import PASSWORD, SESSION, Client, Stage, StageCase, now
from tests.unit.test_accounts import Hashes

NEW = "another horse battery"


def stored(rounds: int, password: str = PASSWORD) -> str:
    """A hash of this cost."""
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(rounds)).decode()


class Work:
    """Counts the rounds that bcrypt really does."""

    def __init__(self, patch: Any) -> None:
        self.rounds = 0
        hashpw, checkpw = bcrypt.hashpw, bcrypt.checkpw

        def counted_hash(secret: bytes, salt: bytes) -> bytes:
            hashed = hashpw(secret, salt)
            self.rounds += 2 ** int(salt[4:6])
            return hashed

        def counted_check(secret: bytes, hashed: bytes) -> bool:
            good = checkpw(secret, hashed)
            self.rounds += 2 ** int(hashed[4:6])
            return good

        patch(bcrypt, "hashpw", counted_hash)
        patch(bcrypt, "checkpw", counted_check)

    def take(self) -> int:
        """The rounds since the last call."""
        done, self.rounds = self.rounds, 0
        return done


@pytest.mark.parametrize("rounds", [4, 5, 8])
def test_every_wrong_password_takes_the_same_work(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = [stored(cost) for cost in range(4, rounds + 1)]
    work = Work(monkeypatch.setattr)
    for each in ["", *hashes, "nonsense", "$2b$04$short", "!"]:
        assert not matches(b"wrong horse", each, rounds)
        assert work.take() == 2**rounds
    for each in hashes:
        assert matches(PASSWORD.encode(), each, rounds)


def test_an_overlong_password_takes_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = stored(4, "x" * 72)
    work = Work(monkeypatch.setattr)
    assert not matches(b"x" * 73, hashed, 6)
    assert work.take() == 2**6


@pytest.mark.parametrize(
    ("text", "rounds"), [("$2b$04$x", 4), ("$2a$12$", 12), ("", None), ("$2b$hash", None), ("!$2b$04$", None)]
)
def test_the_cost_of_a_hash(text: str, rounds: int | None) -> None:
    assert rounds_of(text) == rounds


class CostCase(StageCase):
    """A server whose settings want the cost 6, and accounts from before."""

    rounds = 6

    def setUp(self) -> None:
        self.hashes = Hashes()
        self.stage = Stage(run_hash=self.hashes, rounds=self.rounds, threads=1)
        self.addCleanup(self.stage.close)

    def add(self, name: str, rounds: int) -> str:
        """An account whose password was set at this cost. Returns its hash."""
        hashed = stored(rounds)
        now(self.stage.store.create_user(name, name, hashed))
        return hashed

    def login(self, name: str, password: str = PASSWORD, client: Client | None = None) -> dict[str, Any]:
        return (client or self.stage.connect()).ask("login", username=name, password=password)

    def hash_of(self, name: str = "ana") -> str:
        [(hashed,)] = self.stage.sql("SELECT password FROM users WHERE username = ?", name)
        return str(hashed)


class Refusals(CostCase):
    def works(self, *names: str) -> set[int]:
        """What a wrong password takes for each of these."""
        work, found = Work(self.patch), set()
        for n, name in enumerate(names):
            client = self.stage.connect(f"192.0.2.{n}")
            self.assertEqual(self.login(name, "wrong horse", client)["status"], "wrong_credentials")
            found.add(work.take())
        return found

    def test_after_the_cost_was_raised(self) -> None:
        self.add("old", 4)
        self.add("new", 6)
        now(self.stage.store.create_local("local", "local", 1001))
        self.assertEqual(self.works("old", "new", "local", "nobody"), {2**6})

    def test_after_the_cost_was_lowered(self) -> None:
        self.add("high", 7)
        self.add("new", 6)
        self.assertEqual(self.works("high", "new", "nobody"), {2**7})
        self.stage.sql("DELETE FROM users WHERE username = 'high'")
        self.assertEqual(self.works("new", "somebody"), {2**7}, "as it was read")
        self.stage.clock.advance(READ_SECONDS / timedelta(seconds=1))
        self.assertEqual(self.works("new", "anybody"), {2**6})

    def test_the_database_is_away(self) -> None:
        self.stage.runner.away = True
        self.assertRefused(self.login("ana"), "unavailable")
        self.stage.runner.away = False
        self.add("high", 7)
        self.assertEqual(self.works("high", "nobody"), {2**7})


class Renewal(CostCase):
    def test_a_login_renews_the_hash(self) -> None:
        for rounds in (4, 7):
            name = f"user{rounds}"
            self.add(name, rounds)
            client = self.stage.connect()
            token = self.login(name, client=client)["token"]
            self.assertEqual(rounds_of(self.hash_of(name)), 6)
            self.assertTrue(client.ask("whoami")["ok"])
            self.assertTrue(self.stage.connect().ask("login", token=token)["ok"], "no session ends")
            renewed = self.hash_of(name)
            self.assertTrue(self.login(name)["ok"])
            self.assertEqual(self.hash_of(name), renewed)
        self.assertEqual({action for (action,) in self.stage.sql("SELECT action FROM audit")}, {"login"})

    def test_a_wrong_password_renews_nothing(self) -> None:
        before = self.add("ana", 4)
        self.login("ana", "wrong horse")
        self.assertEqual(self.hash_of(), before)

    def test_the_reply_comes_before(self) -> None:
        before = self.add("ana", 4)
        self.hashes.slow = True
        client = self.stage.connect()
        number = client.start("login", username="ana", password=PASSWORD)
        self.hashes.run_waiting()
        self.assertTrue(client.reply(number)["ok"])
        self.stage.run_pending()
        self.assertEqual(self.hash_of(), before)
        self.hashes.run_waiting()
        self.assertEqual(rounds_of(self.hash_of()), 6)

    def test_it_is_left_out_while_others_wait(self) -> None:
        before = self.add("ana", 4)
        self.hashes.slow = True
        client = self.stage.connect()
        number = client.start("login", username="ana", password=PASSWORD)
        self.stage.connect("192.0.2.9").start("login", username="nobody", password=PASSWORD)
        self.hashes.run_waiting()
        self.assertTrue(client.reply(number)["ok"])
        for _ in range(5):
            self.stage.run_pending()
            self.hashes.run_waiting()
        self.assertEqual(self.hash_of(), before)

    def test_a_password_that_was_changed_meanwhile_stays(self) -> None:
        self.add("ana", 4)
        self.hashes.slow = True
        self.stage.connect().start("login", username="ana", password=PASSWORD)
        self.hashes.run_waiting()
        self.stage.run_pending()
        changed = stored(6, NEW)
        self.stage.sql("UPDATE users SET password = ?", changed)
        self.hashes.run_waiting()
        self.assertEqual(self.hash_of(), changed)

    def test_the_database_is_away_then(self) -> None:
        before = self.add("ana", 4)
        self.hashes.slow = True
        self.stage.connect().start("login", username="ana", password=PASSWORD)
        self.hashes.run_waiting()
        self.stage.run_pending()
        self.stage.runner.away = True
        self.hashes.run_waiting()
        self.stage.runner.away = False
        self.assertEqual(self.hash_of(), before)
        self.hashes.slow = False
        self.assertTrue(self.login("ana")["ok"])
        self.assertEqual(rounds_of(self.hash_of()), 6, "the next login tries again")

    def test_a_login_that_meets_a_renewal_is_not_refused(self) -> None:
        self.add("ana", 4)
        self.hashes.slow = True
        client = self.stage.connect()
        number = client.start("login", username="ana", password=PASSWORD)
        self.stage.sql("UPDATE users SET password = ?", stored(6))  # another server has renewed it
        self.hashes.run_waiting()
        self.hashes.run_waiting()
        self.assertTrue(client.reply(number)["ok"])

    def test_a_login_that_meets_a_change_of_the_password_is_refused(self) -> None:
        self.add("ana", 4)
        self.hashes.slow = True
        client = self.stage.connect()
        number = client.start("login", username="ana", password=PASSWORD)
        self.stage.sql("UPDATE users SET password = ?", stored(6, NEW))
        self.hashes.run_waiting()
        self.hashes.run_waiting()
        self.assertEqual(client.reply(number)["status"], "wrong_credentials")

    def test_a_change_of_the_password_that_meets_a_renewal(self) -> None:
        before = self.add("ana", 4)
        client = self.stage.connect()
        self.login("ana", client=client)
        self.stage.sql("UPDATE users SET password = ?", before)
        self.hashes.slow = True
        number = client.start("change_password", password=PASSWORD, new_password=NEW)
        self.stage.sql("UPDATE users SET password = ?", stored(6))
        for _ in range(3):
            self.hashes.run_waiting()
        self.assertTrue(client.reply(number)["ok"])
        self.hashes.slow = False
        self.assertTrue(self.login("ana", NEW)["ok"])

    def test_a_login_lasts_as_long_as_ever(self) -> None:
        self.add("ana", 4)
        self.assertEqual(self.login("ana")["expires_in"], SESSION)
