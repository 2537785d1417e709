"""What a handler gets, and what becomes of what it says. It knows no reactor: the same calls work in any thread."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zope.interface import implementer

from taskd.model.limits import MAX_LINE_CHARS, MAX_NOTE_CHARS
from taskd.model.tasks import Task
from taskd.ports.handler import ITaskContext

if TYPE_CHECKING:
    from taskd.worker.forkserver.client import OutputListener

MAX_UNHEARD_BYTES = 256 * 1024
"""Of lines that a thread has said and the reactor has not heard yet; the oldest are dropped."""

MAX_LOG_CHARS = 256 * 1024
"""Of one call of log(); of a longer text only the end is kept."""

_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean_note(text: object) -> str:
    """A note as it can be stored and shown: one line of at most MAX_NOTE_CHARS."""
    return _storable(_CONTROL.sub(" ", str(text)[:MAX_NOTE_CHARS].replace("\t", " ")))


def clean_fraction(value: Any) -> float:
    """How far it is, clamped to 0..1. Raises TypeError unless it is a number, ValueError for NaN."""
    if isinstance(value, str | bytes | bool) or not hasattr(value, "__float__"):
        raise TypeError(f"progress takes a number from 0 to 1, not {type(value).__name__}")
    fraction = float(value)
    if fraction != fraction:
        raise ValueError("progress takes a number from 0 to 1, not NaN")
    return min(max(fraction, 0.0), 1.0)


def clean_lines(text: object) -> tuple[list[str], int]:
    """The lines of a text as a log keeps them, without control characters but tabs and of at most MAX_LINE_CHARS each,
    and how many lines before these were dropped, as the text was too long."""
    whole, dropped = str(text), 0
    if len(whole) > MAX_LOG_CHARS:
        dropped = whole.count("\n", 0, len(whole) - MAX_LOG_CHARS) or 1
        whole = whole[-MAX_LOG_CHARS:]
    lines = whole.splitlines() or [""]
    return [_storable(_CONTROL.sub("", line[:MAX_LINE_CHARS])) for line in lines], dropped


def _storable(text: str) -> str:
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


class _Heard:
    """Awaiting it takes no time: what was said is said."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


_HEARD = _Heard()


@implementer(ITaskContext)
class TaskContext:
    """One attempt, as its handler sees it. ``said`` is told what the handler says, in the handler's own thread."""

    def __init__(
        self, task: Task, user: str, payload: Mapping[str, Any], max_attempts: int, said: OutputListener
    ) -> None:
        self.id = task.id
        self.attempt = task.attempt
        self.max_attempts = max_attempts
        self.user = user
        self.task = task.task
        self.kind = task.kind
        self.queue = task.queue
        self.payload = payload
        self._said: OutputListener | None = said
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """True once the attempt should end: cancelled, out of time, or the worker stops."""
        return self._cancelled

    def progress(self, fraction: float, note: str = "") -> _Heard:
        """Say how far it is, from 0 to 1, and at what; the note is cut to MAX_NOTE_CHARS. Raises TypeError for what is
        no number, ValueError for NaN."""
        done, said = clean_fraction(fraction), self._said
        if said is not None:
            said.progress(done, clean_note(note))
        return _HEARD

    def log(self, text: str) -> None:
        """Add a line, or several, to the task's log; each is cut to MAX_LINE_CHARS."""
        if (said := self._said) is not None:
            said.lines(*clean_lines(text))

    def cancel(self) -> None:
        """From now on the attempt should end."""
        self._cancelled = True

    def close(self) -> None:
        """The attempt has ended: what is said from now on is ignored."""
        self._cancelled = True
        self._said = None

    def __repr__(self) -> str:
        return f"<task {self.id} ({self.kind}) attempt {self.attempt}>"


class Relay:
    """Takes from one thread to another what a task says, and stays small however much that is.

    ``wake`` has a function called in the hearing thread; at most one such call is under way. Of progress the last
    counts, of lines the newest MAX_UNHEARD_BYTES; those dropped are counted.
    """

    def __init__(self, said: OutputListener, wake: Callable[[Callable[[], None]], None]) -> None:
        self._said = said
        self._wake = wake
        self._lock = threading.Lock()
        self._awake = False
        self._progress: tuple[float, str] | None = None
        self._lines: deque[tuple[str, int]] = deque()
        self._bytes = 0
        self._dropped = 0

    def progress(self, fraction: float, note: str) -> None:
        """Called in the saying thread."""
        with self._lock:
            self._progress = fraction, note
            asleep, self._awake = not self._awake, True
        if asleep:
            self._wake(self.hear)

    def lines(self, lines: Sequence[str], dropped: int) -> None:
        """Called in the saying thread."""
        sized = [(line, len(line.encode()) + 1) for line in lines]
        with self._lock:
            if dropped:
                self._dropped += dropped + len(self._lines)
                self._lines.clear()
                self._bytes = 0
            self._lines.extend(sized)
            self._bytes += sum(size for _, size in sized)
            while self._bytes > MAX_UNHEARD_BYTES:
                self._bytes -= self._lines.popleft()[1]
                self._dropped += 1
            asleep, self._awake = not self._awake, True
        if asleep:
            self._wake(self.hear)

    def hear(self) -> None:
        """Pass on what was said. Called in the hearing thread; at the end of the task once more."""
        with self._lock:
            self._awake = False
            progress, self._progress = self._progress, None
            lines, dropped = [line for line, _ in self._lines], self._dropped
            self._lines.clear()
            self._bytes = self._dropped = 0
        if progress is not None:
            self._said.progress(*progress)
        if lines or dropped:
            self._said.lines(lines, dropped)
