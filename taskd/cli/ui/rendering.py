"""Tasks as text for people: escaped, aligned by display cells, coloured where that is wanted."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Raw, Struct

from taskd.cli.durations import duration
from taskd.cli.texts.catalogue import Texts
from taskd.client.connection import read
from taskd.model.states import SHOWN_STATES

JOINERS = "\u200c\u200d"
"""Invisible, but they only shape the letters and emoji beside them."""

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
"""Cells that a table leaves for its last column; a narrow terminal gives up other columns for it."""


class FailedAttempt(Struct):
    """What is shown of an :class:`~taskd.protocol.views.AttemptView`."""

    attempt: int
    worker: str
    ended_at: Moment
    error: str
    started_at: Moment | None = None
    traceback: str | None = None


class ShownTask(Struct):
    """What is shown of a :class:`~taskd.protocol.views.TaskView`.

    Not that class itself: msgspec reads nothing but null into its ``Raw | None``.
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
    """A task as the server sent it. Raises ConnectionTrouble when it is none."""
    return read(bytes(raw), _decode_view, server)


def visible(text: str) -> str:
    """The text with everything that could drive a terminal, or hide, written as an escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in JOINERS or unicodedata.category(c) not in _DRIVING else _escape(c) for c in text)


_DRIVING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _escape(c: str) -> str:
    code = ord(c)
    if c in _SHORT:
        return _SHORT[c]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def width(text: str) -> int:
    """Terminal cells that a visible text takes (Unicode Standard Annex 11)."""
    return len(text) if text.isascii() else sum(map(_cells, text))


def _cells(c: str) -> int:
    if unicodedata.category(c) in ("Mn", "Me") or c in JOINERS or "\u1160" <= c <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1


def cut(text: str, cells: int) -> str:
    """The text, or as much of it as leaves room for an ellipsis in that many cells."""
    if width(text) <= cells:
        return text
    taken, kept = 0, 0
    for c in text:
        taken += _cells(c)
        if taken >= cells:
            break
        kept += 1
    return text[:kept] + "…" if cells > 0 else ""


def pad(text: str, cells: int) -> str:
    """The text with blanks up to that width."""
    return text + " " * max(0, cells - width(text))


def age(since: datetime, now: datetime) -> str:
    """How long ago, in one unit."""
    seconds = max(0, int((now - since).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


class Renderer:
    """Texts for tasks. ``columns`` is the width to cut at, if any; ``colour`` allows ANSI codes."""

    def __init__(self, texts: Texts, columns: int | None, colour: bool) -> None:
        self._texts = texts
        self._columns = columns
        self._colour = colour
        states = [self.state(state, 1.0) for state in SHOWN_STATES]
        self._state_cells = max(map(width, states))

    @property
    def columns(self) -> int | None:
        """The width to cut at."""
        return self._columns

    def paint(self, text: str, word: str) -> str:
        """The text in the colour of a status or state."""
        colour = _COLOURS.get(word) if self._colour else None
        return f"\x1b[{colour}m{text}\x1b[0m" if colour else text

    def table(self, columns: Sequence[str]) -> Table:
        """An empty table of ``id status state kind age text``; the last column takes what room is left."""
        return Table(self, self._texts, self._columns, columns)

    def change(self, task: ShownTask, now: datetime) -> str:
        """One line for a task that has just changed."""
        at = task.finished_at or (task.started_at if task.state == "running" else None) or now
        extra = visible(task.task)
        if task.state == "running" and task.attempt > 1:
            extra += f" ({self.attempt(task.attempt, task.max_attempts)})"
        if task.error:
            extra += f": {visible(task.error)}"
        elif task.result != NULL:
            extra += f": {compact(task.result)}"
        return self._news(at, task.id, task.state, self.state(task.state, task.progress), extra)

    def progress(self, task_id: int, text: str, progress: float, note: str | None, now: datetime) -> str:
        """One line for a task that has got further. ``text`` may be empty."""
        extra = ": ".join(visible(part) for part in (text, note) if part)
        return self._news(now, task_id, "running", self.state("running", progress), extra)

    def state(self, state: str, progress: float | None) -> str:
        """The name of a state; while it runs with how far it is."""
        name = visible(self._texts.state(state))
        return f"{name} {percent(progress)} %" if state == "running" and progress is not None else name

    def attempt(self, attempt: int, most: int | None) -> str:
        """Which attempt it is, and of how many where that is known."""
        return self._texts("attempt", n=attempt, max=most) if most else self._texts("attempt_only", n=attempt)

    def _news(self, at: datetime, task_id: int, state: str, shown: str, extra: str) -> str:
        words = [at.astimezone().strftime("%H:%M:%S"), str(task_id)]
        shown = pad(shown, self._state_cells)
        if self._columns is not None:
            if self._columns - sum(width(word) + 2 for word in (*words, shown)) < LEAST_TEXT:
                words, shown = words[1:], shown.rstrip()
            extra = cut(extra, self._columns - sum(width(word) + 2 for word in (*words, shown)))
        return "  ".join([*words, self.paint(shown, state), extra]).rstrip()

    def details(self, task: ShownTask) -> list[str]:
        """Everything about one task, a line each."""
        t = self._texts
        status = self.paint(visible(task.status), task.status)
        rows: list[tuple[str, str]] = [
            ("id", str(task.id)),
            ("text", visible(task.task)),
            ("status", f"{status} ({visible(t.state(task.state))})"),
            ("kind", visible(task.kind)),
            ("queue", visible(task.queue)),
            (
                "attempt",
                t("show.of", n=task.attempt, max=task.max_attempts) if task.max_attempts else str(task.attempt),
            ),
            ("created", moment(task.created_at)),
        ]
        if task.state == "running" and task.progress is not None:
            said = visible(task.note) if task.note else ""
            rows.insert(3, ("progress", f"{percent(task.progress)} %  {said}".rstrip()))
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
        """An attempt that failed: when, where, and with what traceback."""
        took = (
            f" ({duration(round((failed.ended_at - failed.started_at).total_seconds()))})" if failed.started_at else ""
        )
        heading = self._texts("show.attempt_failed", n=failed.attempt)
        rows = [("worker", visible(failed.worker)), ("ended", moment(failed.ended_at) + took)]
        rows.append(("error", visible(failed.error)))
        trace = (failed.traceback or "").expandtabs(4).splitlines()
        return ["", f"{heading}:", *(f"  {line}" for line in [*self._labelled(rows), *map(visible, trace)])]

    def _labelled(self, rows: Sequence[tuple[str, str]]) -> list[str]:
        labels = [self._texts(f"show.{key}") for key, _ in rows]
        room = max(map(width, labels)) + 2
        return [pad(f"{label}:", room) + value for label, (_, value) in zip(labels, rows, strict=True)]


class Table:
    """Rows aligned under their headings. Later pages keep the widths, so that a long list can flow."""

    def __init__(self, renderer: Renderer, texts: Texts, columns: int | None, names: Sequence[str]) -> None:
        self._renderer = renderer
        self._texts = texts
        self._columns = columns
        self._names = list(names)
        self._widths: dict[str, int] = {}

    def rows(self, tasks: Sequence[ShownTask], now: datetime) -> list[str]:
        """The lines for some tasks; the first time with the headings."""
        cells = [{name: self._cell(name, task, now) for name in self._names} for task in tasks]
        headings = {name: self._texts(f"col.{name}") for name in self._names}
        first = not self._widths
        for row in (headings, *cells):
            for name, cell in row.items():
                self._widths[name] = max(self._widths.get(name, 0), width(cell))
        if first:
            self._fit()
        lines = [self._line(headings, None)] if first else []
        return lines + [self._line(row, task) for row, task in zip(cells, tasks, strict=True)]

    def _fit(self) -> None:
        """Give up columns, the least telling first, until there is room for the last one."""
        for name in ("kind", "age", "state", "status"):
            if self._columns is None or self._room() >= LEAST_TEXT:
                return
            if name in self._names:
                self._names.remove(name)

    def _room(self) -> int:
        assert self._columns is not None
        return self._columns - sum(self._widths[name] + 2 for name in self._names[:-1])

    def _line(self, row: Mapping[str, str], task: ShownTask | None) -> str:
        words = []
        for name in self._names[:-1]:
            room = self._widths[name]
            cell = " " * (room - width(row[name])) + row[name] if name == "id" else pad(row[name], room)
            if task is not None and name in ("status", "state"):
                cell = self._renderer.paint(cell, task.status if name == "status" else task.state)
            words.append(cell)
        last = row[self._names[-1]]
        return "  ".join([*words, last if self._columns is None else cut(last, self._room())])

    def _cell(self, name: str, task: ShownTask, now: datetime) -> str:
        if name == "age":
            return age(task.created_at, now)
        if name == "state":
            return self._renderer.state(task.state, task.progress)
        if name == "text":
            return visible(task.task)
        return visible(str(getattr(task, name)))


def percent(progress: float) -> int:
    """Whole per cent; 100 only for all of it."""
    return int(max(0.0, min(progress, 1.0)) * 100 + 1e-9)


def moment(at: datetime) -> str:
    """A time of day here, with its date and offset from UTC."""
    return at.astimezone().isoformat(" ", "seconds")


def compact(raw: Raw) -> str:
    """JSON as one visible line."""
    try:
        return visible(msgspec.json.format(bytes(raw), indent=-1).decode(errors="replace"))
    except (msgspec.MsgspecError, RecursionError):
        return visible(bytes(raw).decode(errors="replace"))
