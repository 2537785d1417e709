"""Printing changes of tasks, each version once."""

from __future__ import annotations

from collections.abc import Iterable

from taskd.cli.context import Context
from taskd.cli.ui.progress import ProgressEvent, ProgressLines, ProgressView, remember
from taskd.client.messages import Received
from taskd.model.states import State
from taskd.protocol.views import TaskView

LEAST_COLUMNS = 30
"""A terminal with fewer cells has no room for a bar."""


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
