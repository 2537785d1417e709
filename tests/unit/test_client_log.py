"""``log``: the printed lines, the notes about missing lines, and following across lost connections."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from twisted.internet import error

from taskd.client.retry import FIRST_PAUSE
from taskd.model.errors import Unavailable
from taskd.model.states import State
from tests.unit.test_client_harness import Run, Stage
from tests.unit.test_client_taskd import NOON


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    stage = Stage(tmp_path / "state").logged_in()
    stage.taskd.task("render", State.RUNNING, attempt=1)
    return stage


def say(stage: Stage, *texts: str, attempt: int = 1) -> None:
    """The task logs lines."""
    stage.taskd.log(1, *texts, attempt=attempt)
    stage.settle()


def finish(stage: Stage, state: State = State.COMPLETED) -> None:
    """The task ends."""
    stage.taskd.move(1, state, finished_at=NOON)
    stage.settle()


def lines(run: Run) -> list[str]:
    """The printed lines."""
    return run.out.splitlines()


class TestLog:
    def test_several_pages(self, stage: Stage) -> None:
        texts = [f"line {n}" for n in range(2500)]
        say(stage, *texts)
        run = stage.run("log", "1")
        assert (run.status, run.err) == (0, "")
        assert lines(run) == texts
        assert stage.taskd.actions() == ["login", "get_log", "get_log", "get_log"]

    @pytest.mark.parametrize(("count", "requests"), [("3", 1), ("1000", 1), ("1001", 3)])
    def test_the_last_lines(self, stage: Stage, count: str, requests: int) -> None:
        texts = [f"line {n}" for n in range(2500)]
        say(stage, *texts)
        run = stage.run("log", "1", "-n", count)
        assert lines(run) == texts[-int(count) :]
        assert stage.taskd.actions().count("get_log") == requests

    def test_an_empty_log(self, stage: Stage) -> None:
        run = stage.run("log", "1")
        assert (run.status, run.out, run.err) == (0, "", "Task 1 has no log.\n")

    def test_attempts_are_separated(self, stage: Stage) -> None:
        say(stage, "first")
        say(stage, "second", attempt=2)
        assert lines(stage.run("log", "1")) == ["first", "--- attempt 2 ---", "second"]
        assert lines(stage.run("log", "1", "--attempt", "2")) == ["second"]
        assert lines(stage.run("log", "1", "-n", "1")) == ["--- attempt 2 ---", "second"]
        stage.lang = "es"
        assert lines(stage.run("log", "1"))[1] == "--- intento 2 ---"

    def test_attempts_that_are_numbered_from_one_again(self, stage: Stage) -> None:
        say(stage, "first", "more")
        stage.taskd.log(1, "retried", first=1)
        run = stage.run("log", "1")
        assert (lines(run), run.err) == (["first", "more", "--- attempt 1 ---", "retried"], "")

    def test_the_last_lines_of_one_attempt(self, stage: Stage) -> None:
        for attempt in (1, 2, 3):
            say(stage, *(f"{attempt}.{n}" for n in range(5)), attempt=attempt)
        assert lines(stage.run("log", "1", "--attempt", "2", "-n", "2")) == ["2.3", "2.4"]

    def test_times(self, stage: Stage) -> None:
        say(stage, "at noon")
        (line,) = lines(stage.run("log", "1", "--times"))
        assert line == f"{NOON.astimezone().isoformat(' ', 'seconds')}  at noon"

    def test_missing_lines(self, stage: Stage) -> None:
        stage.taskd.cut = True
        stage.taskd.log(1, "a", "b", first=100)
        stage.taskd.log(1, "c", first=110)
        run = stage.run("log", "1")
        assert lines(run) == ["a", "b", "c"]
        assert run.err.splitlines() == [
            "The beginning of this log was deleted because the log was too long.",
            "8 lines are missing here because the log was too long.",
        ]
        assert stage.run("log", "1", "-n", "1").err == "", "who asks for the end misses no beginning"

    def test_lines_cannot_control_the_terminal(self, stage: Stage) -> None:
        say(stage, "\x1b[2J\x9b31mboo\rhoo\u202e", "a\tb")
        for run in (stage.run("log", "1", tty=True), stage.run("log", "1")):
            assert lines(run) == ["\\x1b[2J\\x9b31mboo\\rhoo\\u202e", "a       b"]

    def test_json_prints_one_object_per_line(self, stage: Stage) -> None:
        say(stage, "a", "b\x07")
        run = stage.run("log", "1", "--json")
        assert [(line["attempt"], line["line"], line["text"]) for line in run.objects] == [(1, 1, "a"), (1, 2, "b\x07")]

    def test_a_task_that_does_not_exist(self, stage: Stage) -> None:
        for argv in (["log", "7"], ["log", "7", "-f"]):
            run = stage.run(*argv)
            assert (run.status, run.err) == (1, "taskclient: you have no task 7\n")


class TestFollow:
    def test_until_the_task_has_ended(self, stage: Stage) -> None:
        say(stage, "before")
        run = stage.run("log", "1", "-f")
        assert lines(run) == ["before"]
        say(stage, "now", "and now")
        assert lines(run) == ["before", "now", "and now"]
        finish(stage)
        assert (run.status, run.err) == (0, "")

    def test_a_terminal_shows_how_the_task_ended(self, stage: Stage) -> None:
        run = stage.run("log", "1", "-f", tty=True)
        say(stage, "x")
        finish(stage, State.FAILED)
        assert (run.status, run.err) == (0, "Task 1: failed.\n")

    def test_a_task_that_has_ended_already(self, stage: Stage) -> None:
        say(stage, "all")
        finish(stage)
        run = stage.run("log", "1", "-f")
        assert (run.status, lines(run)) == (0, ["all"])

    def test_following_from_the_last_lines(self, stage: Stage) -> None:
        say(stage, *map(str, range(50)))
        run = stage.run("log", "1", "-f", "-n", "2")
        say(stage, "50")
        assert lines(run) == ["48", "49", "50"]
        finish(stage)
        assert run.status == 0

    def test_no_line_is_lost_or_repeated_after_a_lost_connection(self, stage: Stage) -> None:
        say(stage, "1", "2")
        run = stage.run("log", "1", "-f", "-n", "1")
        say(stage, "3")
        stage.cut()
        assert run.err == "Connection lost; connecting again ...\n"
        say(stage, *map(str, range(4, 2600)))
        stage.advance(FIRST_PAUSE)
        say(stage, "2600")
        assert lines(run) == list(map(str, range(2, 2601)))
        assert run.err.splitlines()[1:] == ["Connected again."]
        finish(stage)
        assert run.status == 0

    def test_a_log_that_was_empty_when_the_connection_was_lost(self, stage: Stage) -> None:
        run = stage.run("log", "1", "-f", "-n", "1")
        stage.cut()
        say(stage, "1", "2")
        stage.advance(FIRST_PAUSE)
        finish(stage)
        assert (run.status, lines(run)) == (0, ["2"])

    def test_the_task_ends_while_the_connection_is_lost(self, stage: Stage) -> None:
        run = stage.run("log", "1", "-f")
        stage.network.failing = error.ConnectionRefusedError()
        stage.cut()
        say(stage, "last words")
        finish(stage)
        stage.network.failing = None
        stage.advance(FIRST_PAUSE)
        assert (run.status, lines(run)) == (0, ["last words"])

    def test_the_first_connection_has_to_work(self, stage: Stage) -> None:
        stage.taskd.refusals["get_log"] = Unavailable("the store is away")
        assert stage.run("log", "1", "-f").status == 1

    def test_ctrl_c(self, stage: Stage) -> None:
        run = stage.run("log", "1", "-f")
        run.cancel()
        assert run.error is not None
        assert not any(call.active() for call in stage.clock.getDelayedCalls())

    def test_json(self, stage: Stage) -> None:
        run = stage.run("log", "1", "-f", "--json")
        say(stage, "now")
        finish(stage)
        assert (run.status, [line["text"] for line in run.objects]) == (0, ["now"])

    @pytest.mark.parametrize("event", [{"lines": "x"}, {"lines": [{"attempt": 1}]}, {"lines": [7]}, {}])
    def test_garbage_in_an_event(self, stage: Stage, event: dict[str, object]) -> None:
        run = stage.run("log", "1", "-f")
        stage.taskd.connections[-1].event({"event": "log", "task_id": 1, **event})
        stage.settle()
        assert run.status == 1
        assert "is not a taskd" in run.err


def test_a_server_that_is_too_old(stage: Stage) -> None:
    for lang, says in (
        (
            "en",
            "taskclient: this server is older than taskclient and does not know this action: "
            "there is no action 'get_log'",
        ),
        ("es", "taskclient: este servidor es más antiguo que taskclient y no conoce esa acción: there is no action"),
    ):
        stage.lang = lang
        for argv in (["log", "1"], ["retry", "1"], ["explain", "1"], ["kinds"], ["overview"]):
            stage.taskd.old = True
            run = stage.run(*argv)
            assert (run.status, run.out, run.err.count("\n")) == (1, "", 1)
            assert run.err.startswith(says.replace("get_log", stage.taskd.actions()[-1]))
        refused = stage.run("kinds", "--json")
        assert json.loads(refused.out)["code"] == "unknown_action"
