"""The menu: its questions and answers in both languages, and how it handles errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.internet import error
from twisted.internet.defer import CancelledError

from taskd.cli.menu import GOODBYE_SECONDS, SHOWN
from taskd.client.connection import REPLY_SECONDS
from taskd.client.retry import FIRST_PAUSE
from taskd.model.errors import Unavailable
from taskd.model.states import State
from tests.unit.test_client_harness import SERVER, Run, Stage
from tests.unit.test_client_taskd import NOON, kind

PASSWORD = "correct horse"
HINT = "For one of them, by its number: show N, log N, explain N, retry N, cancel N"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    stage = Stage(tmp_path / "state")
    stage.taskd.user("ana", PASSWORD)
    return stage


def menu(stage: Stage, *lines: str) -> Run:
    """The menu after these lines; the user has not left yet."""
    return stage.run(lines=lines, tty=True, open=True)


def inside(stage: Stage, *lines: str) -> Run:
    """The same after a login."""
    return menu(stage, "2", "ana", PASSWORD, *lines)


def new(run: Run, *lines: str) -> list[str]:
    """What these lines show, without menus and questions."""
    before = len(run.out)
    run.type(*lines)
    shown = run.out[before:].replace(run.ctx.texts("menu.choose"), "").replace(run.ctx.texts("menu.task"), "")
    return [
        line
        for line in shown.splitlines()
        if line and line[:2] not in ("1.", "2.", "3.", "4.") and not line.endswith(SERVER)
    ]


class TestTop:
    def test_the_original_menu(self, stage: Stage) -> None:
        run = menu(stage)
        assert run.out == f"\ntaskd at {SERVER}\n1. Register\n2. Log in\n3. Leave\nChoose an option: "
        run.type("3")
        assert run.status == 0
        assert stage.network.attempts == 0

    def test_in_spanish(self, stage: Stage) -> None:
        stage.lang = "es"
        run = menu(stage)
        assert run.out == f"\ntaskd en {SERVER}\n1. Registrarse\n2. Iniciar sesión\n3. Salir\nElija una opción: "
        run.type("2", "ana", PASSWORD)
        assert f"\nana en {SERVER}\n1. Ver tareas\n2. Crear tarea\n3. Volver\n4. Cuenta\nElija una opción: " in run.out

    @pytest.mark.parametrize("choice", ["", "4", "1 2", "uno", "\x1b[A"])
    def test_a_wrong_choice(self, stage: Stage, choice: str) -> None:
        run = menu(stage)
        assert new(run, choice) == ["Please choose a number from 1 to 3."]
        assert not run.over

    def test_register(self, stage: Stage) -> None:
        run = menu(stage, "1", "bob", "secret bob", "secret bob")
        assert "Registered. You can log in now." in run.out
        assert run.source.secret == ["secret bob", "secret bob"]
        assert stage.taskd.passwords["bob"] == "secret bob"

    @pytest.mark.parametrize(
        ("lines", "says"),
        [
            ([" ", ""], "Nothing entered, nothing done."),
            (["x" * 65], "a username has 1 to 64 visible characters"),
            (["bob", "short"], "a password has 8 to 72 bytes"),
            (["bob", "long enough", "other enough"], "the two passwords differ; try again"),
            (["ana", "long enough", "long enough"], "the username is taken; choose another"),
        ],
    )
    def test_a_wrong_registration(self, stage: Stage, lines: list[str], says: str) -> None:
        run = menu(stage, "1", *lines)
        assert says in run.out
        assert list(stage.taskd.passwords) == ["ana"]
        assert not run.over

    def test_wrong_credentials(self, stage: Stage) -> None:
        run = menu(stage, "2", "ana", "wrong horse", "2", "eve", PASSWORD)
        assert run.out.count("wrong password or username\n") == 2
        assert "See tasks" not in run.out

    def test_a_missing_server_is_reported_before_any_question(self, stage: Stage) -> None:
        stage.network.failing = error.ConnectionRefusedError()
        run = menu(stage, "2")
        assert "nothing listens at" in run.out
        assert "Username" not in run.out

    def test_the_menu_leaves_no_session_behind(self, stage: Stage) -> None:
        inside(stage, "3", "3")
        assert not stage.sessions.path.exists()
        assert len(stage.taskd.tokens) == 1


class TestInside:
    def test_see_and_create_tasks(self, stage: Stage) -> None:
        run = inside(stage)
        assert new(run, "1") == ["No tasks."]
        assert new(run, "2", "draw a map") == ["Task 1 created."]
        stage.taskd.move(1, State.COMPLETED)
        assert new(run, "1") == ["ID  STATUS      AGE  TASK", " 1  Completada  0 s  draw a map", HINT]

    def test_only_the_newest_are_shown(self, stage: Stage) -> None:
        for n in range(SHOWN + 1):
            stage.taskd.task(f"task{n}")
        shown = new(inside(stage), "1")
        assert len(shown) == SHOWN + 3
        assert shown[-2] == "The 50 newest; all of them with: taskclient list --all"

    def test_one_task_by_its_number(self, stage: Stage) -> None:
        stage.taskd.task("render", State.RUNNING, attempt=1)
        stage.taskd.log(1, "painting\x07")
        stage.taskd.reasons[1] = {"code": "paused", "message": "It waits."}
        run = inside(stage)
        assert "Text:     render" in new(run, "show 1")
        assert new(run, "log 1") == ["painting\\x07"]
        assert new(run, "explain 1") == ["It waits."]
        assert new(run, "retry 1") == ["task 1 is running: there is no need to try it again"]
        assert new(run, "cancel 1") == ["Task 1 cancelled."]
        assert new(run, "Retry  1") == ["Task 1 will be tried again."]
        assert new(run, "show 7") == ["you have no task 7"]
        stage.taskd.task("silent")
        before = run.err
        assert new(run, "log 2") == []
        assert run.err.removeprefix(before) == "Task 2 has no log.\n"

    def test_one_task_in_spanish(self, stage: Stage) -> None:
        stage.taskd.task("pintar", State.QUEUED)
        stage.lang = "es"
        run = inside(stage)
        assert "Texto:    pintar" in new(run, "ver 1")
        assert new(run, "cancelar 1") == ["Tarea 1 cancelada."]
        assert new(run, "reintentar 1") == ["La tarea 1 se intentará de nuevo."]
        assert "Texto:    pintar" in new(run, "show 1"), "the words of the commands serve as well"

    @pytest.mark.parametrize(
        "answer", ["show", "show x", "show 0", "show 1 2", "fly 1", "5", "end 1", "show " + "9" * 5000]
    )
    def test_an_unknown_verb(self, stage: Stage, answer: str) -> None:
        assert new(inside(stage), answer) == ["Please choose a number from 1 to 4."]

    def test_a_task_of_another_kind(self, stage: Stage) -> None:
        stage.taskd.served.append(kind("thumbnail"))
        run = inside(stage, "2", "album 7")
        assert run.out.endswith("Kind (thumbnail; Enter for simulate): ")
        run.type("thumbnail")
        assert run.out.endswith("Fields as NAME=VALUE, or Enter for none: ")
        run.type("width=320 'title=my holidays'")
        assert "Task 1 created, of kind thumbnail." in run.out
        request = stage.taskd.asked()[-1]
        assert (request["kind"], request["payload"]) == ("thumbnail", {"width": 320, "title": "my holidays"})
        run.type("2", "plain", "")
        assert "Task 2 created." in run.out
        assert "kind" not in stage.taskd.asked()[-1]

    def test_the_text_may_be_the_kind(self, stage: Stage) -> None:
        stage.taskd.served.append(kind("thumbnail"))
        run = inside(stage, "2", "thumbnail", "", "2", "command:convert", "from=a.png")
        assert "Task 1 created, of kind thumbnail." in run.out
        assert "Task 2 created, of kind command:convert." in run.out
        assert "Kind (" not in run.out

    @pytest.mark.parametrize(
        ("kind_", "fields", "says"),
        [
            ("a b", [], "a kind has 1 to 64 letters"),
            ("thumbnail", ["novalue"], "a field must have the form NAME=VALUE, not novalue"),
            ("thumbnail", ["a='b"], "a quotation mark is not closed"),
        ],
    )
    def test_a_wrong_kind_or_field(self, stage: Stage, kind_: str, fields: list[str], says: str) -> None:
        stage.taskd.served.append(kind("thumbnail"))
        run = inside(stage)
        assert says in new(run, "2", "album 7", kind_, *fields)[-1]
        assert not stage.taskd.tasks

    @pytest.mark.parametrize(
        ("text", "says"),
        [(" ", "Nothing entered, nothing done."), ("x" * 4097, "a task needs 1 to 4,096 characters")],
    )
    def test_a_wrong_task(self, stage: Stage, text: str, says: str) -> None:
        run = inside(stage)
        (line,) = new(run, "2", text)
        assert line.startswith(says)
        assert not stage.taskd.tasks

    def test_a_connection_lost_before_the_confirmation(self, stage: Stage) -> None:
        stage.taskd.mute.add("new_task")
        run = inside(stage, "2", "draw a map")
        stage.taskd.mute.clear()
        stage.cut()
        stage.advance(FIRST_PAUSE)
        assert run.out.count("Task 1 created.") == 1
        assert run.err == "Connection lost; connecting again ...\nConnected again.\n"
        assert [task.task for task in stage.taskd.tasks.values()] == ["draw a map"]
        assert new(run, "1") == ["ID  STATUS      AGE  TASK", " 1  Procesando  0 s  draw a map", HINT]

    def test_a_confirmation_that_never_comes(self, stage: Stage) -> None:
        stage.taskd.silent.add("new_task")
        run = inside(stage, "2", "draw a map")
        stage.cut()
        stage.network.failing = error.ConnectionRefusedError()
        for _ in range(70):
            stage.advance(1)
        assert (
            "creates it only if it does not exist: taskclient add --key key1 'draw a map' (nothing listens" in run.out
        )
        assert "the next action connects again" not in run.out
        assert not run.over

    def test_a_session_that_ends_before_the_confirmation(self, stage: Stage) -> None:
        stage.taskd.silent.add("new_task")
        run = inside(stage, "2", "draw a map")
        stage.taskd.tokens.clear()
        stage.cut()
        stage.advance(FIRST_PAUSE)
        assert "no confirmation: the task may exist or not" in run.out
        assert run.out.endswith("Password of ana (Enter to leave): ")

    def test_texts_cannot_control_the_terminal(self, stage: Stage) -> None:
        stage.taskd.task("\x1b[2J\u202e")
        run = inside(stage, "1")
        assert "\\x1b[2J\\u202e" in run.out
        assert not set("\x1b\u202e") & set(run.out)

    def test_back_logs_out(self, stage: Stage) -> None:
        run = inside(stage, "3")
        assert run.out.endswith("3. Leave\nChoose an option: ")
        assert stage.taskd.actions()[-1] == "logout"
        assert len(stage.taskd.tokens) == 1

    def test_back_logs_out_even_after_an_error(self, stage: Stage) -> None:
        stage.taskd.refusals["logout"] = Unavailable("the store is away")
        run = inside(stage)
        assert new(run, "3") == ["the store is away"]
        new(run, "1", "bob", "secret bob", "secret bob")
        assert stage.taskd.actions() == ["register"], "on a connection of its own"


class TestAccount:
    def test_in_and_out(self, stage: Stage) -> None:
        run = inside(stage, "4")
        screen = f"ana at {SERVER}\n1. Change the password\n2. See sessions and API tokens\n3. Back\n"
        assert run.out.endswith(f"\n{screen}Choose an option: ")
        assert new(run, "4") == ["Please choose a number from 1 to 3."]
        run.type("3")
        assert run.out.endswith("3. Back\n4. Account\nChoose an option: ")
        assert "logout" not in stage.taskd.actions()

    def test_change_the_password(self, stage: Stage) -> None:
        run = inside(stage, "4", "1", PASSWORD, "battery staple", "battery staple")
        assert "Password changed. All other sessions and all API tokens have ended." in run.out
        assert run.source.secret == [PASSWORD, PASSWORD, "battery staple", "battery staple"]
        assert stage.taskd.passwords["ana"] == "battery staple"
        assert new(run, "1", "wrong horse", "battery staple", "battery staple")[-1] == "wrong password"
        assert not run.over

    def test_sessions(self, stage: Stage) -> None:
        times = {"created_at": NOON, "used_at": NOON, "expires_at": NOON}
        stage.taskd.sessions = [
            {"id": 7, "current": True, "address": "192.0.2.1", **times},
            {"id": 8, "current": False, "name": "nightly\x07", **times},
        ]
        run = inside(stage, "4")
        assert new(run, "2") == [
            "ID  CREATED     LAST USED  EXPIRES     ADDRESS    SESSION",
            " 7  2025-03-01  0 s        2025-03-01  192.0.2.1  this session",
            " 8  2025-03-01  0 s        2025-03-01  -          token nightly\\x07",
            "To end one of them, by its number: end N",
        ]
        assert new(run, "end 8") == ["Session 8 ended."]
        assert new(run, "end 8") == ["you have no session 8"]
        assert "the session has ended; log in again" in new(run, "end 7", "2")
        assert run.out.endswith("Password of ana (Enter to leave): ")
        run.type(PASSWORD)
        assert run.out.endswith("3. Back\nChoose an option: "), "the user is where the session ended"

    def test_in_spanish(self, stage: Stage) -> None:
        stage.lang = "es"
        stage.taskd.sessions = [
            {"id": 8, "current": False, "created_at": NOON, "used_at": NOON, "expires_at": NOON},
        ]
        assert new(inside(stage, "4"), "cerrar 8") == ["Sesión 8 cerrada."]

    def test_a_registration_that_needs_an_invitation(self, stage: Stage) -> None:
        stage.taskd.invitation = "welcome-1"
        run = menu(stage, "1", "bob", "secret bob", "secret bob")
        assert run.out.endswith("Invitation: ")
        run.type("welcome-1")
        assert "Registered. You can log in now." in run.out


class TestTrouble:
    def test_a_lost_connection_is_reported_and_reopened(self, stage: Stage) -> None:
        run = inside(stage)
        stage.cut()
        assert run.out.endswith("\nThe connection was lost; the next action connects again.\nChoose an option: ")
        assert new(run, "1") == ["No tasks."]
        assert stage.taskd.actions() == ["login", "get_tasks"]
        assert "token" in stage.taskd.asked()[0]

    def test_a_connection_lost_while_a_password_is_typed(self, stage: Stage) -> None:
        run = menu(stage, "2", "ana")
        stage.cut()
        run.type(PASSWORD)
        assert "Logged in as ana." in run.out

    def test_a_session_that_has_ended(self, stage: Stage) -> None:
        run = inside(stage)
        stage.taskd.tokens.clear()
        stage.cut()
        assert "the session has ended; log in again" in new(run, "1")
        assert run.out.endswith("Password of ana (Enter to leave): ")
        run.type(PASSWORD)
        assert run.source.secret[-1] == PASSWORD
        assert run.out.endswith("3. Back\n4. Account\nChoose an option: ")
        assert new(run, "1") == ["No tasks."]

    @pytest.mark.parametrize(("answer", "says"), [("", ""), ("wrong horse", "wrong password or username\n")])
    def test_no_password_after_the_end_of_the_session(self, stage: Stage, answer: str, says: str) -> None:
        run = inside(stage)
        stage.taskd.tokens.clear()
        stage.cut()
        run.type("1", answer)
        assert run.out.endswith(f"{says}\ntaskd at {SERVER}\n1. Register\n2. Log in\n3. Leave\nChoose an option: ")

    def test_a_session_that_ends_while_the_user_thinks(self, stage: Stage) -> None:
        run = inside(stage)
        stage.taskd.end_sessions("ana")
        stage.settle()
        assert run.out.endswith("\nthe session has ended; log in again\nChoose an option: ")
        assert "No tasks." in new(run, "1", PASSWORD, "1")

    def test_a_server_that_is_down_for_a_while(self, stage: Stage) -> None:
        run = inside(stage)
        stage.network.failing = error.ConnectionRefusedError()
        stage.cut()
        (line,) = new(run, "2")
        assert line.startswith("nothing listens at")
        stage.network.failing = None
        assert "Task 1 created." in new(run, "2", "draw a map")

    def test_a_server_that_never_answers(self, stage: Stage) -> None:
        stage.taskd.silent.add("get_tasks")
        run = inside(stage, "1")
        stage.advance(REPLY_SECONDS)
        assert "does not answer" in run.out
        assert not run.over

    def test_ctrl_d_logs_out_and_leaves(self, stage: Stage) -> None:
        run = inside(stage)
        run.source.open = False
        run.type()
        assert run.status == 0
        assert run.out.endswith("Choose an option: \n")
        assert len(stage.taskd.tokens) == 1

    def test_ctrl_d_does_not_wait_long_for_a_server(self, stage: Stage) -> None:
        stage.taskd.silent.add("logout")
        run = inside(stage)
        run.source.open = False
        run.type()
        assert not run.over
        stage.advance(GOODBYE_SECONDS)
        assert run.status == 0

    def test_ctrl_c_ends_it_anywhere(self, stage: Stage) -> None:
        for lines in ([], ["2"], ["2", "ana"], ["2", "ana", PASSWORD]):
            run = menu(stage, *lines)
            run.cancel()
            assert isinstance(run.error, CancelledError)
