"""The second factor: setting it up, logging in with it, guessing its codes, losing it, and admins who need one."""

from __future__ import annotations

from typing import Any

import pyotp
from twisted.trial.unittest import SynchronousTestCase

from taskd.api.rights import FRESH
from taskd.model.totp import digits_of, step_of
from taskd.model.users import Role
from taskd.ports.accounts import Factor
from tests.unit.stage import ADMIN, NOON, PASSWORD, Client, Stage, StageCase, now

STEP = 30
NEW = "another horse battery"


class Codes(SynchronousTestCase):
    def test_those_of_the_rfc(self) -> None:
        """RFC 6238, appendix B, the last six of the eight digits there."""
        secret = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
        for seconds, digits in ((59, "287082"), (1111111109, "081804"), (1234567890, "005924"), (2000000000, "279037")):
            self.assertEqual(step_of(secret, digits, seconds), seconds // STEP)
            self.assertIsNone(step_of(secret, digits, seconds + 2 * STEP))

    def test_what_six_digits_are(self) -> None:
        for code in ("012345", " 012 345 ", "012-345"):
            self.assertEqual(digits_of(code), "012345")
        for code in ("", "12345", "1234567", "12345a", "\u0661\u0662\u0663\u0664\u0665\u0666", "\u00b9" * 6):
            self.assertIsNone(digits_of(code))


class TotpCase(StageCase):
    """A user who has set up a second factor, if a test asks for it."""

    def setUp(self) -> None:
        super().setUp()
        self.client = self.stage.client()
        self.hosts = iter(range(1, 255))
        self.secret = ""
        self.recovery: list[str] = []

    def code(self, steps: int = 0, secret: str | None = None) -> str:
        """What an authenticator with a right clock shows, so many steps from now."""
        seconds = NOON.timestamp() + self.stage.clock.seconds() - 1000.0
        return pyotp.TOTP(secret or self.secret).at(seconds + steps * STEP)

    def wrong(self) -> str:
        """A code that is none of those that are accepted now."""
        accepted = {self.code(steps) for steps in (-1, 0, 1)}
        return next(code for n in range(10) if (code := f"{n:06}") not in accepted)

    def set_up(self, client: Client | None = None) -> None:
        """Turn the second factor on, and wait until the code that was used for it is past."""
        client = client or self.client
        self.secret = client.ask("totp_begin", password=PASSWORD)["secret"]
        reply = client.ask("totp_confirm", code=self.code())
        assert reply["ok"], reply
        self.recovery = reply["recovery_codes"]
        self.stage.clock.advance(2 * STEP)

    def stranger(self) -> Client:
        """A connection from an address of its own."""
        return self.stage.connect(f"198.51.100.{next(self.hosts)}")

    def login(self, client: Client | None = None, **fields: Any) -> dict[str, Any]:
        """A login with the right password, from an address of its own."""
        return (client or self.stranger()).ask("login", **{"username": "ana", "password": PASSWORD, **fields})

    def outcomes(self, action: str) -> list[tuple[str, str, int]]:
        """The audit of an action: outcome, subject and number, the oldest first."""
        self.stage.pass_time(61, step=1)
        rows = now(self.stage.other_store.list_audit(None, 100, action=action))
        return [(row.entry.outcome, row.entry.subject, row.entry.number) for row in reversed(rows)]


class SettingUp(TotpCase):
    def test_it_needs_the_password_and_a_code(self) -> None:
        self.assertRefused(self.client.ask("totp_begin", password="wrong horse"), "forbidden", "password")
        self.stage.pass_time(1.1)
        begun = self.client.ask("totp_begin", password=PASSWORD)
        self.assertRegex(begun["secret"], r"^[A-Z2-7]{32}$")
        self.assertEqual(begun["uri"], f"otpauth://totp/taskd:ana?secret={begun['secret']}&issuer=taskd")
        self.secret = begun["secret"]
        self.assertRefused(self.client.ask("totp_confirm", code=self.wrong()), "wrong_code", "code")
        self.stage.pass_time(1.1)
        self.assertIs(self.client.ask("whoami")["totp"], False)
        codes = self.client.ask("totp_confirm", code=self.code())["recovery_codes"]
        self.assertEqual(len(set(codes)), 10)
        for code in codes:
            self.assertRegex(code, r"^([A-Z2-9]{4}-){5}[A-Z2-9]{4}$")
        self.assertNotIn(codes[0], str(self.stage.sql("SELECT * FROM recovery_codes")))
        self.assertIs(self.client.ask("whoami")["totp"], True)

    def test_one_that_is_not_confirmed_does_not_count(self) -> None:
        first = self.client.ask("totp_begin", password=PASSWORD)["secret"]
        self.assertEqual(self.login()["status"], "logged_in")
        self.secret = self.client.ask("totp_begin", password=PASSWORD)["secret"]
        self.assertNotEqual(self.secret, first)
        self.assertRefused(self.client.ask("totp_confirm", code=self.code(secret=first)), "wrong_code", "code")
        self.stage.pass_time(1.1)
        self.assertTrue(self.client.ask("totp_confirm", code=self.code())["ok"])

    def test_other_sessions_and_tokens_stay(self) -> None:
        other, program = self.stage.client(), self.stage.connect()
        token = self.client.ask("new_token", name="n")["token"]
        self.assertTrue(program.ask("login", token=token)["ok"])
        self.set_up()
        self.assertTrue(other.ask("whoami")["ok"] and program.ask("whoami")["ok"])

    def test_a_second_one_cannot_replace_it(self) -> None:
        self.set_up()
        self.assertRefused(self.client.ask("totp_begin", password=PASSWORD), "conflict")
        self.assertRefused(self.client.ask("totp_confirm", code=self.code()), "conflict")
        self.assertEqual(self.login(code=self.code())["status"], "logged_in")

    def test_the_code_that_confirms_is_used_up(self) -> None:
        self.secret = self.client.ask("totp_begin", password=PASSWORD)["secret"]
        self.assertTrue(self.client.ask("totp_confirm", code=self.code())["ok"])
        self.assertRefused(self.login(code=self.code()), "wrong_code", "code")

    def test_turning_it_off_needs_the_password_and_a_code(self) -> None:
        self.set_up()
        for password, code, refused in (
            ("wrong horse", self.code(), "forbidden"),
            (PASSWORD, self.wrong(), "wrong_code"),
            (PASSWORD, "ABCD-EFGH-JKLM-NPQR-STUV-WXYZ", "wrong_code"),
        ):
            reply = self.client.ask("totp_off", password=password, code=code)
            self.assertEqual(reply["code"], refused)
            self.stage.pass_time(5)
        self.assertTrue(self.client.ask("totp_off", password=PASSWORD, code=self.code())["ok"])
        self.assertIs(self.client.ask("whoami")["totp"], False)
        self.assertEqual(self.login()["status"], "logged_in")
        self.assertEqual(self.stage.sql("SELECT count(*) FROM recovery_codes"), [(0,)])
        self.assertRefused(self.client.ask("totp_off", password=PASSWORD, code=self.code()), "conflict")

    def test_a_recovery_code_turns_it_off(self) -> None:
        self.set_up()
        self.assertTrue(self.client.ask("totp_off", password=PASSWORD, code=self.recovery[3])["ok"])
        self.assertEqual(self.login()["status"], "logged_in")

    def test_the_audit_has_it(self) -> None:
        self.set_up()
        self.client.ask("totp_off", password=PASSWORD, code=self.recovery[0])
        self.set_up()
        self.assertTrue(self.stage.admin().ask("reset_totp", username="ana")["ok"])
        for action, number in (("totp_confirm", 2), ("totp_off", 1), ("reset_totp", 1)):
            self.assertEqual(self.outcomes(action), [("ok", "ana", 1)] * number)


class LoggingIn(TotpCase):
    def setUp(self) -> None:
        super().setUp()
        self.set_up()

    def test_a_password_alone_is_not_enough(self) -> None:
        for code in (None, ""):
            client = self.stranger()
            self.assertRefused(self.login(client, code=code), "totp_required", "code")
            self.assertRefused(client.ask("whoami"), "auth_required")

    def test_a_wrong_password_says_nothing_of_the_second_factor(self) -> None:
        self.stage.client("ben")
        replies = [
            self.login(password="wrong horse", username=name, code=code)
            for name in ("ana", "ben", "nobody")
            for code in (None, self.code())
        ]
        self.assertEqual({reply["status"] for reply in replies}, {"wrong_credentials"})

    def test_password_and_code(self) -> None:
        client = self.stranger()
        self.assertEqual(self.login(client, code=self.code())["status"], "logged_in")
        self.assertIs(client.ask("whoami")["totp"], True)

    def test_a_code_may_have_spaces(self) -> None:
        code = self.code()
        self.assertEqual(self.login(code=f" {code[:3]} {code[3:]}")["status"], "logged_in")

    def test_one_step_before_and_after_is_accepted(self) -> None:
        for steps, good in ((-3, False), (-2, False), (2, False), (3, False), (-1, True), (0, True), (1, True)):
            reply = self.login(code=self.code(steps))
            self.assertEqual(reply["status"] == "logged_in", good, steps)

    def test_each_step_is_accepted_once(self) -> None:
        code = self.code()
        self.assertEqual(self.login(code=code)["status"], "logged_in")
        self.assertRefused(self.login(code=code), "wrong_code", "code")
        self.assertRefused(self.login(code=self.code(-1)), "wrong_code", "code")
        self.stage.clock.advance(STEP)
        self.assertEqual(self.login(code=self.code())["status"], "logged_in")

    def test_of_two_logins_at_the_same_time_one_gets_in(self) -> None:
        self.stage.runner.slow = True
        clients = [self.stranger() for _ in range(2)]
        asked = [client.start("login", username="ana", password=PASSWORD, code=self.code()) for client in clients]
        for _ in range(20):
            self.stage.runner.run_waiting()
            self.stage.run_pending()
        self.stage.runner.slow = False
        replies = [client.reply(request) for client, request in zip(clients, asked, strict=True)]
        self.assertEqual(sorted(reply["ok"] for reply in replies), [False, True])
        self.assertIn("wrong_code", [reply.get("code") for reply in replies])

    def test_the_clock_of_the_server_counts(self) -> None:
        self.stage.clock_ahead = 3600.0
        self.assertRefused(self.login(code=self.code()), "wrong_code", "code")
        self.assertEqual(self.login(code=self.code(120))["status"], "logged_in")
        self.stage.clock_ahead = 0.0
        # what an authenticator with the wrong clock has used up is not given back
        self.assertRefused(self.login(code=self.code()), "wrong_code", "code")
        self.assertEqual(self.login(code=self.recovery[0])["status"], "logged_in")

    def test_a_recovery_code_works_once(self) -> None:
        code = self.recovery[0]
        self.assertEqual(self.login(code=code.lower().replace("-", " "))["status"], "logged_in")
        self.assertRefused(self.login(code=code), "wrong_code", "code")
        self.assertEqual(self.login(code=self.recovery[1])["status"], "logged_in")

    def test_it_is_that_of_this_user(self) -> None:
        mine = self.code()
        recovery = self.recovery[0]
        self.set_up(self.stage.client("ben"))
        self.assertRefused(self.login(username="ben", code=mine), "wrong_code", "code")
        self.assertRefused(self.login(username="ben", code=recovery), "wrong_code", "code")

    def test_tokens_need_no_code(self) -> None:
        session = self.login(code=self.code())["token"]
        token = self.client.ask("new_token", name="n")["token"]
        for each in (session, token):
            self.assertEqual(self.stranger().ask("login", token=each)["status"], "logged_in")

    def test_passwords_and_the_second_factor_are_apart(self) -> None:
        self.assertTrue(self.client.ask("change_password", password=PASSWORD, new_password=NEW)["ok"])
        self.assertRefused(self.login(password=NEW), "totp_required", "code")
        code = self.stage.admin().ask("reset_password", username="ana")["code"]
        self.assertTrue(self.stranger().ask("set_password", username="ana", code=code, new_password=PASSWORD)["ok"])
        self.assertRefused(self.login(), "totp_required", "code")
        client = self.stranger()
        self.assertEqual(self.login(client, code=self.code())["status"], "logged_in")
        self.assertTrue(client.ask("delete_account", password=PASSWORD)["ok"])
        for table in ("recovery_codes", "sessions WHERE user_id = 1", "users WHERE totp_secret IS NOT NULL"):
            self.assertEqual(self.stage.sql(f"SELECT count(*) FROM {table}"), [(0,)], table)

    def test_a_disabled_user_is_not_asked_for_a_code(self) -> None:
        self.assertTrue(self.stage.admin().ask("set_disabled", username="ana", disabled=True)["ok"])
        self.assertRefused(self.login(), "forbidden", "username")

    def test_it_may_be_turned_on_while_a_login_is_under_way(self) -> None:
        ben = self.stage.client("ben")
        self.stage.runner.slow = True
        client = self.stranger()
        asked = client.start("login", username="ben", password=PASSWORD)
        self.stage.runner.run_waiting()
        # the account was read, and the limits are next
        self.stage.runner.slow = False
        other = self.stage.other_store
        user = now(other.find_user("ben")).user
        session = now(other.list_sessions(user.id, 1e6))[0].token_hash
        self.assertTrue(now(other.begin_totp(user.id, "S" * 32)))
        self.assertTrue(now(other.confirm_totp(user.id, Factor("S" * 32, 1), [b"hash"], session)))
        self.stage.run_pending()
        self.stage.runner.run_waiting()
        self.stage.run_pending()
        self.assertRefused(client.reply(asked), "totp_required", "code")
        self.assertTrue(ben.ask("whoami")["ok"])


class Guessing(TotpCase):
    def setUp(self) -> None:
        super().setUp()
        self.stage.close()
        self.stage = Stage(guesses=20)
        self.client = self.stage.client()
        self.set_up()

    def late(self, client: Client, **fields: Any) -> str:
        """The code of the answer, which may be late."""
        asked = client.start("login", **{"username": "ana", "password": PASSWORD, **fields})
        self.stage.pass_time(6)
        reply = client.reply(asked)
        return "ok" if reply["ok"] else str(reply["code"])

    def test_a_wrong_code_delays_like_a_wrong_password(self) -> None:
        client = self.stranger()
        for delay in (1, 2, 4, 8):
            self.assertRefused(self.login(client, code=self.wrong()), "wrong_code", "code")
            self.stage.pass_time(delay + 0.1)
        self.assertRefused(self.login(client, code=self.wrong()), "wrong_code", "code")
        self.stage.pass_time(9)
        again = self.stage.connect("198.51.100.1")
        self.assertEqual(self.late(again, code=self.code()), "rate_limited")
        self.stage.pass_time(6)
        self.assertEqual(self.late(again, code=self.code()), "ok")
        self.assertEqual(self.late(again, password="wrong horse"), "forbidden")
        self.assertEqual(self.late(again, code=self.code(1)), "ok", "earlier wrong guesses are forgotten")

    def test_used_codes_are_guesses_too(self) -> None:
        self.assertEqual(self.login(code=self.code())["status"], "logged_in")
        client = self.stranger()
        self.assertRefused(self.login(client, code=self.code()), "wrong_code", "code")
        self.stage.pass_time(1.1)
        self.assertRefused(self.login(client, code=self.code()), "wrong_code", "code")
        self.assertEqual(self.late(client, code=self.code(1)), "rate_limited")

    def test_a_missing_code_is_no_guess_and_forgives_none(self) -> None:
        client = self.stranger()
        for _ in range(5):
            self.assertRefused(self.login(client), "totp_required", "code")
        for delay in (1, 2, 4, 8):
            self.assertRefused(self.login(client, code=self.wrong()), "wrong_code", "code")
            self.stage.pass_time(delay + 0.1)
            self.assertRefused(self.login(client), "totp_required", "code")
        self.assertRefused(self.login(client, code=self.wrong()), "wrong_code", "code")
        self.stage.pass_time(10)
        self.assertEqual(self.late(client), "rate_limited")

    def test_a_password_that_is_right_elsewhere_forgives_none(self) -> None:
        """Or else a thief of password and session would guess one code a second."""
        old, new = PASSWORD, NEW
        for delay in (1, 2, 4, 8):
            self.assertRefused(self.client.ask("totp_off", password=old, code=self.wrong()), "wrong_code", "code")
            self.stage.pass_time(delay + 0.1)
            self.assertTrue(self.client.ask("change_password", password=old, new_password=new)["ok"])
            old, new = new, old
        self.assertRefused(self.client.ask("totp_off", password=old, code=self.wrong()), "wrong_code", "code")
        self.stage.pass_time(9)
        asked = self.client.start("totp_off", password=old, code=self.code())
        self.stage.pass_time(6)
        self.assertRefused(self.client.reply(asked), "rate_limited")

    def test_an_account_gets_so_many_guesses_an_hour_from_all_strangers(self) -> None:
        for _ in range(20):
            self.assertEqual(self.login(code=self.wrong())["code"], "wrong_code")
        self.assertEqual(self.late(self.stranger(), code=self.code()), "rate_limited")
        # not from where the account has logged in
        self.assertEqual(self.late(self.stage.connect(), code=self.code()), "ok")

    def test_other_servers_know_of_them(self) -> None:
        for _ in range(20):
            self.assertEqual(self.login(code=self.wrong())["code"], "wrong_code")
        self.assertRefused(self.login(self.stage.connect()), "totp_required", "code")
        self.stage.pass_time(61, step=1)
        self.assertEqual(now(self.stage.other_store.count_refusals(["ana"], 3600)), [20])

    def test_the_limit_holds_for_turning_it_off_from_many_addresses(self) -> None:
        token = self.login(self.stage.connect(), code=self.code())["token"]
        for _ in range(20):
            thief = self.stranger()
            self.assertTrue(thief.ask("login", token=token)["ok"])
            reply = thief.ask("totp_off", password=PASSWORD, code=self.wrong())
            self.assertRefused(reply, "wrong_code", "code")
        thief = self.stranger()
        self.assertTrue(thief.ask("login", token=token)["ok"])
        asked = thief.start("totp_off", password=PASSWORD, code=self.code(1))
        self.stage.pass_time(6)
        self.assertRefused(thief.reply(asked), "rate_limited")

    def test_the_audit_has_the_refusals(self) -> None:
        client = self.stranger()
        self.login(client)
        self.login(client, code=self.wrong())
        rows = [row for row in self.outcomes("login") if row[0] != "ok"]
        self.assertEqual(sorted(rows), [("totp_required", "ana", 1), ("wrong_code", "ana", 1)])


class Losing(TotpCase):
    def test_an_admin_turns_it_off(self) -> None:
        self.set_up()
        admin = self.stage.admin()
        [row] = [user for user in admin.ask("users")["users"] if user["username"] == "ana"]
        self.assertIs(row["totp"], True)
        reply = admin.ask("reset_totp", username="Ana")
        self.assertEqual((reply["username"], reply["role"], reply["disabled"]), ("ana", "user", False))
        self.assertEqual(self.login()["status"], "logged_in")
        self.assertIs(self.client.ask("whoami")["totp"], False)
        self.assertRefused(admin.ask("reset_totp", username="nobody"), "not_found", "username")

    def test_also_one_that_waits(self) -> None:
        self.secret = self.client.ask("totp_begin", password=PASSWORD)["secret"]
        self.assertTrue(self.stage.admin().ask("reset_totp", username="ana")["ok"])
        self.assertRefused(self.client.ask("totp_confirm", code=self.code()), "conflict")


class Admins(TotpCase):
    """TASKD_ADMIN_TOTP=1."""

    def setUp(self) -> None:
        super().setUp()
        self.stage.close()
        self.stage = Stage(admin_totp=True)
        self.client = self.stage.client()
        self.task = self.client.ask("new_task", task="x")["task_id"]
        self.admin = self.stage.admin()
        now(self.stage.other_store.set_role(ADMIN, Role.ADMIN))

    def above(self, client: Client) -> list[str]:
        """What it gets for that which needs a role."""
        replies = [
            client.ask("users"),
            client.ask("set_weight", username="ana", weight=2),
            client.ask("get_tasks", username="ana"),
            client.ask("quota", username="ana"),
            client.ask("get_task", task_id=self.task),
        ]
        return sorted({"ok" if reply["ok"] else reply["code"] for reply in replies})

    def test_without_one_an_admin_is_a_user(self) -> None:
        self.assertEqual(self.above(self.admin), ["totp_required"])
        self.assertIn("taskclient totp on", self.admin.ask("users")["message"])
        self.assertRefused(self.admin.ask("get_task", task_id=self.task + 1), "totp_required")
        mine = self.admin.ask("new_task", task="x")["task_id"]
        self.assertTrue(self.admin.ask("get_task", task_id=mine)["ok"])
        self.assertEqual(self.admin.ask("overview")["scope"], "own")
        self.assertEqual(self.admin.ask("whoami")["role"], "admin")

    def test_the_session_that_sets_it_up_has_shown_it(self) -> None:
        other = self.stage.connect()
        self.assertTrue(self.login(other, username=ADMIN)["ok"])
        self.set_up(self.admin)
        self.assertEqual(self.above(self.admin), ["ok"])
        self.assertEqual(self.above(other), ["totp_required"])
        self.assertIn("log in again", other.ask("users")["message"])

    def test_so_has_a_login_with_a_code_also_elsewhere(self) -> None:
        self.set_up(self.admin)
        client = self.stranger()
        token = self.login(client, username=ADMIN, code=self.code())["token"]
        self.assertEqual(self.above(client), ["ok"])
        again = self.stranger()
        self.assertTrue(again.ask("login", token=token)["ok"])
        self.assertEqual(self.above(again), ["ok"])

    def test_a_token_is_like_the_session_that_made_it(self) -> None:
        before = self.admin.ask("new_token", name="before")["token"]
        self.set_up(self.admin)
        after = self.admin.ask("new_token", name="after")["token"]
        for token, code in ((before, "totp_required"), (after, None)):
            program = self.stranger()
            self.assertTrue(program.ask("login", token=token)["ok"])
            self.assertEqual(program.ask("get_tasks", username="ana").get("code"), code)

    def test_without_it_again_the_session_loses_the_role(self) -> None:
        self.set_up(self.admin)
        self.assertTrue(self.admin.ask("totp_off", password=PASSWORD, code=self.code())["ok"])
        self.assertEqual(self.above(self.admin), ["totp_required"])
        # and does not get it back by a second factor that another session sets up
        other = self.stage.connect()
        self.assertTrue(self.login(other, username=ADMIN)["ok"])
        self.set_up(other)
        self.assertEqual((self.above(self.admin), self.above(other)), (["totp_required"], ["ok"]))

    def test_a_reset_elsewhere_counts_here_at_once_or_within_seconds(self) -> None:
        self.set_up(self.admin)
        self.assertEqual(self.above(self.admin), ["ok"])
        now(self.stage.other_store.reset_totp(ADMIN))
        self.stage.pass_time(FRESH, step=0.5)
        self.assertRefused(self.admin.ask("get_tasks", username="ana"), "totp_required")

    def test_an_operator_needs_none(self) -> None:
        now(self.stage.other_store.set_role("ana", Role.OPERATOR))
        client = self.stage.connect()
        self.assertTrue(self.login(client)["ok"])
        self.assertTrue(client.ask("get_tasks", username=ADMIN)["ok"])
        self.assertRefused(client.ask("users"), "forbidden")
