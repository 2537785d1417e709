"""Progress: lines in a pipe, bars on a terminal."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import pytest

from taskd.cli.ui.bars import MOST_BARS, SOON, TICK
from taskd.cli.ui.rendering import percent
from taskd.cli.ui.terminal import Output
from taskd.cli.ui.text import width
from taskd.client.retry import FIRST_PAUSE
from taskd.model.states import State
from tests.unit.test_client_harness import Run, Stage, Stream
from tests.unit.test_client_taskd import NOON

SCREEN = os.terminal_size((80, 24))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "state").logged_in()


def runs(stage: Stage, text: str = "render") -> int:
    """The number of a running task."""
    return stage.taskd.task(text, State.RUNNING, attempt=1, started_at=NOON).id


def says(stage: Stage, task_id: int, progress: float, note: str | None = None) -> None:
    """The task reports its progress, and time passes until it is drawn."""
    stage.taskd.progress(task_id, progress, note)
    stage.settle()
    stage.advance(SOON)


def finish(stage: Stage, task_id: int) -> None:
    """It ends."""
    stage.taskd.move(task_id, State.COMPLETED, finished_at=NOON)
    stage.settle()
    stage.advance(SOON)


def words(run: Run) -> list[str]:
    """The printed lines, without their times and repeated blanks."""
    return [" ".join(line.split()[1:]) for line in run.out.splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]


def shown(run: Run, columns: int = 80) -> list[str]:
    """The content of the terminal after all cursor movements; both output streams go there."""
    screen: list[str] = []
    for piece in re.split(r"(\x1b\[\d*[AJ])", run.out):
        if piece.endswith("A") and piece.startswith("\x1b["):
            del screen[len(screen) - int(piece[2:-1]) :]
        elif not piece.startswith("\x1b["):
            screen += piece.replace("\r", "").splitlines()
    assert all(width(line) <= columns for line in screen)
    return screen


@pytest.mark.parametrize(
    ("progress", "cents"), [(0, 0), (0.29, 29), (0.999, 99), (1, 100), (-1, 0), (7, 100), (0.57, 57)]
)
def test_per_cent(progress: float, cents: int) -> None:
    assert percent(progress) == cents


class TestLines:
    def test_one_for_each_tenth_or_note(self, stage: Stage) -> None:
        task_id = runs(stage)
        run = stage.run("watch")
        for n in range(101):
            says(stage, task_id, n / 100)
        assert words(run) == [f"1 running {n} % render" for n in range(10, 101, 10)]
        says(stage, task_id, 1.0, "tidying up\x07")
        assert words(run)[-1] == "1 running 100 % render: tidying up\\x07"
        says(stage, task_id, 1.0, "tidying up\x07")
        assert len(words(run)) == 11

    def test_in_spanish_and_together_with_states(self, stage: Stage) -> None:
        stage.lang = "es"
        run = stage.run("add", "pintar la casa", "--wait")
        stage.taskd.move(1, State.RUNNING, attempt=1, started_at=NOON)
        says(stage, 1, 0.5, "paredes")
        finish(stage, 1)
        assert run.status == 0
        assert words(run)[1:] == [
            "1 en curso pintar la casa",
            "1 en curso 50 % pintar la casa: paredes",
            words(run)[-1],
        ]

    def test_only_for_the_tasks_that_are_waited_for(self, stage: Stage) -> None:
        other, mine = runs(stage, "other"), runs(stage, "mine")
        run = stage.run("wait", str(mine))
        says(stage, other, 0.5)
        says(stage, mine, 0.5)
        assert words(run) == ["2 running 50 %"], "its text is not known"

    def test_a_new_attempt_starts_from_zero(self, stage: Stage) -> None:
        task_id = runs(stage)
        run = stage.run("watch")
        says(stage, task_id, 0.5)
        stage.taskd.move(task_id, State.WAITING)
        stage.taskd.move(task_id, State.RUNNING, attempt=2)
        says(stage, task_id, 0.5)
        assert [line for line in words(run) if "%" in line] == ["1 running 50 % render"] * 2

    def test_late_events_are_ignored(self, stage: Stage) -> None:
        task_id = runs(stage)
        run = stage.run("watch")
        finish(stage, task_id)
        says(stage, task_id, 0.5)
        assert not any("%" in line for line in words(run))

    def test_json_prints_the_events(self, stage: Stage) -> None:
        run = stage.run("add", "pintar la casa", "--wait", "--json")
        stage.taskd.move(1, State.RUNNING, attempt=1)
        says(stage, 1, 0.5, "x")
        stage.taskd.log(1, "hello")
        finish(stage, 1)
        events = [line["event"] for line in run.objects if "event" in line]
        assert events == ["task", "task", "progress", "log", "task"]

    def test_garbage(self, stage: Stage) -> None:
        run = stage.run("watch")
        stage.taskd.connections[-1].event({"event": "progress", "task_id": 1, "attempt": 1, "progress": "half"})
        stage.settle()
        assert run.status == 1
        assert "is not a taskd" in run.err


class TestBars:
    def test_a_bar_at_the_foot_until_the_end(self, stage: Stage) -> None:
        run = stage.run("add", "render scene 7", "--wait", tty=True, columns=80, screen=SCREEN)
        stage.taskd.move(1, State.RUNNING, attempt=1, started_at=NOON)
        stage.settle()
        says(stage, 1, 0.25, "walls")
        bar = shown(run)[-1]
        assert bar.split()[:4] == ["1", "render", "scene", "7"]
        assert "25 %" in bar and bar.endswith("walls") and "━━━━━" in bar
        says(stage, 1, 0.5, "roof")
        assert len(shown(run)) == 4 and "50 %" in shown(run)[-1], "in the same place"
        finish(stage, 1)
        assert run.status == 0
        assert [line.split()[2] for line in shown(run)[1:]] == ["queued", "running", "completed"]

    def test_changes_go_above_the_bars(self, stage: Stage) -> None:
        task_id = runs(stage)
        run = stage.run("watch", tty=True, columns=80, screen=SCREEN)
        says(stage, task_id, 0.5)
        stage.taskd.move(stage.taskd.task("new").id, State.RUNNING, attempt=1)
        stage.settle()
        assert [line.split()[-1] for line in shown(run)[-2:-1]] == ["new"]
        assert "50 %" in shown(run)[-1]

    def test_many_changes_are_drawn_at_once(self, stage: Stage) -> None:
        task_id = runs(stage)
        run = stage.run("watch", tty=True, columns=80, screen=SCREEN)
        for n in range(100):
            stage.taskd.progress(task_id, n / 100)
        stage.settle()
        assert "%" not in run.out
        stage.advance(SOON)
        assert run.out.count("%") == 1 and "99 %" in run.out

    def test_it_is_drawn_again_for_the_remaining_time(self, stage: Stage) -> None:
        task_id = runs(stage)
        run = stage.run("watch", tty=True, columns=80, screen=SCREEN)
        for n in range(5):
            says(stage, task_id, n / 10)
            stage.advance(2)
        assert re.search(r"40 % +0:\d\d", shown(run)[-1]) or re.search(r"40 % +00:\d\d", shown(run)[-1])
        before = len(run.out)
        stage.advance(TICK)
        assert len(run.out) > before

    def test_more_bars_than_fit(self, stage: Stage) -> None:
        tasks = [runs(stage, f"task{n}") for n in range(MOST_BARS + 5)]
        run = stage.run("watch", tty=True, columns=80, screen=SCREEN)
        for task_id in tasks:
            says(stage, task_id, 0.5)
        assert shown(run)[-1] == "... and 5 more running"
        assert sum("50 %" in line for line in shown(run)) == MOST_BARS
        for task_id in tasks[:6]:
            finish(stage, task_id)
        assert sum("50 %" in line for line in shown(run)) == MOST_BARS - 1

    @pytest.mark.parametrize("columns", [200, 80, 60, 40, 30])
    def test_no_line_is_wider_than_the_terminal(self, stage: Stage, columns: int) -> None:
        task_id = runs(stage, "日本語 " * 50)
        run = stage.run("watch", tty=True, columns=columns, screen=os.terminal_size((columns, 24)))
        says(stage, task_id, 0.5, "note " * 40)
        assert "50 %" in shown(run, columns)[-1]
        assert len(shown(run, columns)) == 3

    def test_the_terminal_is_made_smaller(self, stage: Stage) -> None:
        task_id = runs(stage, "x" * 100)
        run = stage.run("watch", tty=True, columns=80, screen=SCREEN)
        says(stage, task_id, 0.5)
        stage.screen = os.terminal_size((40, 10))
        says(stage, task_id, 0.75)
        assert "75 %" in shown(run)[-1] and width(shown(run)[-1]) < 40

    def test_a_terminal_without_room_for_bars_has_lines(self, stage: Stage) -> None:
        task_id = runs(stage)
        run = stage.run("watch", tty=True, columns=20, screen=os.terminal_size((20, 24)))
        says(stage, task_id, 0.5)
        assert run.out.splitlines()[-1].startswith("1  running 50 %") and "\x1b" not in run.out

    def test_texts_are_neither_markup_nor_control(self, stage: Stage) -> None:
        task_id = runs(stage, "[red]x[/red] \x1b[2J {task.id}")
        run = stage.run("watch", tty=True, columns=200, screen=os.terminal_size((200, 24)))
        says(stage, task_id, 0.5, "[bold]\x9b1m")
        assert "[red]x[/red] \\x1b[2J {task.id}" in shown(run, 200)[-1]
        assert shown(run, 200)[-1].endswith("[bold]\\x9b1m")
        assert not {"\x1b[2J", "\x9b"} & set(run.out)

    def test_colours_only_where_they_are_wanted(self, stage: Stage) -> None:
        task_id = runs(stage)
        for colour in (True, False):
            run = stage.run("watch", tty=True, columns=80, screen=SCREEN, colour=colour)
            says(stage, task_id, 0.5)
            assert bool(re.search(r"\x1b\[[\d;]*m", run.out)) is colour
            run.cancel()

    def test_after_a_lost_connection_only_running_tasks_have_bars(self, stage: Stage) -> None:
        first, second = runs(stage, "first"), runs(stage, "second")
        run = stage.run("watch", tty=True, columns=80, screen=SCREEN)
        says(stage, first, 0.5)
        says(stage, second, 0.5)
        stage.cut()
        stage.taskd.move(first, State.COMPLETED, finished_at=NOON)
        stage.advance(FIRST_PAUSE)
        says(stage, second, 0.75)
        assert [line.split()[1] for line in shown(run) if " %" in line] == ["second"]

    def test_ctrl_c_leaves_a_clean_terminal(self, stage: Stage) -> None:
        task_id = runs(stage)
        run = stage.run("watch", tty=True, columns=80, screen=SCREEN)
        says(stage, task_id, 0.5)
        run.cancel()
        assert not any("%" in line for line in shown(run))
        assert not any(call.active() for call in stage.clock.getDelayedCalls())

    def test_no_bars_for_programs(self, stage: Stage) -> None:
        task_id = runs(stage)
        run = stage.run("watch", "--json", tty=True, columns=80, screen=SCREEN)
        says(stage, task_id, 0.5)
        assert run.objects[-1]["event"] == "progress"


class TestFoot:
    def test_it_stays_below_what_both_streams_write(self) -> None:
        terminal = Stream(tty=True)
        out = Output(terminal, terminal)
        out.foot(["one", "two"])
        out.note("a note")
        out.line("a line")
        out.foot(["three"])
        out.foot([])
        assert out.tty
        up = "\x1b[2A\r\x1b[J"
        foot = "one\ntwo\n"
        assert terminal.getvalue() == (f"{foot}{up}a note\n{foot}{up}a line\n{foot}{up}three\n\x1b[1A\r\x1b[J")

    def test_no_lines_and_no_terminal(self) -> None:
        stdout = io.StringIO()
        Output(stdout, None).foot([])
        Output(None, None).foot(["x"])
        assert stdout.getvalue() == ""
