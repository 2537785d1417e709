"""``progress`` events: which of them are current, and how they are printed as lines."""

from __future__ import annotations

from typing import Any, Protocol

from msgspec import Struct

from taskd.cli.context import Context
from taskd.cli.ui.rendering import percent
from taskd.model.states import State
from taskd.protocol.views import TaskView

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


class ProgressView(Protocol):
    """Shows progress. It is called for every task that is watched, also for one without progress."""

    def changed(self, task: TaskView) -> None:
        """The task has changed, and its change has been printed."""

    def advanced(self, event: ProgressEvent) -> None:
        """A task has reported its progress."""

    def reset(self) -> None:
        """Events may have been missed: the running tasks may have ended."""

    def close(self) -> None:
        """No event follows."""


class RunningTasks:
    """The newest known attempt of each task, with the task's text while it is running."""

    def __init__(self) -> None:
        self._attempts: dict[int, tuple[int, str | None]] = {}

    def update(self, task: TaskView) -> bool:
        """Remember the task's state; returns whether it is running."""
        running = task.state == State.RUNNING
        if running or task.attempt:
            self._attempts[task.id] = task.attempt, task.task if running else None
            drop_oldest(self._attempts)
        return running

    def text(self, event: ProgressEvent) -> str | None:
        """The text of the event's task, empty if it is not known; None if the event's attempt has ended."""
        attempt, text = self._attempts.get(event.task_id, (0, ""))
        if event.attempt > attempt:
            return text or ""
        return text if event.attempt == attempt else None


def drop_oldest(known: dict[int, Any]) -> None:
    """Forget the oldest entry when there are more than REMEMBERED."""
    if len(known) > REMEMBERED:
        del known[next(iter(known))]


class ProgressLines:
    """Prints a line when a task has advanced by LINE_EVERY, or has a new note."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._running = RunningTasks()
        self._printed: dict[int, tuple[int, int, str]] = {}

    def changed(self, task: TaskView) -> None:
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
