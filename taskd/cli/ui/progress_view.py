"""How progress is shown: bars on a terminal, else lines."""

from __future__ import annotations

from taskd.cli.context import Context
from taskd.cli.ui.progress import ProgressEvent, ProgressView, RunningTasks, drop_oldest
from taskd.cli.ui.rendering import ShownTask, percent

LINE_EVERY = 10
"""Per cent between two lines for one task, unless its note changes."""

LEAST_COLUMNS = 30
"""A terminal with fewer cells has no room for a bar."""


def progress_view(ctx: Context) -> ProgressView:
    """Bars if the output can have them, else lines."""
    if ctx.screen is None or ctx.json or ctx.screen().columns < LEAST_COLUMNS:
        return ProgressLines(ctx)
    from taskd.cli.ui.bars import Bars  # imports rich, which would slow down every other start

    return Bars(ctx, ctx.screen)


class ProgressLines:
    """Prints a line when a task has advanced by LINE_EVERY, or has a new note."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._running = RunningTasks()
        self._printed: dict[int, tuple[int, int, str]] = {}

    def changed(self, task: ShownTask) -> None:
        """Remember the progress that the line for this change has shown."""
        self._printed.pop(task.id, None)
        if self._running.update(task):
            self._printed[task.id] = _step(task.attempt, task.progress or 0.0, task.note)

    def advanced(self, event: ProgressEvent) -> None:
        """Print a line unless the last one showed the same step and note."""
        text = self._running.text(event)
        step = _step(event.attempt, event.progress, event.note)
        if text is None or self._printed.get(event.task_id, (event.attempt, 0, "")) == step:
            return
        self._printed.pop(event.task_id, None)
        self._printed[event.task_id] = step
        drop_oldest(self._printed)
        ctx = self._ctx
        ctx.out.line(ctx.renderer.progress(event.task_id, text, event.progress, event.note, ctx.now()))

    def reset(self) -> None:
        """Printed lines stay."""

    def close(self) -> None:
        """Nothing to release."""


def _step(attempt: int, progress: float, note: str | None) -> tuple[int, int, str]:
    return attempt, percent(progress) // LINE_EVERY, note or ""
