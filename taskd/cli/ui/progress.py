"""``progress`` events, and how they are printed as lines."""

from __future__ import annotations

from typing import TypeVar

from msgspec import Struct

from taskd.cli.context import Context
from taskd.cli.ui.rendering import percent
from taskd.model.states import State
from taskd.protocol.views import TaskView

_T = TypeVar("_T")

REMEMBERED = 10_000
"""The most tasks whose last printed version or progress is remembered."""


LINE_EVERY = 10
"""Per cent between two lines for one task, unless its note changes."""


class ProgressEvent(Struct):
    """A ``progress`` event. ``progress`` is from 0 to 1."""

    task_id: int
    attempt: int
    progress: float
    note: str | None = None


class ProgressView:
    """Shows progress. It is called for every task that is watched, also for one without progress."""

    def changed(self, task: TaskView) -> None:
        """The task has changed, and its change has been printed."""

    def advanced(self, event: ProgressEvent, text: str) -> None:
        """A task has reported its progress. ``text`` is the task's text, empty if it is not known."""

    def reset(self) -> None:
        """Events may have been missed: the running tasks may have ended."""

    def close(self) -> None:
        """No event follows."""


def remember(known: dict[int, _T], task_id: int, value: _T) -> None:
    """Remember something about a task. Forget the oldest entry when there are more than REMEMBERED."""
    known.pop(task_id, None)
    known[task_id] = value
    if len(known) > REMEMBERED:
        del known[next(iter(known))]


class ProgressLines(ProgressView):
    """Prints a line when a task has advanced by LINE_EVERY, or has a new note."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._printed: dict[int, tuple[int, int, str]] = {}

    def changed(self, task: TaskView) -> None:
        """Remember the progress that the line for this change has shown."""
        self._printed.pop(task.id, None)
        if task.state == State.RUNNING:
            remember(self._printed, task.id, _step(task.attempt, task.progress or 0.0, task.note))

    def advanced(self, event: ProgressEvent, text: str) -> None:
        """Print a line unless the last one showed the same step and note."""
        step = _step(event.attempt, event.progress, event.note)
        if self._printed.get(event.task_id, (event.attempt, 0, "")) != step:
            remember(self._printed, event.task_id, step)
            ctx = self._ctx
            ctx.out.line(ctx.renderer.progress(event.task_id, text, event.progress, event.note, ctx.now()))


def _step(attempt: int, progress: float, note: str | None) -> tuple[int, int, str]:
    return attempt, percent(progress) // LINE_EVERY, note or ""
