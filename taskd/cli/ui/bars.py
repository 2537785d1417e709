"""Progress bars at the foot of a terminal, one for each running task that reports its progress.

rich draws them into a string. Its own live display would need a thread and would write to the terminal beside us.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable

from rich.console import Console, ConsoleDimensions
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from twisted.internet.interfaces import IDelayedCall

from taskd.cli.context import Context
from taskd.cli.errors import OutputClosed
from taskd.cli.ui.progress import ProgressEvent, ProgressView
from taskd.cli.ui.rendering import percent
from taskd.client.errors import ClientError
from taskd.model.states import State
from taskd.model.visible import visible
from taskd.protocol.views import TaskView

MOST_BARS = 8
"""The most bars at a time: those of the tasks that reported first."""

SOON = 0.1
"""Seconds from a change to the next drawing, which shows all changes until then."""

TICK = 1.0
"""Seconds between two drawings without a change, because the remaining time changes."""

WIDE = 60
"""A terminal of at least so many cells has room for a long bar, the remaining time and the note."""

_NUMBER, _BAR, _BAR_NARROW, _PERCENT, _LEFT = 8, 21, 9, 6, 9
"""The cells of each column, with the blank after it."""


class Bars(ProgressView):
    """The bars of one command. ``measure`` returns the current size of the terminal."""

    def __init__(self, ctx: Context, measure: Callable[[], os.terminal_size]) -> None:
        self._ctx = ctx
        self._measure = measure
        self._console = Console(
            # Nothing is written to it, but its encoding tells rich whether it may use line-drawing characters
            file=io.TextIOWrapper(io.BytesIO(), ctx.out.encoding),
            force_terminal=True,
            color_system="standard" if ctx.renderer.colour else None,
            legacy_windows=False,
        )
        self._progress = Progress(console=self._console, auto_refresh=False, get_time=ctx.clock.seconds)
        self._bars: dict[int, TaskID] = {}
        self._timer: IDelayedCall | None = None

    def changed(self, task: TaskView) -> None:
        """Show the progress of a running task, and remove the bar of any other."""
        if task.state != State.RUNNING or task.progress is None:  # it has ended, or a new attempt begins
            self._remove(task.id)
        else:
            self.advanced(ProgressEvent(task.id, task.attempt, task.progress, task.note), task.task)

    def advanced(self, event: ProgressEvent, text: str) -> None:
        """Move the task's bar, or add one."""
        if event.task_id not in self._bars:
            self._bars[event.task_id] = self._progress.add_task("", total=1.0, id=event.task_id)
        self._progress.update(
            self._bars[event.task_id],
            completed=event.progress,
            description=visible(text) if text else None,
            note=visible(event.note or ""),
            percent=f"{percent(event.progress):>3} %",
        )
        self._draw_within(SOON)

    def reset(self) -> None:
        """Remove all bars. Tasks that are still running will report again."""
        for task_id in tuple(self._bars):
            self._remove(task_id)

    def close(self) -> None:
        """Erase the bars."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._ctx.out.foot(())

    def _remove(self, task_id: int) -> None:
        bar = self._bars.pop(task_id, None)
        if bar is not None:
            self._progress.remove_task(bar)
            self._draw_within(SOON)

    def _draw_within(self, seconds: float) -> None:
        clock = self._ctx.clock
        if self._timer is None or not self._timer.active():
            self._timer = clock.callLater(seconds, self._draw)
        elif self._timer.getTime() > clock.seconds() + seconds:
            self._timer.reset(seconds)

    def _draw(self) -> None:
        screen = self._measure()
        # Some terminals begin a new line after the last cell
        self._console.size = ConsoleDimensions(screen.columns - 1, screen.lines)
        self._progress.columns = tuple(_columns(screen.columns))
        shown = self._progress.tasks[: max(1, min(MOST_BARS, screen.lines - 4))]
        lines = []
        if shown:
            with self._console.capture() as captured:
                self._console.print(self._progress.make_tasks_table(shown))
            lines = [line.rstrip() for line in captured.get().splitlines()]
        if len(self._bars) > len(shown):
            lines.append(self._ctx.texts("more_bars", n=len(self._bars) - len(shown)))
        with contextlib.suppress(OutputClosed, ClientError):  # the next write of the command raises it again
            self._ctx.out.foot(lines)
        if self._bars:
            self._draw_within(TICK)


def _columns(columns: int) -> list[ProgressColumn]:
    """Number, text, bar, per cent, remaining time, note: as many as fit."""
    wide = columns >= WIDE
    room = columns - 1 - (_NUMBER + _BAR + _PERCENT + _LEFT if wide else _NUMBER + _BAR_NARROW + _PERCENT)
    note = room * 2 // 5 if wide else 0

    def text(name: str, cells: int | None = None) -> TextColumn:
        # Texts of users and notes of handlers are not markup
        column = Column(no_wrap=True, overflow="ellipsis", max_width=cells)
        return TextColumn(f"{{task.{name}}}", markup=False, justify="left" if cells else "right", table_column=column)

    bar = BarColumn(bar_width=(_BAR if wide else _BAR_NARROW) - 1)
    shown = [text("fields[id]"), text("description", max(room - note - 1, 1)), bar, text("fields[percent]")]
    return [*shown, TimeRemainingColumn(compact=True), text("fields[note]", note)] if wide else shown
