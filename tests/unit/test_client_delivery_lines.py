"""Sending many tasks again, of which some are confirmed, some stored, some neither."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from twisted.internet import error
from twisted.internet.defer import CancelledError

from taskd.client.retry import FIRST_PAUSE, GIVE_UP_SECONDS, LONGEST_PAUSE
from taskd.model.errors import Draining, RateLimited, TaskdError, Unavailable
from tests.unit.test_client_delivery import AGAIN, texts, until_over
from tests.unit.test_client_harness import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "state").logged_in()


class TestLines:
    def test_what_is_not_confirmed_is_sent_again(self, stage: Stage) -> None:
        """Four batches are in flight, and the connection is lost twice."""
        lines = [f"task {n}" for n in range(8000)]
        stage.taskd.silent.add("new_tasks")
        run = stage.run("add", "-", lines=lines)
        assert stage.taskd.actions().count("new_tasks") == 4
        first = stage.taskd.asked()[2:]
        stage.taskd.silent.clear()
        stage.taskd.mute.add("new_tasks")
        stage.cut()
        stage.advance(FIRST_PAUSE)
        assert stage.taskd.asked()[1:] == [dict(r, id=n) for n, r in enumerate(first, 2)], "the same in the same order"
        stage.taskd.mute.clear()
        stage.cut()
        assert until_over(stage, run) <= 2 * FIRST_PAUSE
        assert (run.status, run.out) == (0, "8000 tasks created (1 to 8000).\n")
        assert texts(stage) == lines
        assert run.err.splitlines() == AGAIN

    def test_json_prints_each_confirmation_once(self, stage: Stage) -> None:
        stage.taskd.mute.add("new_tasks")
        run = stage.run("add", "-", "--json", lines=["x"] * 3000)
        stage.taskd.mute.clear()
        stage.cut()
        until_over(stage, run)
        assert run.status == 0
        counted = Counter(task_id for reply in run.objects for task_id in reply["task_ids"])
        assert counted == Counter(range(1, 3001))

    def test_a_connection_lost_between_lines(self, stage: Stage) -> None:
        run = stage.run("add", "-", open=True)
        run.type("one")
        stage.cut()
        assert run.err == "", "there is nothing to send"
        run.type("two")
        stage.advance(FIRST_PAUSE)
        assert run.err.splitlines() == AGAIN
        run.source.open = False
        run.type()
        assert (run.status, run.out) == (0, "2 tasks created (1 to 2).\n")

    def test_each_failure_has_its_own_time_limit(self, stage: Stage) -> None:
        run = stage.run("add", "-", open=True)
        for n in range(3):
            stage.network.failing = error.ConnectionRefusedError()
            stage.cut()
            run.type(f"line {n}")
            for _ in range(40):
                stage.advance(1)
            stage.network.failing = None
            stage.advance(LONGEST_PAUSE)
        assert texts(stage) == ["line 0", "line 1", "line 2"]
        assert run.err.splitlines() == AGAIN * 3

    def test_it_gives_up_in_the_end(self, stage: Stage) -> None:
        run = stage.run("add", "-", open=True)
        run.type("one")
        stage.taskd.mute.add("new_tasks")
        run.type("two")
        run.type("three")
        stage.network.failing = error.ConnectionRefusedError()
        stage.cut()
        assert until_over(stage, run) <= GIVE_UP_SECONDS + 1
        assert run.status == 1
        note, count, says = run.err.splitlines()
        assert note == AGAIN[0]
        assert count == "1 tasks were created before the error; --key key1 with the same lines continues from there."
        assert "may exist or not; the same command with --key key1 creates only" in says

        stage.network.failing = None
        stage.taskd.mute.clear()
        run = stage.run("add", "-", "--key", "key1", lines=["one", "two", "three", "four"])
        assert run.out.splitlines() == [
            "Task 4 created.",
            "3 tasks already exist under these keys (1 to 3).",
        ]

    def test_tasks_that_were_never_sent_do_not_exist(self, stage: Stage) -> None:
        run = stage.run("add", "-", open=True)
        run.type("one")
        stage.network.failing = error.ConnectionRefusedError()
        stage.cut()
        run.type("two")
        until_over(stage, run)
        assert run.err.splitlines()[-1].startswith("taskclient: nothing listens at")

    @pytest.mark.parametrize("refusal", [Draining("it is stopping"), Unavailable("the store is away")])
    def test_a_server_that_refuses_for_a_while(self, stage: Stage, refusal: TaskdError) -> None:
        run = stage.run("add", "-", open=True)
        run.type("one")
        stage.taskd.refusals["new_tasks"] = refusal
        run.type("two")
        run.type("three")
        stage.taskd.refusals.clear()
        stage.advance(FIRST_PAUSE)
        assert texts(stage) == ["one", "two", "three"]
        run.source.open = False
        run.type()
        assert (run.status, run.out) == (0, "3 tasks created (1 to 3).\n")
        assert run.err.splitlines() == [f"{refusal.message}; trying again ...", "Connected again."]

    def test_a_server_that_is_stopping_still_answers(self, stage: Stage) -> None:
        run = stage.run("add", "-", open=True)
        stage.taskd.held.add("new_tasks")
        run.type("one")
        stage.taskd.held.clear()
        stage.taskd.refusals["new_tasks"] = Draining("it is stopping")
        run.type("two")
        stage.taskd.refusals.clear()
        old = stage.taskd.connections[-1]
        assert not old.transport.disconnecting
        old.release()
        stage.settle()
        assert old.transport.disconnected or old.transport.disconnecting
        stage.advance(FIRST_PAUSE)
        run.source.open = False
        run.type()
        assert (run.status, run.out) == (0, "2 tasks created (1 to 2).\n")
        assert stage.taskd.actions(-2).count("new_tasks") == 2
        assert stage.taskd.actions(-1).count("new_tasks") == 1

    def test_rate_limited_is_reported_once(self, stage: Stage) -> None:
        stage.taskd.refusals["new_tasks"] = RateLimited("too much at once", retry_after=10)
        run = stage.run("add", "-", lines=["x"] * 3000)
        stage.advance(10)
        stage.taskd.refusals.clear()
        stage.advance(10)
        assert (run.status, run.out) == (0, "3000 tasks created (1 to 3000).\n")
        assert run.err == "too much at once; trying again ...\n"
        assert texts(stage) == ["x"] * 3000

    def test_ctrl_c_ends_it_at_once(self, stage: Stage) -> None:
        run = stage.run("add", "-", open=True)
        run.type("one", "two")
        stage.taskd.silent.add("new_tasks")
        run.type("three")
        stage.network.failing = error.ConnectionRefusedError()
        stage.cut()
        for _ in range(3):
            stage.advance(1)
        assert not run.over
        run.cancel()
        assert isinstance(run.error, CancelledError)
        assert run.err.splitlines()[1:] == [
            "2 tasks were created before the error; --key key1 with the same lines continues from there."
        ]
        assert not stage.clock.getDelayedCalls()

    def test_ctrl_c_while_the_server_is_silent(self, stage: Stage) -> None:
        stage.taskd.silent.add("new_tasks")
        run = stage.run("add", "-", lines=["x"] * 10_000)
        run.cancel()
        assert isinstance(run.error, CancelledError)
        assert run.err.startswith("0 tasks were created before the error; --key key1")
        assert not stage.clock.getDelayedCalls()

    def test_a_bad_line_waits_for_the_batches_in_flight(self, stage: Stage) -> None:
        run = stage.run("add", "-", open=True)
        stage.taskd.mute.add("new_tasks")
        run.type("one")
        run.type("x" * 5000)
        assert not run.over
        stage.taskd.mute.clear()
        stage.cut()
        stage.advance(FIRST_PAUSE)
        assert run.status == 1
        assert run.err.splitlines()[2].startswith("1 tasks were created before the error")
        assert "line 2: a task needs" in run.err.splitlines()[3]
