"""Tasks as text for people: one line for a change, a table for a list, a block for everything about one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec
from msgspec import Raw, UnsetType

from taskd.cli.durations import duration
from taskd.cli.texts.catalogue import Texts
from taskd.cli.ui.table import Cell, Table
from taskd.cli.ui.text import cut, pad, paint, width
from taskd.model.states import SHOWN_STATES
from taskd.model.visible import visible
from taskd.protocol.views import AttemptView, TaskView

_COLOURS = {
    "Completada": "32",
    "Fallida": "31",
    "Cancelada": "33",
    "completed": "32",
    "failed": "31",
    "cancelled": "33",
    "running": "36",
}
LEAST_TEXT = 20
"""The fewest cells for a task's text. On a narrow terminal, tables drop other columns and lines drop their time."""


def age(since: datetime, now: datetime) -> str:
    """How long ago that was, in one unit."""
    seconds = max(0, int((now - since).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


class Renderer:
    """Turns tasks into lines. ``columns`` is the width to cut at, if any; ``colour`` allows ANSI colours."""

    def __init__(self, texts: Texts, columns: int | None, colour: bool) -> None:
        self._texts = texts
        self.columns = columns
        self.colour = colour
        self._colours = _COLOURS if colour else {}
        self._state_cells = max(width(self.state(state, 1.0)) for state in SHOWN_STATES)

    def table(self, names: Sequence[str]) -> Table:
        """An empty table with some of the columns ``id status state kind age text``."""
        return Table(
            {name: self._texts(f"col.{name}") for name in names},
            self.columns,
            right=("id",),
            expendable=("kind", "age", "state", "status"),
            least=LEAST_TEXT,
        )

    def rows(self, tasks: Iterable[TaskView], now: datetime) -> list[dict[str, Cell]]:
        """The tasks as rows for :meth:`table`."""
        return [
            {
                "id": Cell(str(task.id)),
                "status": Cell(visible(task.status), self._colours.get(task.status)),
                "state": Cell(self.state(task.state, task.progress), self._colours.get(task.state)),
                "kind": Cell(visible(task.kind)),
                "age": Cell(age(task.created_at, now)),
                "text": Cell(visible(task.task)),
            }
            for task in tasks
        ]

    def change(self, task: TaskView, now: datetime) -> str:
        """The line for a task that has just changed."""
        at = task.finished_at or (task.started_at if task.state == "running" else None) or now
        extra = visible(task.task)
        if task.state == "running" and task.attempt > 1:
            extra += f" ({self.attempt(task.attempt, task.max_attempts)})"
        if task.error:
            extra += f": {visible(task.error)}"
        elif result := compact(task.result):
            extra += f": {result}"
        return self._line(at, task.id, task.state, task.progress, extra)

    def progress(self, task_id: int, text: str, progress: float, note: str | None, now: datetime) -> str:
        """The line for a task that reports its progress. ``text`` may be empty."""
        extra = ": ".join(visible(part) for part in (text, note) if part)
        return self._line(now, task_id, "running", progress, extra)

    def state(self, state: str, progress: float | None) -> str:
        """The name of a state, with the progress of a running task."""
        name = self._texts.state(state)
        return f"{name} {percent(progress)} %" if state == "running" and progress is not None else name

    def attempt(self, attempt: int, most: int | None) -> str:
        """The number of an attempt, and the maximum if it is known."""
        return self._texts("attempt" if most else "attempt_only", n=attempt, max=most)

    def times(self, count: int) -> str:
        """How often something has happened."""
        return self._texts("show.once") if count == 1 else self._texts("show.times", n=count)

    def _line(self, at: datetime, task_id: int, state: str, progress: float | None, extra: str) -> str:
        shown = self.state(state, progress)
        words = [at.astimezone().strftime("%H:%M:%S"), str(task_id), pad(shown, self._state_cells)]
        if self.columns is not None:
            if self.columns - _room(words) < LEAST_TEXT:
                words = [str(task_id), shown]
            extra = cut(extra, self.columns - _room(words))
        words[-1] = paint(words[-1], self._colours.get(state))
        return "  ".join([*words, extra]).rstrip()

    def details(self, task: TaskView) -> list[str]:
        """Everything about one task, one field a line."""
        t = self._texts
        attempts = t("show.of", n=task.attempt, max=task.max_attempts) if task.max_attempts else str(task.attempt)
        running = task.state == "running" and task.progress is not None
        due = task.state in ("scheduled", "retrying")
        status = paint(visible(task.status), self._colours.get(task.status))
        return self._labelled(
            ("id", str(task.id)),
            ("text", visible(task.task)),
            ("status", f"{status} ({t.state(task.state)})"),
            ("progress", f"{percent(task.progress or 0)} %  {visible(task.note or '')}".rstrip() if running else ""),
            ("kind", visible(task.kind)),
            ("queue", visible(task.queue)),
            ("attempt", attempts),
            ("losses", self.times(task.losses) if task.losses else ""),
            ("returns", self.times(task.returns) if task.returns else ""),
            ("created", moment(task.created_at)),
            ("run_at", moment(task.run_at) if due else ""),
            ("started", moment(task.started_at) if task.started_at else ""),
            ("finished", moment(task.finished_at) if task.finished_at else ""),
            ("timeout", duration(task.timeout) if task.timeout else ""),
            ("payload", compact(task.payload)),
            ("result", compact(task.result)),
            ("error", visible(task.error or "")),
        ) + [line for failed in task.attempts or () for line in self._failed(failed)]

    def _failed(self, failed: AttemptView) -> list[str]:
        """One failed attempt: when, on which worker, and the traceback."""
        ended = moment(failed.ended_at)
        if failed.started_at:
            ended += f" ({duration(round((failed.ended_at - failed.started_at).total_seconds()))})"
        rows = self._labelled(("worker", visible(failed.worker)), ("ended", ended), ("error", visible(failed.error)))
        trace = map(visible, (failed.traceback or "").expandtabs(4).splitlines())
        heading = self._texts("show.attempt_failed", n=failed.attempt)
        return ["", f"{heading}:", *(f"  {line}" for line in (*rows, *trace))]

    def _labelled(self, *rows: tuple[str, str]) -> list[str]:
        """The rows that have a value, each with the label for its key."""
        labels = {self._texts(f"show.{key}"): value for key, value in rows if value}
        room = max(map(width, labels)) + 2
        return [pad(f"{label}:", room) + value for label, value in labels.items()]


def _room(words: Iterable[str]) -> int:
    """The cells of words with two blanks after each."""
    return sum(width(word) + 2 for word in words)


def percent(progress: float) -> int:
    """Whole per cent, rounded down: 100 means complete."""
    return int(max(0.0, min(progress, 1.0)) * 100 + 1e-9)


def moment(at: datetime) -> str:
    """Date and time in the local time zone, with its offset from UTC."""
    return at.astimezone().isoformat(" ", "seconds")


def compact(raw: Raw | UnsetType | None) -> str:
    """JSON as one visible line, empty for null."""
    if not raw or raw == Raw(b"null"):
        return ""
    text = bytes(raw)
    with contextlib.suppress(msgspec.MsgspecError, RecursionError):
        text = msgspec.json.format(text, indent=-1)
    return visible(text.decode(errors="replace"))
