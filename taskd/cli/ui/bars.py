"""Progress bars at the foot of a terminal, one for each running task that says how far it is.

rich lays them out. It does not write: its own live display would bring a thread and a second way to the terminal.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

from rich.console import Console, ConsoleDimensions
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text
from twisted.internet.interfaces import IDelayedCall

from taskd.cli.context import Context
from taskd.cli.ui.progress import ProgressEvent, Running
from taskd.cli.ui.rendering import ShownTask, percent, visible
from taskd.cli.ui.terminal import Screen
from taskd.client.errors import ClientError, OutputClosed

MOST_BARS = 8
"""Bars at a time; those that began first come first."""

SOON = 0.1
"""Seconds in which changes are gathered before the bars are drawn again."""

TICK = 1.0
"""Seconds after which they are drawn again in any case, for the time that is left."""

WIDE = 60
"""Cells from which on there is room for a long bar, the time that is left and the note."""

_NUMBER, _BAR, _BAR_NARROW, _PERCENT, _LEFT = 8, 21, 9, 6, 9
"""Cells of columns, each with the blank behind it."""


class Bars:
    """The bars of one command. ``measure`` tells the size of the terminal, which may change."""

    def __init__(self, ctx: Context, measure: Callable[[], Screen]) -> None:
        self._ctx = ctx
        self._measure = measure
        self._screen = measure()
        self._console = Console(
            file=_Paper(ctx.out.encoding),
            force_terminal=True,
            color_system="standard" if self._screen.colour else None,
            legacy_windows=False,
        )
        self._progress = Progress(console=self._console, auto_refresh=False, get_time=ctx.clock.seconds)
        self._lay_out()
        self._running = Running()
        self._bars: dict[int, TaskID] = {}
        self._timer: IDelayedCall | None = None

    def changed(self, task: ShownTask) -> None:
        """A task that runs may have said already how far it is; one that has ended loses its bar."""
        if not self._running.note(task):
            self._remove(task.id)
        elif task.progress is not None:
            self.said(ProgressEvent(task.id, task.attempt, task.progress, task.note))
        else:
            self._remove(task.id)  # a new attempt

    def said(self, said: ProgressEvent) -> None:
        """Move its bar, or give it one."""
        text = self._running.text(said)
        if text is None:
            return
        bar = self._bars.get(said.task_id)
        if bar is None:
            bar = self._bars[said.task_id] = self._progress.add_task(visible(text), total=1.0, id=said.task_id, note="")
        description = visible(text) if text else None
        self._progress.update(bar, completed=said.progress, note=visible(said.note or ""), description=description)
        self._draw_within(SOON)

    def forget(self) -> None:
        """Take all bars away; what still runs will say so."""
        for task_id in tuple(self._bars):
            self._remove(task_id)

    def close(self) -> None:
        """Leave no bar on the terminal."""
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

    def _lay_out(self) -> None:
        # In the last cell of a line some terminals would begin a new one
        self._console.size = ConsoleDimensions(self._screen.columns - 1, self._screen.rows)
        self._progress.columns = tuple(_columns(self._screen.columns))

    def _draw(self) -> None:
        if (screen := self._measure()) != self._screen:
            self._screen = screen
            self._lay_out()
        shown = self._progress.tasks[: max(1, min(MOST_BARS, screen.rows - 4))]
        lines = []
        if shown:
            with self._console.capture() as captured:
                self._console.print(self._progress.make_tasks_table(shown))
            lines = [line.rstrip() for line in captured.get().splitlines()]
        if len(self._bars) > len(shown):
            lines.append(self._ctx.texts("more_bars", n=len(self._bars) - len(shown)))
        with contextlib.suppress(OutputClosed, ClientError):  # the command will hear of it when it writes itself
            self._ctx.out.foot(lines)
        if self._bars:
            self._draw_within(TICK)


class _Paper(io.StringIO):
    """Where rich draws; it asks for the encoding, to know whether there are lines to draw with."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the terminal."""
        return self._encoding


class _Percent(ProgressColumn):
    """As whole per cent, like everywhere in the client."""

    def render(self, task: Task) -> Text:
        """The text of one cell."""
        return Text(f"{percent(task.completed):>3} %", no_wrap=True)


def _columns(columns: int) -> list[ProgressColumn]:
    """Number, text, bar, per cent, time that is left, note: as many as there is room for."""
    wide = columns >= WIDE
    room = columns - 1 - (_NUMBER + _BAR + _PERCENT + _LEFT if wide else _NUMBER + _BAR_NARROW + _PERCENT)
    note = room * 2 // 5 if wide else 0

    def words(name: str, cells: int) -> TextColumn:
        # What users and handlers wrote is no markup
        return TextColumn(f"{{task.{name}}}", markup=False, table_column=_narrow(cells))

    number = TextColumn("{task.fields[id]}", markup=False, justify="right", table_column=Column(no_wrap=True))
    bar = BarColumn(bar_width=(_BAR if wide else _BAR_NARROW) - 1)
    shown = [number, words("description", max(room - note - 1, 1)), bar, _Percent()]
    return [*shown, TimeRemainingColumn(compact=True), words("fields[note]", note)] if wide else shown


def _narrow(cells: int) -> Column:
    return Column(no_wrap=True, overflow="ellipsis", max_width=cells)
