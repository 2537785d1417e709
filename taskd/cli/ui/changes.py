"""Printing changes of tasks, each version once, and their progress, as lines or as bars."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from msgspec import Struct

from taskd.cli.context import Context
from taskd.cli.ui.rendering import percent
from taskd.client.messages import Received
from taskd.model.states import State
from taskd.protocol.views import TaskView

_T = TypeVar("_T")

REMEMBERED = 10_000
"""The most tasks whose last printed version or progress is remembered."""


LINE_EVERY = 10
"""Per cent between two lines for one task, unless its note changes."""

LEAST_COLUMNS = 30
"""A terminal with fewer cells has no room for a bar."""


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


class ChangePrinter:
    """Prints changes and progress. A reply and an event may bring the same version of a task; it is printed once."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.progress: ProgressView = ProgressLines(ctx)
        if ctx.measure is not None and not ctx.json and ctx.measure().columns >= LEAST_COLUMNS:
            from taskd.cli.ui.bars import Bars  # imports rich, which would slow down every other start

            self.progress = Bars(ctx, ctx.measure)
        self._versions: dict[int, int] = {}
        self._running: dict[int, tuple[int, str]] = {}
        """The first attempt of each task that has not ended, and the task's text."""
        self._newest = 0

    def is_new(self, task: TaskView) -> bool:
        """Whether this version was not known yet; from now on it is."""
        known = self._versions.get(task.id, 0)
        remember(self._versions, task.id, max(known, task.version))
        self._newest = max(self._newest, task.id)
        return task.version > known

    def missed(self, snapshot: Iterable[TaskView]) -> list[TaskView]:
        """The tasks of a later snapshot that may have changed: known ones, and ones that are newer than those.

        The snapshot may be larger than the first one, and then has old tasks too, which have not changed.
        """
        newest = self._newest
        return [task for task in snapshot if task.id in self._versions or task.id > newest]

    def show(self, tasks: Iterable[TaskView]) -> None:
        """Print the versions that are new."""
        ctx, new = self._ctx, [task for task in tasks if self.is_new(task)]
        if new and not ctx.json:
            now = ctx.now()
            ctx.out.lines(ctx.renderer.change(task, now) for task in new)
            self.show_running(new)

    def show_running(self, tasks: Iterable[TaskView]) -> None:
        """Show the progress of those tasks, already printed, that are running."""
        if not self._ctx.json:
            for task in tasks:
                ended = task.state != State.RUNNING
                remember(self._running, task.id, (task.attempt + ended, task.task))
                self.progress.changed(task)

    def show_progress(self, received: Received) -> None:
        """Show a ``progress`` event, unless its attempt has ended."""
        if not self._ctx.json:
            event = self._ctx.read(received.line, ProgressEvent)
            first, text = self._running.get(event.task_id, (0, ""))
            if event.attempt >= first:
                self.progress.advanced(event, text)


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
