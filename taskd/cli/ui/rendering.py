"""Tasks as text for people: one line for a change, a table for a list, a block for everything about one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Raw, Struct

from taskd.cli.durations import duration
from taskd.cli.texts.catalogue import Texts
from taskd.cli.ui.table import Cell, Table
from taskd.cli.ui.text import cut, pad, paint, visible, width
from taskd.client.connection import read
from taskd.model.states import SHOWN_STATES

_COLOURS = {
    "Completada": "32",
    "Fallida": "31",
    "Cancelada": "33",
    "completed": "32",
    "failed": "31",
    "cancelled": "33",
    "running": "36",
}
NULL = Raw(b"null")
Moment: TypeAlias = Annotated[datetime, Meta(tz=True)]
LEAST_TEXT = 20
"""The fewest cells for a task's text. On a narrow terminal, tables drop other columns and lines drop their time."""


class FailedAttempt(Struct):
    """The fields of an :class:`~taskd.protocol.views.AttemptView` that the client prints."""

    attempt: int
    worker: str
    ended_at: Moment
    error: str
    started_at: Moment | None = None
    traceback: str | None = None


class ShownTask(Struct):
    """The fields of a :class:`~taskd.protocol.views.TaskView` that the client prints.

    That class itself cannot decode them: msgspec decodes only null into its ``Raw | None``.
    """

    id: int
    task: str
    kind: str
    queue: str
    status: str
    state: str
    attempt: int
    max_attempts: int | None
    version: int
    created_at: Moment
    run_at: Moment
    started_at: Moment | None = None
    finished_at: Moment | None = None
    result: Raw = NULL
    error: str | None = None
    progress: float | None = None
    note: str | None = None
    payload: Raw = NULL
    timeout: float | None = None
    attempts: list[FailedAttempt] = []


_decode_view = msgspec.json.Decoder(ShownTask).decode


def read_view(raw: Raw, server: str) -> ShownTask:
    """Decode a task that the server sent. Raises ConnectionFailed."""
    return read(bytes(raw), _decode_view, server)


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

    def rows(self, tasks: Iterable[ShownTask], now: datetime) -> list[dict[str, Cell]]:
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

    def change(self, task: ShownTask, now: datetime) -> str:
        """The line for a task that has just changed."""
        at = task.finished_at or (task.started_at if task.state == "running" else None) or now
        extra = visible(task.task)
        if task.state == "running" and task.attempt > 1:
            extra += f" ({self.attempt(task.attempt, task.max_attempts)})"
        if task.error:
            extra += f": {visible(task.error)}"
        elif task.result != NULL:
            extra += f": {compact(task.result)}"
        return self._line(at, task.id, task.state, self.state(task.state, task.progress), extra)

    def progress(self, task_id: int, text: str, progress: float, note: str | None, now: datetime) -> str:
        """The line for a task that reports its progress. ``text`` may be empty."""
        extra = ": ".join(visible(part) for part in (text, note) if part)
        return self._line(now, task_id, "running", self.state("running", progress), extra)

    def state(self, state: str, progress: float | None) -> str:
        """The name of a state, with the progress of a running task."""
        name = visible(self._texts.state(state))
        return f"{name} {percent(progress)} %" if state == "running" and progress is not None else name

    def attempt(self, attempt: int, most: int | None) -> str:
        """The number of an attempt, and the maximum if it is known."""
        return self._texts("attempt", n=attempt, max=most) if most else self._texts("attempt_only", n=attempt)

    def _line(self, at: datetime, task_id: int, state: str, shown: str, extra: str) -> str:
        words = [at.astimezone().strftime("%H:%M:%S"), str(task_id)]
        shown = pad(shown, self._state_cells)
        if self.columns is not None:
            if self.columns - sum(width(word) + 2 for word in (*words, shown)) < LEAST_TEXT:
                words, shown = words[1:], shown.rstrip()
            extra = cut(extra, self.columns - sum(width(word) + 2 for word in (*words, shown)))
        return "  ".join([*words, paint(shown, self._colours.get(state)), extra]).rstrip()

    def details(self, task: ShownTask) -> list[str]:
        """Everything about one task, one field a line."""
        t = self._texts
        status = paint(visible(task.status), self._colours.get(task.status))
        attempts = t("show.of", n=task.attempt, max=task.max_attempts) if task.max_attempts else str(task.attempt)
        rows: list[tuple[str, str]] = [
            ("id", str(task.id)),
            ("text", visible(task.task)),
            ("status", f"{status} ({visible(t.state(task.state))})"),
            ("kind", visible(task.kind)),
            ("queue", visible(task.queue)),
            ("attempt", attempts),
            ("created", moment(task.created_at)),
        ]
        if task.state == "running" and task.progress is not None:
            rows.insert(3, ("progress", f"{percent(task.progress)} %  {visible(task.note or '')}".rstrip()))
        if task.state in ("scheduled", "retrying"):
            rows.append(("run_at", moment(task.run_at)))
        rows += [(key, moment(at)) for key, at in (("started", task.started_at), ("finished", task.finished_at)) if at]
        if task.timeout is not None:
            rows.append(("timeout", duration(task.timeout)))
        if task.payload != NULL:
            rows.append(("payload", compact(task.payload)))
        if task.result != NULL:
            rows.append(("result", compact(task.result)))
        if task.error:
            rows.append(("error", visible(task.error)))
        return self._labelled(rows) + [line for failed in task.attempts for line in self._failed(failed)]

    def _failed(self, failed: FailedAttempt) -> list[str]:
        """One failed attempt: when, on which worker, and the traceback."""
        ended = moment(failed.ended_at)
        if failed.started_at:
            ended += f" ({duration(round((failed.ended_at - failed.started_at).total_seconds()))})"
        heading = self._texts("show.attempt_failed", n=failed.attempt)
        rows = [("worker", visible(failed.worker)), ("ended", ended), ("error", visible(failed.error))]
        trace = (failed.traceback or "").expandtabs(4).splitlines()
        return ["", f"{heading}:", *(f"  {line}" for line in [*self._labelled(rows), *map(visible, trace)])]

    def _labelled(self, rows: Sequence[tuple[str, str]]) -> list[str]:
        labels = [self._texts(f"show.{key}") for key, _ in rows]
        room = max(map(width, labels)) + 2
        return [pad(f"{label}:", room) + value for label, (_, value) in zip(labels, rows, strict=True)]


def percent(progress: float) -> int:
    """Whole per cent, rounded down: 100 means complete."""
    return int(max(0.0, min(progress, 1.0)) * 100 + 1e-9)


def moment(at: datetime) -> str:
    """Date and time in the local time zone, with its offset from UTC."""
    return at.astimezone().isoformat(" ", "seconds")


def compact(raw: Raw) -> str:
    """JSON as one visible line."""
    try:
        return visible(msgspec.json.format(bytes(raw), indent=-1).decode(errors="replace"))
    except (msgspec.MsgspecError, RecursionError):
        return visible(bytes(raw).decode(errors="replace"))
