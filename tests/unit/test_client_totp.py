"""The second factor in the client: setting it up, and the code that a login needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskd.cli.errors import ERROR, NOT_LOGGED_IN, USAGE
from taskd.model.errors import TotpRequired
from tests.unit.test_client_harness import Run, Stage
from tests.unit.test_client_taskd import TOTP_CODE

PASSWORD = "correct horse"
QUESTION = "Code of the authenticator, or a recovery code: "


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "state")


@pytest.fixture
def protected(stage: Stage) -> Stage:
    """Ana has a second factor, and is not logged in."""
    stage.taskd.user()
    stage.taskd.totp["ana"] = TOTP_CODE
    return stage


class TestOn:
    def test_it_shows_the_secret_and_asks_for_the_first_code(self, stage: Stage) -> None:
        run = stage.logged_in().run("totp", "on", tty=True, lines=[PASSWORD, TOTP_CODE])
        assert run.status == 0, run.err
        assert run.source.secret == [PASSWORD]
        assert run.out == (
            "Password: \nJBSWY3DP\notpauth://totp/taskd:ana?secret=JBSWY3DP\n" + QUESTION + "ABCD-EFGH\nJKLM-NPQR\n"
        )
        assert "Add this secret to your authenticator" in run.err
        assert "They are shown only now" in run.err
        assert stage.taskd.totp == {"ana": TOTP_CODE}

    def test_at_a_terminal_a_wrong_code_may_be_corrected(self, stage: Stage) -> None:
        run = stage.logged_in().run("totp", "on", tty=True, lines=[PASSWORD, "000000", TOTP_CODE])
        assert run.status == 0
        assert run.out.count(QUESTION) == 2 and "the code is not right" in run.err
        assert stage.taskd.actions()[1:] == ["totp_begin", "totp_confirm", "totp_confirm"]

    def test_lines_of_the_input(self, stage: Stage) -> None:
        run = stage.logged_in().run("totp", "on", lines=[PASSWORD, "000000", TOTP_CODE])
        assert (run.status, stage.taskd.totp) == (ERROR, {})
        assert stage.run("totp", "on", lines=[PASSWORD, f" {TOTP_CODE} "]).status == 0
        run = stage.run("totp", "on", "--json", lines=[PASSWORD, TOTP_CODE])
        assert [sorted(each.keys() & {"secret", "recovery_codes"}) for each in run.objects] == [
            ["secret"],
            ["recovery_codes"],
        ]
        assert run.err == ""

    def test_without_a_code(self, stage: Stage) -> None:
        run = stage.logged_in().run("totp", "on", lines=[PASSWORD])
        assert run.status == USAGE
        assert run.err.endswith("taskclient: no code of the second factor: give it as the next line of the input\n")

    def test_a_wrong_password(self, stage: Stage) -> None:
        run = stage.logged_in().run("totp", "on", lines=["wrong horse", TOTP_CODE])
        assert (run.status, run.out, run.err) == (ERROR, "", "taskclient: wrong password\n")

    def test_nobody_types_a_password_without_a_session(self, stage: Stage) -> None:
        for verb in ("on", "off"):
            run = stage.run("totp", verb, tty=True, lines=[PASSWORD])
            assert (run.status, run.out) == (NOT_LOGGED_IN, "")

    def test_not_with_an_api_token(self, stage: Stage) -> None:
        stage.env["TASKD_TOKEN"] = stage.taskd.user()
        assert stage.run("totp", "on", lines=[PASSWORD]).status == USAGE


class TestOff:
    def test_it_needs_password_and_code(self, stage: Stage) -> None:
        stage.logged_in().taskd.totp["ana"] = TOTP_CODE
        assert stage.run("totp", "off", lines=["wrong horse", TOTP_CODE]).err == "taskclient: wrong password\n"
        assert "the code is not right" in stage.run("totp", "off", lines=[PASSWORD, "000000"]).err
        assert stage.taskd.totp
        run = stage.run("totp", "off", tty=True, lines=[PASSWORD, TOTP_CODE])
        assert (run.status, run.out.splitlines()[-1]) == (0, f"{QUESTION}The second factor is off.")
        assert stage.taskd.totp == {}


class TestStatus:
    def test_on_and_off(self, stage: Stage) -> None:
        assert stage.logged_in().run("totp", "status").out.startswith("The second factor is off.")
        stage.taskd.totp["ana"] = TOTP_CODE
        assert stage.run("totp", "status").out == "The second factor is on.\n"
        assert stage.run("totp", "status", "--json").objects[0]["totp"] is True
        stage.lang = "es"
        assert stage.run("totp", "status").out == "El segundo factor está activo.\n"


class TestLogin:
    def test_it_asks_for_the_code_only_if_the_server_wants_one(self, protected: Stage) -> None:
        run = protected.run("login", "ana", tty=True, lines=[PASSWORD, TOTP_CODE])
        assert run.out == f"Password: \n{QUESTION}Logged in as ana.\n"
        assert run.status == 0
        protected.taskd.totp.clear()
        assert QUESTION not in protected.run("login", "ana", tty=True, lines=[PASSWORD]).out

    def test_lines_of_the_input(self, protected: Stage) -> None:
        assert protected.run("login", "ana", lines=[PASSWORD, TOTP_CODE]).status == 0
        protected.env["TASKD_PASSWORD"] = PASSWORD
        assert protected.run("login", "ana", lines=[TOTP_CODE]).status == 0
        run = protected.run("login", "ana")
        assert run.status == USAGE and "no code of the second factor" in run.err

    def test_a_wrong_code(self, protected: Stage) -> None:
        run = protected.run("login", "ana", tty=True, lines=[PASSWORD, "000000"])
        assert run.status == ERROR and run.err.startswith("taskclient: the code is not right")
        assert not protected.sessions.path.exists()
        protected.lang = "es"
        run = protected.run("login", "ana", lines=[PASSWORD, "000000"])
        assert run.err == "taskclient: el código no es correcto, caducó o ya se usó; espere al siguiente\n"

    def test_who_types_slowly_gets_a_new_connection(self, protected: Stage) -> None:
        run = protected.run("login", "ana", tty=True, open=True, lines=[PASSWORD])
        assert run.out.endswith(QUESTION)
        protected.taskd.connections[-1].transport.loseConnection()
        protected.network.flush()
        run.type(TOTP_CODE)
        assert (run.status, run.err) == (0, "")

    def test_the_menu_asks_too(self, protected: Stage) -> None:
        run: Run = protected.run(tty=True, open=True, lines=["2", "ana", PASSWORD])
        assert run.out.endswith(QUESTION)
        run.type("000000")
        assert "the code is not right" in run.out
        run.type("2", "ana", PASSWORD, TOTP_CODE)
        assert "Logged in as ana." in run.out


class TestAdmins:
    def test_a_reset(self, protected: Stage) -> None:
        protected.env["TASKD_TOKEN"] = "token-0"
        run = protected.run("users", "reset-totp", "ana")
        assert (run.status, run.out) == (0, "ana has no second factor from now on.\n")
        assert protected.taskd.totp == {}
        assert protected.run("users", "reset-totp", "nobody").err == "taskclient: there is no such user\n"

    def test_one_who_needs_a_second_factor_is_told(self, stage: Stage) -> None:
        stage.logged_in().taskd.refusals["users"] = TotpRequired("set one up with taskclient totp on")
        assert stage.run("users").err == "taskclient: set one up with taskclient totp on\n"
        stage.lang = "es"
        assert "actívelo con taskclient totp on" in stage.run("users").err
