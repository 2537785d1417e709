"""The argument of a handler, and the rules for the progress and the log lines that it reports. It uses no reactor: the
same calls work in every thread, and child processes import it."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Protocol

from zope.interface import implementer

from taskd.model.limits import MAX_LINE_CHARS, MAX_NOTE_CHARS
from taskd.model.text import clean_line
from taskd.ports.handler import ITaskContext

MAX_LOG_CHARS = 256 * 1024
"""Of one call of log(). Only the end of a longer text is kept."""

HIDDEN_IN_TRACEBACKS = True


class OutputListener(Protocol):
    """Receives the output of a running task: its progress and its log lines."""

    def progress(self, fraction: float, note: str) -> None:
        """How far the task is, from 0 to 1, and what it is doing."""

    def lines(self, lines: Sequence[str], dropped: int) -> None:
        """Lines for the task's log. ``dropped`` lines before these were lost."""


class NoWait:
    """A no-op awaitable: progress() is synchronous."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


NO_WAIT = NoWait()


def clean_fraction(value: Any) -> float:
    """A progress, clamped to 0..1. Raises TypeError if it is not a number, ValueError for NaN."""
    if isinstance(value, str | bytes | bool) or not hasattr(value, "__float__"):
        raise TypeError(f"progress takes a number from 0 to 1, not {type(value).__name__}")
    fraction = float(value)
    if fraction != fraction:
        raise ValueError("progress takes a number from 0 to 1, not NaN")
    return min(max(fraction, 0.0), 1.0)


def clean_lines(text: object) -> tuple[list[str], int]:
    """The lines of a text as a log keeps them, each of at most MAX_LINE_CHARS, and the number of lines that were
    dropped before them because the text exceeds MAX_LOG_CHARS."""
    whole, dropped = str(text), 0
    if len(whole) > MAX_LOG_CHARS:
        dropped = whole.count("\n", 0, len(whole) - MAX_LOG_CHARS) or 1
        whole = whole[-MAX_LOG_CHARS:]
    return [clean_line(line, MAX_LINE_CHARS) for line in whole.splitlines() or [""]], dropped


@implementer(ITaskContext)
class TaskContext:
    """One attempt, as its handler sees it. ``attributes`` are those of ITaskContext, except ``cancelled``. ``listener``
    is called in the thread of the handler."""

    id: int
    attempt: int
    max_attempts: int
    user: str
    task: str
    kind: str
    queue: str
    payload: Mapping[str, Any]

    def __init__(self, attributes: Mapping[str, Any], listener: OutputListener) -> None:
        self.__dict__.update(attributes)
        self._listener: OutputListener | None = listener
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """True as soon as the attempt should end: it was cancelled, it is out of time, or the worker stops."""
        return self._cancelled

    def progress(self, fraction: float, note: str = "") -> NoWait:
        """Report how far the task is, from 0 to 1, and what it is doing. The note is cut to MAX_NOTE_CHARS. Raises
        TypeError if the fraction is not a number, ValueError for NaN."""
        fraction, listener = clean_fraction(fraction), self._listener
        if listener is not None:
            line = str(note)[:MAX_NOTE_CHARS].replace("\t", " ")
            listener.progress(fraction, clean_line(line, MAX_NOTE_CHARS, " "))
        return NO_WAIT

    def log(self, text: str) -> None:
        """Add one or more lines to the task's log. Each is cut to MAX_LINE_CHARS."""
        if (listener := self._listener) is not None:
            listener.lines(*clean_lines(text))

    def cancel(self) -> None:
        """The attempt should end."""
        self._cancelled = True

    def close(self) -> None:
        """The attempt has its outcome: ignore all further output."""
        self._cancelled = True
        self._listener = None

    def __repr__(self) -> str:
        return f"<task {self.id} ({self.kind}) attempt {self.attempt}>"
