"""``watch``, ``wait`` and ``add --wait``: which changes are shown, across gaps and lost connections."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.internet import error

from taskd.cli.commands.wait import ANSWER_SECONDS
from taskd.cli.ui.progress import REMEMBERED
from taskd.client.connection import KEEPALIVE_SECONDS, REPLY_SECONDS
from taskd.client.retry import FIRST_PAUSE, LONGEST_PAUSE
from taskd.model.errors import Draining
from taskd.model.states import State
from tests.unit.test_client_harness import Run, Stage
from tests.unit.test_client_taskd import NOON


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "state").logged_in()


def words(run: Run) -> list[list[str]]:
    """The number, the state and the text of each change that was shown."""
    return [line.split()[1:] for line in run.out.splitlines() if ":" in line.split()[0]]


def finish(stage: Stage, task_id: int, state: State = State.COMPLETED) -> None:
    """A task ends."""
    stage.taskd.move(task_id, state, finished_at=NOON)
    stage.settle()


class TestWatch:
    def test_first_the_newest_tasks_then_every_change(self, stage: Stage) -> None:
        for n in range(12):
            stage.taskd.task(f"old{n}", State.COMPLETED)
        run = stage.run("watch", "--limit", "2")
        assert [line.split()[-1] for line in run.out.splitlines()] == ["TASK", "old11", "old10"]
        stage.taskd.move(12, State.RUNNING)
        stage.settle()
        assert words(run) == [["12", "running", "old11"]]
        assert not run.over

    def test_only_a_terminal_gets_the_hint_how_to_end_it(self, stage: Stage) -> None:
        assert stage.run("watch").err == ""
        assert stage.run("watch", tty=True).err == "Watching; Ctrl-C ends it.\n"

    def test_every_version_is_shown_once(self, stage: Stage) -> None:
        task = stage.taskd.task("one")
        run = stage.run("watch")
        connection = stage.taskd.connections[-1]
        connection.tell(task)
        stage.taskd.move(1, State.RUNNING)
        connection.tell(task)
        stage.settle()
        assert words(run) == [["1", "running", "one"]]

    def test_json_prints_everything_unchanged(self, stage: Stage) -> None:
        stage.taskd.task("one")
        run = stage.run("watch", "--json")
        stage.taskd.move(1, State.RUNNING)
        stage.taskd.connections[-1].event({"event": "draining", "new_field": 1})
        stage.settle()
        snapshot, change, draining = run.objects
        assert [task["state"] for task in snapshot["tasks"]] == ["queued"]
        assert change["task"]["state"] == "running"
        assert draining == {"event": "draining", "new_field": 1}

    def test_it_reconnects(self, stage: Stage) -> None:
        stage.taskd.task("kept")
        stage.taskd.task("moved")
        run = stage.run("watch")
        stage.cut()
        assert run.err == "Connection lost; connecting again ...\n"
        stage.taskd.move(2, State.RUNNING)
        stage.taskd.task("new")
        stage.advance(FIRST_PAUSE)
        assert run.err.splitlines()[1:] == ["Connected again."]
        assert words(run) == [["2", "running", "moved"], ["3", "queued", "new"]]
        finish(stage, 2)
        assert words(run)[2:] == [["2", "completed", "moved"]]

    def test_old_tasks_of_a_larger_snapshot_are_not_shown(self, stage: Stage) -> None:
        for n in range(5):
            stage.taskd.task(f"task{n}")
        run = stage.run("watch", "--limit", "1")
        stage.cut()
        stage.taskd.move(5, State.RUNNING)
        stage.advance(FIRST_PAUSE)
        assert stage.taskd.asked()[-1]["limit"] > 5
        assert words(run) == [["5", "running", "task4"]]

    def test_pauses_grow_to_a_limit_and_are_reset(self, stage: Stage) -> None:
        run = stage.run("watch")
        stage.network.failing = error.ConnectionRefusedError()
        stage.cut()
        attempts = stage.network.attempts
        stage.advance(FIRST_PAUSE)
        assert stage.network.attempts == attempts + 1
        for _ in range(20):
            stage.advance(LONGEST_PAUSE)
        assert stage.network.attempts > attempts + 20
        before = stage.network.attempts
        stage.advance(LONGEST_PAUSE / 2 - 0.1)
        assert stage.network.attempts == before, "no pause is shorter than half of the longest"
        stage.network.failing = None
        stage.advance(LONGEST_PAUSE)
        assert run.err.splitlines() == ["Connection lost; connecting again ...", "Connected again."]
        attempts = stage.network.attempts
        stage.cut()
        stage.advance(FIRST_PAUSE)
        assert stage.network.attempts == attempts + 1

    def test_the_first_connection_has_to_work(self, stage: Stage) -> None:
        stage.network.failing = error.ConnectionRefusedError()
        run = stage.run("watch")
        assert run.status == 1
        assert "nothing listens at" in run.err

    def test_a_server_that_restarts_may_refuse_for_a_while(self, stage: Stage) -> None:
        run = stage.run("watch")
        stage.taskd.refusals["watch"] = Draining("stopping")
        stage.cut()
        stage.advance(FIRST_PAUSE)
        assert not run.over
        del stage.taskd.refusals["watch"]
        stage.advance(2 * FIRST_PAUSE)
        assert "Connected again." in run.err

    def test_a_session_that_ends_meanwhile(self, stage: Stage) -> None:
        run = stage.run("watch")
        stage.taskd.tokens.clear()
        stage.cut()
        stage.advance(FIRST_PAUSE)
        assert run.status == 4
        assert "log in again" in run.err

    def test_a_silent_connection_is_detected(self, stage: Stage) -> None:
        run = stage.run("watch")
        for _ in range(10):
            stage.advance(KEEPALIVE_SECONDS)
        assert stage.taskd.actions().count("ping") == 10
        assert run.err == ""
        stage.taskd.silent.add("ping")
        stage.advance(KEEPALIVE_SECONDS)
        stage.advance(REPLY_SECONDS)
        assert "connecting again" in run.err
        stage.advance(FIRST_PAUSE)
        assert "Connected again." in run.err

    def test_after_a_gap_it_asks_again(self, stage: Stage) -> None:
        stage.taskd.task("one")
        run = stage.run("watch")
        connection = stage.taskd.connections[-1]
        connection._watching = False
        stage.taskd.move(1, State.RUNNING)
        connection.event({"event": "gap"})
        stage.settle()
        assert words(run) == [["1", "running", "one"]]
        finish(stage, 1)
        assert words(run)[1:] == [["1", "completed", "one"]]

    def test_garbage_in_an_event(self, stage: Stage) -> None:
        run = stage.run("watch")
        stage.taskd.connections[-1].event({"event": "task", "task": {"id": "one"}})
        stage.settle()
        assert run.status == 1
        assert "is not a taskd" in run.err

    def test_texts_cannot_control_the_terminal(self, stage: Stage) -> None:
        stage.taskd.task("\x1b[2J", State.FAILED, error="\x07")
        (task,) = stage.run("list", "--json").objects
        run = stage.run("watch", tty=True, columns=200)
        stage.taskd.connections[-1].event({"event": "task", "task": task | {"state": "\x1b[31m", "version": 9}})
        stage.settle()
        assert run.out.splitlines()[-1].endswith("\\x1b[31m       \\x1b[2J: \\x07")
        assert not set("\x1b\x07") & set(run.out)


class TestWait:
    def test_until_all_have_ended(self, stage: Stage) -> None:
        stage.taskd.task("one")
        stage.taskd.task("two", State.RUNNING)
        run = stage.run("wait", "1", "2", "2")
        finish(stage, 2)
        assert not run.over
        stage.taskd.move(1, State.RUNNING)
        finish(stage, 1)
        assert run.status == 0
        assert words(run) == [["2", "completed", "two"], ["1", "running", "one"], ["1", "completed", "one"]]

    @pytest.mark.parametrize(
        ("ends", "status"),
        [
            ([State.COMPLETED, State.FAILED], 5),
            ([State.CANCELLED, State.COMPLETED], 3),
            ([State.CANCELLED, State.FAILED], 5),
        ],
    )
    def test_the_worst_end_decides(self, stage: Stage, ends: list[State], status: int) -> None:
        for end in ends:
            stage.taskd.task("x", end, finished_at=NOON)
        run = stage.run("wait", "1", "2")
        assert run.status == status
        assert len(words(run)) == 2

    def test_time_is_up(self, stage: Stage) -> None:
        stage.taskd.task("one")
        stage.taskd.task("two", State.COMPLETED, finished_at=NOON)
        run = stage.run("wait", "1", "2", "--timeout", "5")
        assert stage.taskd.asked()[-1]["timeout"] == 5
        stage.advance(5)
        stage.taskd.connections[-1].time_out()
        stage.settle()
        assert run.status == 3
        assert words(run) == [["2", "completed", "two"]]
        assert run.err == "1 of the tasks did not end in time: 1\n"

    def test_a_timeout_of_zero_asks_once(self, stage: Stage) -> None:
        stage.taskd.task("one")
        assert stage.run("wait", "1", "--timeout", "0").status == 3
        finish(stage, 1)
        assert stage.run("wait", "1", "--timeout", "0").status == 0

    def test_a_server_that_answers_too_early_is_asked_again(self, stage: Stage) -> None:
        stage.taskd.task("one")
        run = stage.run("wait", "1")
        stage.advance(10)
        stage.taskd.connections[-1].time_out()
        stage.settle()
        assert not run.over
        finish(stage, 1)
        assert run.status == 0

    def test_it_reconnects(self, stage: Stage) -> None:
        stage.taskd.task("one")
        run = stage.run("wait", "1", "--timeout", "100")
        stage.cut()
        finish(stage, 1)
        stage.advance(FIRST_PAUSE)
        assert run.status == 0
        assert 99 <= stage.taskd.asked()[-1]["timeout"] < 100
        assert run.err.splitlines() == ["Connection lost; connecting again ...", "Connected again."]
        assert words(run) == [["1", "completed", "one"]]

    def test_time_is_up_without_a_server(self, stage: Stage) -> None:
        stage.taskd.task("one")
        run = stage.run("wait", "1", "--timeout", "30")
        stage.network.failing = error.ConnectionRefusedError()
        stage.cut()
        for _ in range(59):
            stage.advance(0.5)
        assert not run.over
        stage.advance(0.5)
        assert run.status == 3
        assert run.err.endswith("1 of the tasks did not end in time: 1\n")

    def test_time_is_up_and_the_server_is_silent(self, stage: Stage) -> None:
        stage.taskd.task("one")
        run = stage.run("wait", "1", "--timeout", "5")
        stage.advance(5 + ANSWER_SECONDS)
        assert run.status == 3

    def test_more_tasks_than_one_request_can_have(self, stage: Stage) -> None:
        for _ in range(2500):
            stage.taskd.task("x", State.COMPLETED, finished_at=NOON)
        run = stage.run("wait", *map(str, range(1, 2501)), "--json")
        assert run.status == 0
        assert [len(reply["tasks"]) for reply in run.objects] == [1000, 1000, 500]

    def test_json_prints_only_the_last_reply(self, stage: Stage) -> None:
        stage.taskd.task("one")
        run = stage.run("wait", "1", "--json")
        stage.taskd.move(1, State.RUNNING)
        finish(stage, 1)
        assert run.status == 0
        (reply,) = run.objects
        assert reply["done"] is True
        assert "watch" not in stage.taskd.actions()

    def test_a_task_that_does_not_exist(self, stage: Stage) -> None:
        run = stage.run("wait", "7")
        assert (run.status, run.err) == (1, "taskclient: you have no task 7\n")

    def test_ctrl_c_leaves_no_timer(self, stage: Stage) -> None:
        stage.taskd.task("one")
        run = stage.run("wait", "1")
        run.cancel()
        assert run.error is not None
        assert not any(call.active() for call in stage.clock.getDelayedCalls())


class TestAddAndWait:
    def test_every_state_is_shown(self, stage: Stage) -> None:
        run = stage.run("add", "one", "--wait")
        assert run.out.splitlines()[0] == "Task 1 created."
        stage.taskd.move(1, State.RUNNING, attempt=2)
        finish(stage, 1)
        assert run.status == 0
        assert words(run) == [
            ["1", "queued", "one"],
            ["1", "running", "one", "(attempt", "2", "of", "3)"],
            ["1", "completed", "one"],
        ]

    def test_others_tasks_are_not_shown(self, stage: Stage) -> None:
        stage.taskd.task("other")
        run = stage.run("add", "mine", "--wait")
        finish(stage, 1)
        finish(stage, 2)
        assert [task_id for task_id, *_ in words(run)] == ["2", "2"]

    def test_json(self, stage: Stage) -> None:
        run = stage.run("add", "one", "--wait", "--json")
        finish(stage, 1, State.FAILED)
        assert run.status == 5
        created, queued, failed, waited = run.objects
        assert created["task_id"] == 1
        assert [event["task"]["state"] for event in (queued, failed)] == ["queued", "failed"]
        assert waited["done"] is True

    def test_lines_of_the_input(self, stage: Stage) -> None:
        run = stage.run("add", "-", "--wait", lines=["one", "two"])
        finish(stage, 1)
        finish(stage, 2, State.CANCELLED)
        assert run.status == 3
        assert words(run)[:2] == [["1", "queued", "one"], ["2", "queued", "two"]]
        assert words(run)[2:] == [["1", "completed", "one"], ["2", "cancelled", "two"]]

    def test_held_events_are_bounded(self, stage: Stage) -> None:
        run = stage.run("add", "-", "--wait", open=True)
        task = stage.taskd.task("other")
        connection = stage.taskd.connections[-1]
        for _ in range(REMEMBERED + 100):
            task.version += 1
            connection.tell(task)
        stage.settle()
        run.type("mine")
        run.source.open = False
        run.type()
        finish(stage, 2)
        assert run.status == 0
        assert words(run) == [["2", "queued", "mine"], ["2", "completed", "mine"]]

    def test_a_gap(self, stage: Stage) -> None:
        run = stage.run("add", "one", "--wait")
        stage.taskd.connections[-1].event({"event": "gap"})
        stage.settle()
        assert stage.taskd.actions()[-1] == "watch"
        finish(stage, 1)
        assert run.status == 0

    def test_a_timeout(self, stage: Stage) -> None:
        run = stage.run("add", "one", "--wait", "--wait-timeout", "1s")
        stage.advance(1)
        stage.taskd.connections[-1].time_out()
        stage.settle()
        assert run.status == 3
