"""How far running tasks are: as lines for a pipe or a file. A terminal has bars, :mod:`taskd.cli.ui.bars`."""

from __future__ import annotations

from typing import Protocol

import msgspec
from msgspec import Struct

from taskd.cli.context import Context
from taskd.cli.ui.rendering import ShownTask, percent
from taskd.client.connection import Received, read
from taskd.model.states import State

REMEMBERED = 10_000
"""Tasks of which is known what was shown last."""

LINE_EVERY = 10
"""Per cent between two lines of one task, if nothing but the number changes."""


LEAST_COLUMNS = 30
"""Cells of a terminal below which there is no room for a bar."""


class ProgressEvent(Struct):
    """A ``progress`` event."""

    task_id: int
    attempt: int
    progress: float
    note: str | None = None


class Display(Protocol):
    """What shows progress. It hears of every task that is followed, also of one that has none."""

    def changed(self, task: ShownTask) -> None:
        """The task is in another state, which has been shown already."""

    def said(self, said: ProgressEvent) -> None:
        """A running task has got further."""

    def forget(self) -> None:
        """Something may have been missed: what seems to run may have ended."""

    def close(self) -> None:
        """Nothing follows."""


_decode = msgspec.json.Decoder(ProgressEvent).decode


def read_said(received: Received, server: str) -> ProgressEvent:
    """A ``progress`` event as the server sent it. Raises ConnectionTrouble when it is none."""
    return read(received.line, _decode, server)


class Running:
    """The tasks of which it is known that they run, or have run: the last attempt of each, and its text."""

    def __init__(self) -> None:
        self._runs: dict[int, tuple[int, str]] = {}
        self._ended: dict[int, int] = {}

    def note(self, task: ShownTask) -> bool:
        """Hear of a task's state; whether it runs."""
        runs = task.state == State.RUNNING.value
        if runs:
            self._ended.pop(task.id, None)
            self._runs[task.id] = task.attempt, task.task
            _bound(self._runs)
        elif task.attempt:
            self._runs.pop(task.id, None)
            self._ended[task.id] = task.attempt
            _bound(self._ended)
        return runs

    def text(self, said: ProgressEvent) -> str | None:
        """The text of the task that has said so, empty if unknown; None when it was said by an attempt that is over."""
        if said.attempt <= self._ended.get(said.task_id, 0):
            return None
        attempt, text = self._runs.get(said.task_id, (0, ""))
        return None if said.attempt < attempt else text


def _bound(known: dict[int, tuple[int, str]] | dict[int, int]) -> None:
    if len(known) > REMEMBERED:
        del known[next(iter(known))]


class ProgressLines:
    """A line whenever a task has got another tenth of its way, or says something new."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._running = Running()
        self._shown: dict[int, tuple[int, int, str]] = {}

    def changed(self, task: ShownTask) -> None:
        """Remember what its line said already."""
        self._shown.pop(task.id, None)
        if self._running.note(task):
            self._shown[task.id] = _step(task.attempt, task.progress or 0.0, task.note)

    def said(self, said: ProgressEvent) -> None:
        """Print a line if it says enough."""
        text = self._running.text(said)
        step = _step(said.attempt, said.progress, said.note)
        if text is None or self._shown.get(said.task_id, (said.attempt, 0, "")) == step:
            return
        self._shown.pop(said.task_id, None)
        self._shown[said.task_id] = step
        if len(self._shown) > REMEMBERED:
            del self._shown[next(iter(self._shown))]
        ctx = self._ctx
        ctx.out.line(ctx.renderer.progress(said.task_id, text, said.progress, said.note, ctx.now()))

    def forget(self) -> None:
        """Lines that were printed stay true."""

    def close(self) -> None:
        """Nothing to put away."""


def _step(attempt: int, progress: float, note: str | None) -> tuple[int, int, str]:
    return attempt, percent(progress) // LINE_EVERY, note or ""


def display(ctx: Context) -> Display:
    """Bars where the output can have them, else lines."""
    if ctx.screen is None or ctx.json or ctx.screen().columns < LEAST_COLUMNS:
        return ProgressLines(ctx)
    from taskd.cli.ui.bars import Bars

    return Bars(ctx, ctx.screen)
