"""Passwords, sessions and API tokens: what the commands ask, send, print and keep."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from taskd.cli.errors import NOT_LOGGED_IN
from taskd.client.admission import SLOW_SECONDS, SPREAD, WAIT_SECONDS
from taskd.client.connection import REPLY_SECONDS
from taskd.client.errors import ClientError
from taskd.client.sessions import Session
from taskd.model.states import State
from tests.unit.test_client_harness import SERVER, Stage
from tests.unit.test_client_taskd import NOON

OLD, NEW = "correct horse", "battery staple"
NASTY = "\x1b[2J\u202ex"
SHOWN = "\\x1b[2J\\u202ex"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "state")


def session(session_id: int, **fields: Any) -> dict[str, Any]:
    """A session as the server lists it."""
    times = {"created_at": NOON, "used_at": NOON - timedelta(hours=3), "expires_at": NOON + timedelta(days=30)}
    nothing = {"current": False, "name": None, "ending": None, "scopes": None}
    return {"id": session_id, **nothing, "address": "192.0.2.1", **times, **fields}


class TestPasswd:
    def test_it_asks_for_the_present_password_and_twice_for_the_new_one(self, stage: Stage) -> None:
        run = stage.logged_in().run("passwd", tty=True, lines=[OLD, NEW, NEW])
        assert run.status == 0
        assert run.source.secret == [OLD, NEW, NEW]
        assert stage.taskd.passwords == {"ana": NEW}
        assert run.out == (
            "Password: \nNew password: \nPassword again: \n"
            "Password changed. All other sessions and all API tokens have ended.\n"
        )
        assert stage.run("whoami").out == "ana\n", "this session stays"

    def test_lines_of_the_input(self, stage: Stage) -> None:
        assert stage.logged_in().run("passwd", lines=[OLD, NEW]).status == 0
        assert stage.taskd.passwords == {"ana": NEW}
        stage.env["TASKD_PASSWORD"] = NEW
        assert stage.run("passwd", lines=["another staple"]).status == 0
        run = stage.run("passwd")
        assert (run.status, run.err) == (2, "taskclient: no new password: give it as the next line of the input\n")

    @pytest.mark.parametrize(
        ("lines", "says"),
        [
            (["wrong horse", NEW, NEW], "wrong password"),
            ([OLD, "short"], "a password has 8 to 72 bytes"),
            ([OLD, NEW, "battery stable"], "the two passwords differ"),
        ],
    )
    def test_a_wrong_answer_changes_nothing(self, stage: Stage, lines: list[str], says: str) -> None:
        run = stage.logged_in().run("passwd", tty=True, lines=lines)
        assert run.status == 1
        assert run.err.startswith(f"taskclient: {says}")
        assert "username" not in run.err
        assert stage.taskd.passwords == {"ana": OLD}

    def test_nobody_types_a_password_without_a_session(self, stage: Stage) -> None:
        run = stage.run("passwd", tty=True, lines=[OLD, NEW, NEW])
        assert (run.status, run.out) == (NOT_LOGGED_IN, "")

    def test_with_a_code(self, stage: Stage) -> None:
        stage.taskd.user("bob")
        stage.taskd.codes["bob"] = "ABCD-EFGH"
        run = stage.run("passwd", "--code", "bob", tty=True, lines=[" ABCD-EFGH", NEW, NEW])
        assert run.status == 0
        assert run.source.secret == [NEW, NEW], "the code is shown"
        assert run.out.endswith("Password set. Next: taskclient login bob\n")
        assert stage.taskd.passwords["bob"] == NEW
        assert not stage.sessions.path.exists(), "the user logs in then"
        run = stage.run("passwd", "--code", "bob", lines=["ABCD-EFGH", NEW])
        assert run.status == 1
        assert run.err.startswith("taskclient: the code is not valid for this user: it was used")

    def test_a_username_without_a_code(self, stage: Stage) -> None:
        run = stage.logged_in().run("passwd", "bob", lines=[OLD, NEW])
        assert run.status == 2
        assert "a username needs --code" in run.err


class TestDeleteAccount:
    def test_it_asks_for_the_password_and_the_name(self, stage: Stage) -> None:
        run = stage.logged_in().run("delete-account", tty=True, lines=[OLD, " Ana"])
        assert run.status == 0, run.err
        assert run.source.secret == [OLD]
        assert run.err == f"This deletes the account ana at {SERVER} with all its tasks. It cannot be undone.\n"
        assert run.out.endswith("Account ana deleted.\n")
        assert stage.taskd.passwords == {}
        assert not stage.sessions.path.exists()

    @pytest.mark.parametrize("lines", [[OLD, "bob"], [OLD, ""], [OLD], ["wrong horse", "ana"]])
    def test_it_deletes_nothing_unless_both_are_right(self, stage: Stage, lines: list[str]) -> None:
        for tty in (True, False):
            assert stage.logged_in().run("delete-account", tty=tty, lines=lines).status in (1, 2)
        assert stage.taskd.passwords == {"ana": OLD}
        assert stage.sessions.path.exists()


class TestSessions:
    @pytest.fixture
    def many(self, stage: Stage) -> Stage:
        scopes = ["tasks:read", "submit:render"]
        stage.taskd.sessions = [
            session(7, current=True),
            session(12, address=None),
            session(8, name="nightly", ending="wxyz1234", scopes=scopes, expires_at=NOON + timedelta(days=90)),
        ]
        return stage.logged_in()

    def test_a_table(self, many: Stage) -> None:
        run = many.run("sessions")
        assert run.status == 0
        assert run.out.splitlines() == [
            "ID  CREATED     LAST USED  EXPIRES     ADDRESS    SESSION",
            " 7  2025-03-01  3 h        2025-03-31  192.0.2.1  this session",
            "12  2025-03-01  3 h        2025-03-31  -          session",
            " 8  2025-03-01  3 h        2025-05-30  192.0.2.1  token nightly",
        ]
        many.lang = "es"
        assert many.run("sessions").out.splitlines()[1].endswith("esta sesión")

    def test_json(self, many: Stage) -> None:
        assert [each["id"] for each in many.run("sessions", "--json").objects] == [7, 12, 8]
        assert [each["id"] for each in many.run("token", "list", "--json").objects] == [8]

    def test_tokens(self, many: Stage) -> None:
        assert many.run("token", "list").out.splitlines() == [
            "ID  CREATED     LAST USED  EXPIRES     ENDING    SCOPES                     NAME",
            " 8  2025-03-01  3 h        2025-05-30  wxyz1234  tasks:read, submit:render  nightly",
        ]
        many.taskd.sessions.pop()
        assert many.run("token", "list").out == "No API tokens.\n"

    def test_texts_cannot_control_the_terminal(self, many: Stage) -> None:
        many.taskd.sessions[0] = session(7, name=NASTY, ending=NASTY, scopes=[NASTY], address=NASTY)
        for argv in (["sessions"], ["token", "list"]):
            out = many.run(*argv, tty=True, columns=200).out
            assert SHOWN in out
            assert not set(NASTY[0] + NASTY[4]) & set(out)

    @pytest.mark.parametrize("columns", [200, 80, 60, 40])
    def test_no_line_is_wider_than_the_terminal(self, many: Stage, columns: int) -> None:
        many.taskd.sessions[0]["name"] = "a name that somebody made rather long"
        for argv in (["sessions"], ["token", "list"]):
            assert max(map(len, many.run(*argv, tty=True, columns=columns).out.splitlines())) <= columns

    def test_ending_one(self, many: Stage) -> None:
        assert many.run("sessions", "--end", "12").out == "Session 12 ended.\n"
        assert many.run("token", "end", "8").out == "Token 8 ended.\n"
        assert [each["id"] for each in many.taskd.sessions] == [7]
        run = many.run("sessions", "--end", "12")
        assert (run.status, run.err) == (1, "taskclient: you have no session 12\n")

    def test_ending_the_own_one(self, many: Stage) -> None:
        run = many.run("sessions", "--end", "7")
        assert (run.status, run.out, run.err) == (0, "Session 7 ended.\n", "")
        assert many.run("whoami").status == NOT_LOGGED_IN

    def test_ending_all_others(self, many: Stage) -> None:
        assert many.run("sessions", "--end-all").out == "Sessions and API tokens ended: 2.\n"
        assert [each["id"] for each in many.taskd.sessions] == [7]

    def test_a_new_token_is_alone_on_standard_output(self, many: Stage) -> None:
        run = many.run("token", "new", "nightly", "--days", "0.5", "--scope", "tasks:read", "--scope", "submit:a")
        assert (run.status, run.out) == (0, "taskd_nightly\n")
        assert run.err.startswith("The token nightly is valid until 2025-03-02. It is shown only now")
        request = many.taskd.asked()[-1]
        assert (request["days"], request["scopes"]) == (0.5, ["tasks:read", "submit:a"])
        run = many.run("token", "new", "more", "--json")
        assert (run.objects[0]["token"], run.err) == ("taskd_more", "")
        assert set(many.taskd.asked()[-1]) == {"action", "id", "name"}

    @pytest.mark.parametrize("days", ["0", "366", "-1", "nan", "soon", "1e999"])
    def test_a_wrong_number_of_days(self, stage: Stage, days: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            stage.run("token", "new", "x", f"--days={days}")
        assert f"{days} is not a number of days: more than 0, at most 365" in capsys.readouterr().err


class TestTheEndOfASession:
    @pytest.mark.parametrize("command", [["watch"], ["wait", "1"], ["log", "1", "-f"], ["add", "two", "--wait"]])
    def test_a_live_command_says_so_and_forgets_the_token(self, stage: Stage, command: list[str]) -> None:
        stage.logged_in().taskd.task("one", State.RUNNING)
        run = stage.run(*command)
        stage.taskd.end_sessions("ana")
        stage.settle()
        assert run.status == NOT_LOGGED_IN
        assert run.err == f"taskclient: the session at {SERVER} has ended; log in again: taskclient login\n"
        assert not stage.sessions.path.exists()

    def test_as_json(self, stage: Stage) -> None:
        run = stage.logged_in().run("watch", "--json")
        stage.taskd.end_sessions("ana")
        stage.settle()
        assert run.status == NOT_LOGGED_IN
        assert run.objects[-1]["code"] == "auth_required"

    def test_a_newer_session_is_kept(self, stage: Stage) -> None:
        run = stage.logged_in().run("watch")
        ended = [token for token, name in stage.taskd.tokens.items() if name == "ana"]
        newer = Session(SERVER, "bob", stage.taskd.user("bob"))
        stage.sessions.save(newer)
        for token in ended:
            stage.taskd.connections[-1].session_ended([token])
        stage.settle()
        assert run.status == NOT_LOGGED_IN
        assert stage.sessions.load() == newer

    def test_a_task_that_was_not_confirmed_may_exist(self, stage: Stage) -> None:
        stage.logged_in().taskd.silent.add("new_task")
        run = stage.run("add", "one", "--wait")
        stage.taskd.end_sessions("ana")
        stage.settle()
        assert run.status == NOT_LOGGED_IN
        assert "the same command with --key key1 creates only those that do not exist yet" in run.err


class TestGivenToken:
    @pytest.fixture
    def program(self, stage: Stage) -> Stage:
        stage.env["TASKD_TOKEN"] = f" {stage.taskd.user('robot')}\n"
        return stage

    def test_it_goes_before_the_stored_session_and_is_not_stored(self, program: Stage) -> None:
        assert program.run("whoami").out == "robot\n"
        assert not program.sessions.path.exists()
        program.sessions.save(Session(SERVER, "ana", program.taskd.user()))
        before = program.sessions.path.read_bytes()
        assert program.run("whoami").out == "robot\n"
        assert program.sessions.path.read_bytes() == before

    def test_a_file_goes_before_the_variable(self, program: Stage, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.write_text(f"{program.taskd.user('cron')}\nmade by ana\n")
        for argv in (["--token-file", str(file), "whoami"], ["whoami", "--token-file", str(file)]):
            assert program.run(*argv).out == "cron\n"

    @pytest.mark.parametrize(
        ("content", "says"), [(None, "secret_unreadable"), (b"\nx", "secret_empty"), (b"\xff\n", "secret_empty")]
    )
    def test_an_unusable_file(self, stage: Stage, tmp_path: Path, content: bytes | None, says: str) -> None:
        if content is not None:
            (tmp_path / "token").write_bytes(content)
        with pytest.raises(ClientError, match=says):
            stage.run("whoami", "--token-file", str(tmp_path / "token"))

    def test_a_token_that_the_server_refuses(self, program: Stage) -> None:
        program.sessions.save(Session(SERVER, "ana", program.taskd.user()))
        program.env["TASKD_TOKEN"] = "made up"
        run = program.run("whoami")
        assert run.status == NOT_LOGGED_IN
        assert run.err.startswith(f"taskclient: {SERVER} does not accept the API token of TASKD_TOKEN;")
        assert program.sessions.path.exists()

    @pytest.mark.parametrize("command", ["login", "logout", "passwd", "delete-account"])
    def test_commands_that_are_for_a_login_with_the_password(self, program: Stage, command: str) -> None:
        run = program.run(command, lines=[OLD, NEW])
        assert run.status == 2
        assert run.err.endswith("not for an API token; run it without TASKD_TOKEN\n")
        assert program.network.attempts == 0


class TestInvitations:
    @pytest.fixture
    def closed(self, stage: Stage) -> Stage:
        stage.taskd.invitation = "welcome-1"
        return stage

    def test_without_one(self, closed: Stage) -> None:
        run = closed.run("register", "ana", lines=[OLD])
        assert (run.status, run.err) == (1, "taskclient: registration needs an invitation\n")

    def test_a_terminal_asks_for_it(self, closed: Stage) -> None:
        run = closed.run("register", "ana", tty=True, lines=[OLD, OLD, "welcome-1 "])
        assert run.status == 0, run.err
        assert run.source.secret[-1] == "welcome-1 "
        assert closed.network.attempts == 1
        run = closed.run("register", "bob", "--invitation", tty=True, lines=[OLD, OLD, ""])
        assert run.err == "taskclient: no invitation entered; nothing done\n"

    def test_from_the_input_the_environment_or_a_file(self, closed: Stage, tmp_path: Path) -> None:
        assert closed.run("register", "ana", "--invitation", lines=[OLD, "welcome-1"]).status == 0
        assert closed.run("register", "bob", "--invitation", lines=[OLD]).status == 2
        (tmp_path / "invitation").write_text("welcome-1\n")
        assert closed.run("register", "bob", "--invitation-file", str(tmp_path / "invitation"), lines=[OLD]).status == 0
        closed.env["TASKD_INVITATION"] = "welcome-1"
        assert closed.run("register", "eve", lines=[OLD]).status == 0

    def test_no_option_takes_the_invitation_itself(self, closed: Stage) -> None:
        with pytest.raises(SystemExit):
            closed.run("register", "ana", "--invitation=welcome-1")


class TestWaiting:
    @pytest.fixture
    def busy(self, stage: Stage) -> Stage:
        stage.taskd.user()
        stage.taskd.busy = [20]
        return stage

    def test_a_login_waits_and_says_so_once(self, busy: Stage) -> None:
        busy.taskd.busy = [20, 2]
        run = busy.run("login", "ana", lines=[OLD])
        busy.advance(19)
        assert busy.taskd.actions() == ["login"]
        for _ in range(6):
            busy.advance(1)
        assert run.status == 0
        assert run.err.splitlines()[0].startswith("Too many requests at the server; trying again in 2")
        assert len(run.err.splitlines()) == 1
        assert (busy.network.attempts, len(busy.taskd.asked())) == (1, 3), "on the same connection"

    def test_the_pause_has_a_spread(self, tmp_path: Path) -> None:
        ends = set()
        for n in range(20):
            stage = Stage(tmp_path / str(n))
            stage.taskd.user()
            stage.taskd.busy = [100]
            run = stage.run("login", "ana", lines=[OLD])
            stage.advance(99.9)
            assert len(stage.taskd.asked()) == 1
            while not run.over:
                stage.advance(0.5)
            ends.add(stage.clock.seconds() - NOON.timestamp())
        assert len(ends) > 1
        assert max(ends) <= 100 * (1 + SPREAD) + 0.5

    def test_on_a_new_connection_if_the_server_has_closed_it(self, busy: Stage) -> None:
        busy.taskd.closes = True
        run = busy.run("login", "ana", lines=[OLD])
        for _ in range(23):
            busy.advance(1)
        assert run.status == 0
        assert busy.network.attempts == 2

    @pytest.mark.parametrize(
        ("argv", "lines"),
        [
            (["register", "bob"], [NEW]),
            (["passwd"], [OLD, NEW]),
            (["delete-account"], [OLD, "ana"]),
        ],
    )
    def test_whatever_needs_a_password_waits(self, stage: Stage, argv: list[str], lines: list[str]) -> None:
        stage.logged_in().taskd.busy = [20]
        run = stage.run(*argv, lines=lines)
        assert not run.over
        for _ in range(23):
            stage.advance(1)
        assert run.status == 0, run.err

    @pytest.mark.parametrize(
        ("seconds", "option"), [(20, ["--no-wait"]), (WAIT_SECONDS + 1, []), (1e300, []), (None, [])]
    )
    def test_a_refusal_at_once(self, busy: Stage, seconds: float | None, option: list[str]) -> None:
        busy.taskd.busy = [seconds]
        run = busy.run("login", "ana", *option, lines=[OLD])
        assert (run.status, run.err) == (1, "taskclient: the server is busy\n")

    def test_a_reply_that_takes_minutes(self, busy: Stage) -> None:
        busy.taskd.busy = []
        busy.taskd.held.add("login")
        run = busy.run("login", "ana", lines=[OLD])
        busy.advance(SLOW_SECONDS)
        assert run.err.startswith("The server has not answered yet")
        busy.advance(WAIT_SECONDS - SLOW_SECONDS - 1)
        busy.taskd.connections[-1].release()
        busy.settle()
        assert (run.status, len(run.err.splitlines())) == (0, 1)

    def test_no_reply_at_all(self, busy: Stage) -> None:
        busy.taskd.silent.add("login")
        run = busy.run("login", "ana", lines=[OLD])
        quick = busy.run("login", "ana", "--no-wait", lines=[OLD])
        busy.advance(REPLY_SECONDS)
        assert (run.over, quick.status) == (False, 1)
        busy.advance(WAIT_SECONDS - REPLY_SECONDS)
        assert run.status == 1
        assert run.err.endswith("does not answer; try again later or check --server\n")

    def test_not_for_ever(self, busy: Stage) -> None:
        busy.taskd.busy = [0.001] * 1000
        run = busy.run("login", "ana", lines=[OLD])
        for _ in range(int(WAIT_SECONDS * (1 + SPREAD)) * 2):
            busy.advance(1)
        assert run.status == 1
        assert 200 < len(busy.taskd.asked()) <= WAIT_SECONDS + 1

    def test_a_terminal_counts_down(self, busy: Stage) -> None:
        run = busy.run("login", "ana", tty=True, lines=[OLD], screen=os.terminal_size((80, 24)))
        assert "... 2" in run.out
        busy.advance(15)
        assert run.out.endswith(" s\n")
        assert "... 6 s\n" in run.out or "... 7 s\n" in run.out or "... 5 s\n" in run.out
        for _ in range(8):
            busy.advance(1)
        assert run.status == 0
        assert run.out.endswith("\x1b[1A\r\x1b[JLogged in as ana.\n")

    def test_ctrl_c_removes_the_countdown(self, busy: Stage) -> None:
        run = busy.run("login", "ana", tty=True, lines=[OLD], screen=os.terminal_size((80, 24)))
        run.cancel()
        assert run.over
        assert run.out.endswith("\x1b[1A\r\x1b[J")

    def test_the_menu_waits_too(self, busy: Stage) -> None:
        run = busy.run(tty=True, open=True, lines=["2", "ana", OLD])
        assert run.err.startswith("Too many requests")
        for _ in range(23):
            busy.advance(1)
        assert "Logged in as ana." in run.out
