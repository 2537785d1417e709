"""Sending one task again: lost connections and replies, and servers that are down, stopping or busy."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.internet import error
from twisted.internet.defer import CancelledError

from taskd.client.connection import CONNECT_SECONDS, REPLY_SECONDS
from taskd.client.retry import FIRST_PAUSE, GIVE_UP_SECONDS, LEAST_REPLY_SECONDS, LONGEST_PAUSE
from taskd.model.errors import Draining, Internal, RateLimited, TaskdError, Unavailable
from tests.unit.test_client_harness import Run, Stage

AGAIN = ["Connection lost; connecting again ...", "Connected again."]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "state").logged_in()


def until_over(stage: Stage, run: Run, most: float = 200.0) -> float:
    """Let time pass until the command has ended; returns the seconds."""
    begun = stage.clock.seconds()
    while not run.over and stage.clock.seconds() - begun < most:
        stage.advance(0.5)
    return stage.clock.seconds() - begun


def texts(stage: Stage) -> list[str]:
    """The texts of the stored tasks."""
    return [task.task for task in stage.taskd.tasks.values()]


class TestOneTask:
    @pytest.mark.parametrize("lost_after", [True, False])
    def test_a_connection_lost_before_the_reply(self, stage: Stage, lost_after: bool) -> None:
        """Before and after the server has stored the task."""
        failing = stage.taskd.mute if lost_after else stage.taskd.silent
        failing.add("new_task")
        run = stage.run("add", "x y")
        assert len(stage.taskd.tasks) == lost_after
        failing.clear()
        stage.cut()
        assert run.err.splitlines() == AGAIN[:1]
        stage.advance(FIRST_PAUSE)
        assert (run.status, run.out, run.err.splitlines()) == (0, "Task 1 created.\n", AGAIN)
        assert texts(stage) == ["x y"]
        assert stage.taskd.asked(-1)[-1] == stage.taskd.asked(-2)[-1], "the very same again"

    def test_a_resent_task_with_a_chosen_key_is_not_called_known(self, stage: Stage) -> None:
        stage.taskd.mute.add("new_task")
        run = stage.run("add", "x", "--key", "k")
        stage.taskd.mute.clear()
        stage.cut()
        stage.advance(FIRST_PAUSE)
        assert (run.status, run.out) == (0, "Task 1 created.\n")

    def test_a_reply_that_never_comes(self, stage: Stage) -> None:
        stage.taskd.mute.add("new_task")
        run = stage.run("add", "x")
        stage.taskd.mute.clear()
        stage.advance(REPLY_SECONDS)
        stage.advance(FIRST_PAUSE)
        assert (run.status, run.out, run.err.splitlines()) == (0, "Task 1 created.\n", AGAIN)

    def test_a_server_that_is_down_for_a_while(self, stage: Stage) -> None:
        stage.taskd.silent.add("new_task")
        run = stage.run("add", "x", "--json")
        stage.network.failing = error.ConnectionRefusedError()
        stage.cut()
        attempts = stage.network.attempts
        for _ in range(60):
            stage.advance(0.5)
        assert not run.over
        assert 5 <= stage.network.attempts - attempts <= 12, "with pauses that grow"
        stage.taskd.silent.clear()
        stage.network.failing = None
        stage.advance(LONGEST_PAUSE)
        assert run.status == 0
        assert [reply["task_id"] for reply in run.objects] == [1]
        assert run.err.splitlines() == AGAIN

    def test_it_gives_up_in_the_end(self, stage: Stage) -> None:
        stage.taskd.silent.add("new_task")
        run = stage.run("add", "x")
        stage.network.failing = error.ConnectionRefusedError()
        stage.cut()
        assert GIVE_UP_SECONDS <= until_over(stage, run) <= GIVE_UP_SECONDS + 1
        assert run.status == 1
        note, says = run.err.splitlines()
        assert note == AGAIN[0]
        assert says.startswith("taskclient: no confirmation: the tasks may exist or not; the same command with")
        assert "--key key1 creates only those that do not exist yet (nothing listens at" in says

        stage.network.failing = None
        stage.taskd.silent.clear()
        assert stage.run("add", "x", "--key", "key1").out == "Task 1 created.\n"

    def test_json_names_the_key(self, stage: Stage) -> None:
        stage.taskd.silent.add("new_task")
        run = stage.run("add", "x", "--json")
        stage.network.failing = error.ConnectionRefusedError()
        stage.cut()
        until_over(stage, run)
        (reply,) = run.objects
        assert (reply["ok"], reply["code"], reply["key"]) == (False, "unavailable", "key1")

    def test_a_server_that_accepts_and_never_answers(self, stage: Stage) -> None:
        stage.taskd.silent |= {"login", "new_task"}
        run = stage.run("add", "x y")
        assert until_over(stage, run) <= REPLY_SECONDS + GIVE_UP_SECONDS + LEAST_REPLY_SECONDS + CONNECT_SECONDS
        assert run.status == 1
        assert "--key key1" in run.err and "does not answer" in run.err

    def test_a_silent_server_does_not_extend_the_time_limit(self, stage: Stage) -> None:
        stage.taskd.silent.add("new_task")
        run = stage.run("add", "x")
        stage.network.failing = error.ConnectionRefusedError()
        stage.cut()
        for _ in range(40):
            stage.advance(1)
        stage.network.failing = None
        assert until_over(stage, run) <= GIVE_UP_SECONDS - 40 + LEAST_REPLY_SECONDS
        assert "--key key1" in run.err and "does not answer" in run.err

    @pytest.mark.parametrize("action", ["new_task", "login"])
    @pytest.mark.parametrize("refusal", [Draining("it is stopping", retry_after=1), Unavailable("the store is away")])
    def test_a_server_that_refuses_for_a_while(self, stage: Stage, refusal: TaskdError, action: str) -> None:
        stage.taskd.refusals[action] = refusal
        run = stage.run("add", "x")
        first = stage.taskd.connections[-1]
        stage.advance(3)
        assert not run.over
        del stage.taskd.refusals[action]
        stage.advance(4)
        assert (run.status, run.out) == (0, "Task 1 created.\n")
        assert run.err.splitlines() == [f"{refusal.message}; trying again ...", "Connected again."]
        assert stage.taskd.connections[-1] is not first
        assert first.transport.disconnected or first.transport.disconnecting

    def test_a_pause_is_as_long_as_the_server_asks(self, stage: Stage) -> None:
        stage.taskd.refusals["new_task"] = Draining("it is stopping", retry_after=7)
        stage.run("add", "x")
        attempts = stage.network.attempts
        stage.advance(6.9)
        assert stage.network.attempts == attempts
        stage.advance(0.1)
        assert stage.network.attempts == attempts + 1

    def test_a_server_that_is_stopping_has_created_nothing(self, stage: Stage) -> None:
        stage.taskd.refusals["new_task"] = Draining("it is stopping")
        run = stage.run("add", "x")
        assert GIVE_UP_SECONDS <= until_over(stage, run) <= GIVE_UP_SECONDS + 1
        assert run.err.splitlines()[-1] == "taskclient: it is stopping"

    def test_a_lost_store_may_have_created_the_task(self, stage: Stage) -> None:
        stage.taskd.refusals["new_task"] = Unavailable("the store is away")
        run = stage.run("add", "x")
        until_over(stage, run)
        assert "--key key1" in run.err and "(the store is away)" in run.err

    def test_a_failed_login_has_created_nothing(self, stage: Stage) -> None:
        stage.taskd.refusals["login"] = Unavailable("the store is away")
        run = stage.run("add", "x")
        until_over(stage, run)
        assert run.err.splitlines()[-1] == "taskclient: the store is away"

    def test_an_internal_error_may_have_created_the_task(self, stage: Stage) -> None:
        stage.taskd.refusals["new_task"] = Internal("its log says more")
        run = stage.run("add", "x")
        assert run.status == 1
        assert "--key key1" in run.err and "(its log says more)" in run.err

    def test_rate_limited(self, stage: Stage) -> None:
        stage.taskd.refusals["new_task"] = RateLimited("too much at once", retry_after=20)
        run = stage.run("add", "x y")
        assert run.err == "too much at once; trying again ...\n"
        stage.advance(19.9)
        assert stage.taskd.actions() == ["login", "new_task"]
        stage.taskd.refusals.clear()
        stage.advance(0.1)
        assert stage.taskd.actions() == ["login", "new_task", "new_task"], "on the same connection"
        assert (run.status, run.out, run.err.count("\n")) == (0, "Task 1 created.\n", 1)

    @pytest.mark.parametrize(("asked", "took"), [(20, 60), (61, 0), (None, 60)])
    def test_rate_limited_for_too_long(self, stage: Stage, asked: float | None, took: float) -> None:
        stage.taskd.refusals["new_task"] = RateLimited("too much at once", retry_after=asked)
        run = stage.run("add", "x")
        assert took <= until_over(stage, run) <= took + 1
        assert (run.status, run.err.splitlines()[-1]) == (1, "taskclient: too much at once")

    def test_a_rate_limited_login(self, stage: Stage) -> None:
        stage.taskd.refusals["login"] = RateLimited("too many logins", retry_after=5)
        run = stage.run("add", "x")
        stage.taskd.refusals.clear()
        stage.advance(5)
        assert (run.status, run.out) == (0, "Task 1 created.\n")

    def test_a_conflict_is_not_tried_again(self, stage: Stage) -> None:
        stage.run("add", "other", "--key", "k")
        stage.taskd.silent.add("new_task")
        run = stage.run("add", "x", "--key", "k")
        stage.taskd.silent.clear()
        stage.cut()
        stage.advance(FIRST_PAUSE)
        assert run.status == 1
        assert run.err.splitlines()[-1].startswith("taskclient: the key 'k' stands for another task already")

    def test_the_first_connection_has_to_work(self, stage: Stage) -> None:
        stage.network.failing = error.ConnectionRefusedError()
        for text in ("x", "-"):
            run = stage.run("add", text, lines=["x"])
            assert run.status == 1
            assert run.err.startswith("taskclient: nothing listens at") and run.err.count("\n") == 1

    def test_no_retry_after_the_session_has_ended(self, stage: Stage) -> None:
        stage.taskd.tokens.clear()
        for text in ("x", "-"):
            run = stage.run("add", text, open=True)
            assert run.status == 4
            assert len(run.err.splitlines()) == 1 and "log in" in run.err

    def test_a_session_that_ends_before_the_confirmation(self, stage: Stage) -> None:
        stage.taskd.silent.add("new_task")
        run = stage.run("add", "x")
        stage.taskd.tokens.clear()
        stage.cut()
        stage.advance(FIRST_PAUSE)
        assert run.status == 4
        assert "--key key1" in run.err and "log in again" in run.err

    def test_a_task_goes_to_its_own_user_after_another_login(self, stage: Stage) -> None:
        stage.taskd.silent.add("new_task")
        run = stage.run("add", "x")
        eve = stage.run("login", "eve", lines=["horse of eve"], prepare=lambda: stage.taskd.user("eve", "horse of eve"))
        assert eve.status == 0
        stage.taskd.silent.clear()
        stage.taskd.connections[-2].transport.loseConnection()
        stage.settle()
        stage.advance(FIRST_PAUSE)
        assert (run.status, stage.taskd.asked()[0]["token"]) == (0, "token-1")

    def test_an_ended_session_does_not_delete_a_newer_one(self, stage: Stage) -> None:
        stage.taskd.silent.add("new_task")
        run = stage.run("add", "x")
        stage.taskd.tokens.clear()
        stage.run("login", "ana", lines=["correct horse"])
        stage.taskd.connections[-2].transport.loseConnection()
        stage.settle()
        stage.advance(FIRST_PAUSE)
        assert run.status == 4
        assert stage.sessions.path.exists()

    def test_ctrl_c_names_the_key(self, stage: Stage) -> None:
        stage.taskd.silent.add("new_task")
        run = stage.run("add", "x")
        stage.cut()
        run.cancel()
        assert isinstance(run.error, CancelledError)
        assert run.err.splitlines()[1:] == [
            "Not confirmed yet; the same command with --key key1 creates it only if it does not exist."
        ]
        assert not stage.clock.getDelayedCalls()

    def test_states_are_shown_from_the_new_connection(self, stage: Stage) -> None:
        stage.taskd.mute.add("new_task")
        run = stage.run("add", "x", "--wait")
        stage.taskd.mute.clear()
        stage.cut()
        stage.advance(FIRST_PAUSE)
        assert stage.taskd.actions() == ["login", "watch", "new_task", "wait"]
        assert run.out.startswith("Task 1 created.\n")
