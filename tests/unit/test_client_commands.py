"""Accounts and lists of tasks: output, exit statuses, the session file, and the requests."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from twisted.internet import error

from taskd.client.sessions import SessionFile
from taskd.model.states import State
from tests.unit.test_client_harness import SERVER, Stage
from tests.unit.test_client_taskd import NOON


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "state")


class TestAccounts:
    def test_register_asks_twice_without_echo(self, stage: Stage) -> None:
        run = stage.run("register", tty=True, lines=["ana", "correct horse", "correct horse"])
        assert run.status == 0
        assert stage.taskd.passwords == {"ana": "correct horse"}
        assert run.source.secret == ["correct horse", "correct horse"]
        assert "Registered ana. Next: taskclient login ana" in run.out

    def test_register_with_two_different_passwords(self, stage: Stage) -> None:
        run = stage.run("register", "ana", tty=True, lines=["correct horse", "correct hoarse"])
        assert (run.status, stage.taskd.passwords, stage.network.attempts) == (1, {}, 0)
        assert run.err == "taskclient: the two passwords differ; try again\n"

    @pytest.mark.parametrize(
        ("password", "says"),
        [
            ("short", "8 to 72 bytes"),
            ("x" * 73, "8 to 72 bytes"),
            ("con\0nul!!", "password must not contain the NUL character; choose another"),
            ("surrogate\ud800", "password must be valid Unicode text; choose another"),
        ],
    )
    def test_a_password_that_is_not_allowed(self, stage: Stage, password: str, says: str) -> None:
        run = stage.run("register", "ana", lines=[password])
        assert (run.status, stage.network.attempts) == (1, 0)
        assert says in run.err

    def test_a_taken_username(self, stage: Stage) -> None:
        stage.taskd.user("ana")
        run = stage.run("register", "ana", lines=["correct horse"])
        assert (run.status, run.err) == (1, "taskclient: the username is taken; choose another\n")

    def test_only_the_owner_can_read_the_token(self, stage: Stage) -> None:
        stage.taskd.user()
        run = stage.run("login", "ana", lines=["correct horse"])
        assert (run.status, run.out) == (0, "Logged in as ana.\n")
        path = stage.sessions.path
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert "correct horse" not in path.read_text()
        assert json.loads(path.read_text())["token"] in stage.taskd.tokens
        assert list(path.parent.iterdir()) == [path], "no draft is left"

    def test_sessions_are_kept_for_each_server(self, stage: Stage) -> None:
        stage.logged_in()
        other = SessionFile(stage.sessions.path.parent, "tls:example.org:5001")
        assert other.path != stage.sessions.path
        assert other.load() is None
        assert stage.sessions.load() is not None

    def test_the_password_from_the_environment(self, stage: Stage) -> None:
        stage.taskd.user()
        stage.env["TASKD_PASSWORD"] = "correct horse"
        assert stage.run("login", "ana", tty=True).status == 0

    @pytest.mark.parametrize(
        ("username", "password", "says"),
        [("eve", "correct horse", "wrong password or username"), ("ana", "wrong horse", "wrong password or username")],
    )
    def test_a_refused_login_leaves_no_session(self, stage: Stage, username: str, password: str, says: str) -> None:
        stage.taskd.user()
        run = stage.run("login", username, lines=[password])
        assert run.status == 1
        assert says in run.err
        assert not stage.sessions.path.exists()

    def test_no_terminal_to_ask_at(self, stage: Stage) -> None:
        assert stage.run("login").status == 2
        assert stage.run("login", "ana").status == 2
        assert stage.network.attempts == 0

    def test_a_prompt_does_not_mix_with_output_that_a_program_reads(self, stage: Stage) -> None:
        stage.taskd.user()
        run = stage.run("--json", "login", "ana", lines=["correct horse"])
        assert [reply["status"] for reply in run.objects] == ["logged_in"]
        assert run.err == ""

    def test_a_session_that_cannot_be_stored_is_ended_at_the_server(self, stage: Stage) -> None:
        stage.taskd.user()
        tokens = dict(stage.taskd.tokens)
        stage.sessions.path.parent.parent.write_text("a file where the folder should be")
        run = stage.run("login", "ana", lines=["correct horse"])
        assert run.status == 1
        assert "cannot store the session" in run.err
        assert stage.taskd.tokens == tokens

    def test_whoami_sends_its_request_with_the_login(self, stage: Stage) -> None:
        run = stage.logged_in().run("whoami")
        assert (run.status, run.out) == (0, "ana\n")
        assert stage.taskd.actions() == ["login", "whoami"]
        assert len(stage.taskd.connections[-1].chunks) == 1

    def test_json_prints_only_the_unchanged_reply(self, stage: Stage) -> None:
        run = stage.logged_in().run("whoami", "--json")
        assert run.out == '{"id":2,"ok":true,"status":"success","user_id":1,"username":"ana","totp":false}\n'

    def test_logout_deletes_the_session_on_both_sides(self, stage: Stage) -> None:
        run = stage.logged_in().run("logout")
        assert (run.status, run.out) == (0, "Logged out.\n")
        assert len(stage.taskd.tokens) == 1
        assert not stage.sessions.path.exists()

    def test_logout_of_a_session_that_has_ended(self, stage: Stage) -> None:
        stage.logged_in().taskd.tokens.clear()
        assert stage.run("logout").status == 0
        assert not stage.sessions.path.exists()

    def test_logout_deletes_the_file_even_without_the_server(self, stage: Stage) -> None:
        stage.logged_in().network.failing = error.ConnectionRefusedError()
        assert stage.run("logout").status == 1
        assert not stage.sessions.path.exists()

    def test_not_logged_in(self, stage: Stage) -> None:
        for command in ("whoami", "logout", "list", "watch"):
            run = stage.run(command)
            assert run.status == 4
            assert run.err == f"taskclient: not logged in at {SERVER}; log in: taskclient login\n"
        assert stage.network.attempts == 0

    def test_a_token_that_the_server_refuses_is_removed(self, stage: Stage) -> None:
        stage.logged_in().taskd.tokens.clear()
        run = stage.run("--server", SERVER, "list")
        assert run.status == 4
        assert f"log in again: taskclient --server {SERVER} login" in run.err
        assert not stage.sessions.path.exists()

    @pytest.mark.parametrize("content", ["", "{", '{"token":1}', "\udcff"])
    def test_a_broken_session_file(self, stage: Stage, content: str) -> None:
        stage.logged_in().sessions.path.write_bytes(content.encode(errors="surrogateescape"))
        run = stage.run("whoami")
        assert run.status == 4
        assert run.err.endswith("is not a session file; log in again: taskclient login\n")
        stage.logged_in()
        assert stage.run("whoami").status == 0


class TestList:
    def test_a_table(self, stage: Stage) -> None:
        stage.logged_in().taskd.task("first", State.COMPLETED)
        stage.taskd.task("second", State.RUNNING)
        stage.advance(3 * 3600)
        run = stage.run("list")
        assert run.status == 0
        assert run.out.splitlines() == [
            "ID  STATUS      STATE      KIND      AGE  TASK",
            " 2  Procesando  running    simulate  3 h  second",
            " 1  Completada  completed  simulate  3 h  first",
        ]

    def test_in_spanish(self, stage: Stage) -> None:
        stage.lang = "es"
        stage.logged_in().taskd.task("primera", State.RUNNING)
        assert stage.run("list").out.splitlines() == [
            "N.º  ESTADO      DETALLE   TIPO      EDAD  TAREA",
            "  1  Procesando  en curso  simulate  0 s   primera",
        ]

    def test_no_tasks(self, stage: Stage) -> None:
        run = stage.logged_in().run("list")
        assert (run.status, run.out) == (0, "No tasks.\n")

    def test_json_prints_one_task_per_line(self, stage: Stage) -> None:
        stage.logged_in().taskd.task("first")
        stage.taskd.task("second")
        run = stage.run("list", "--json")
        assert [(task["id"], task["task"]) for task in run.objects] == [(2, "second"), (1, "first")]
        assert run.err == ""

    def test_all_follows_the_cursors(self, stage: Stage) -> None:
        stage.logged_in()
        for n in range(1201):
            stage.taskd.task(str(n))
        run = stage.run("list", "--all", "--json")
        assert [task["id"] for task in run.objects] == list(range(1201, 0, -1))
        assert [request["limit"] for request in stage.taskd.asked()[1:]] == [500, 500, 500]

    def test_a_limit_holds_across_pages(self, stage: Stage) -> None:
        stage.logged_in()
        for n in range(700):
            stage.taskd.task(str(n))
        run = stage.run("list", "--limit", "600")
        assert len(run.out.splitlines()) == 601
        assert run.out.count("STATUS") == 1
        assert "There are more" in run.err

    def test_an_empty_page_is_not_the_end(self, stage: Stage) -> None:
        stage.logged_in().taskd.task("wanted", State.FAILED)
        for _ in range(150):
            stage.taskd.task()
        run = stage.run("list", "--state", "failed")
        assert "wanted" in run.out
        assert stage.taskd.asked()[1]["state"] == "failed"

    def test_a_text_cannot_control_the_terminal(self, stage: Stage) -> None:
        stage.logged_in().taskd.task("\x1b[2Jboo\nnext\u202egnp.exe\x9b31m")
        run = stage.run("list", tty=True, columns=200)
        assert "\\x1b[2Jboo\\nnext\\u202egnp.exe\\x9b31m" in run.out
        assert not set("\x1b\u202e\x9b") & set(run.out)

    def test_a_long_text_is_cut_on_a_terminal_only(self, stage: Stage) -> None:
        stage.logged_in().taskd.task("任务" * 100)
        assert stage.run("list").out.splitlines()[1].endswith("任务" * 3)
        row = stage.run("list", tty=True, columns=60).out.splitlines()[1]
        assert row.endswith("…")
        assert len(row) < 60


class TestShowAndCancel:
    def test_show_has_payload_result_and_error(self, stage: Stage) -> None:
        fields = {"payload": '{"seconds": 2}', "result": '{"ok": true}', "error": "bad\x07luck", "attempt": 2}
        stage.logged_in().taskd.task("render", State.FAILED, finished_at=NOON, started_at=NOON, **fields)
        run = stage.run("show", "1")
        lines = dict(line.split(":", 1) for line in run.out.splitlines())
        assert run.status == 0
        assert lines["Text"].strip() == "render"
        assert lines["Status"].strip() == "Fallida (failed)"
        assert lines["Attempts"].strip() == "2 of 3"
        assert lines["Payload"].strip() == '{"seconds":2}'
        assert lines["Result"].strip() == '{"ok":true}'
        assert lines["Error"].strip() == "bad\\x07luck"

    def test_show_has_losses_and_give_backs_if_there_are_any(self, stage: Stage) -> None:
        stage.logged_in().taskd.task("render", losses=1, returns=3)
        lines = dict(line.split(":", 1) for line in stage.run("show", "1").out.splitlines())
        assert (lines["Lost with workers"].strip(), lines["Given back"].strip()) == ("once", "3 times")
        stage.taskd.task("plain")
        out = stage.run("show", "2").out
        assert "Lost" not in out and "Given" not in out

    def test_show_a_task_that_does_not_exist(self, stage: Stage) -> None:
        run = stage.logged_in().run("show", "7")
        assert (run.status, run.err) == (1, "taskclient: you have no task 7\n")
        run = stage.run("show", "7", "--json")
        assert run.status == 1
        assert run.objects[0]["code"] == "not_found"

    def test_cancel_continues_after_a_refusal(self, stage: Stage) -> None:
        stage.logged_in().taskd.task("done", State.COMPLETED)
        stage.taskd.task("runs", State.RUNNING)
        run = stage.run("cancel", "1", "2", "2")
        assert (run.status, run.out) == (1, "Task 2 cancelled.\n")
        assert run.err == "taskclient: task 1 is completed: too late to cancel it\n"
        assert stage.taskd.tasks[2].state is State.CANCELLED

    @pytest.mark.parametrize("given", ["0", "-1", "x", "9" * 30, "٣"])
    def test_not_a_task_number(self, stage: Stage, given: str) -> None:
        with pytest.raises(SystemExit) as ended:
            stage.run("show", "--", given)
        assert ended.value.code == 2
