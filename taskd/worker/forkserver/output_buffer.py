"""The output of a task between its pipe and its log: bounded, whatever the task prints."""

from __future__ import annotations

from taskd.model.limits import MAX_LINE_CHARS
from taskd.model.text import clean_line

QUEUE_BYTES = 256 * 1024
"""Of one task's output that waits for the worker. Above it the oldest lines are dropped and counted."""

QUEUE_LINES = 16_384
"""The same in lines, because an empty line costs more than its byte."""

TAIL_BYTES = 16 * 1024
TAIL_LINES = 50

_PARTIAL_BYTES = 4 * MAX_LINE_CHARS
"""Of a line that is not complete: its characters may take so many bytes in UTF-8."""


def decode_line(raw: bytes) -> str:
    """One line as a terminal would show it: without the text that a carriage return overwrites."""
    return clean_line(raw.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace"), MAX_LINE_CHARS)


class OutputBuffer:
    """Collects raw bytes and gives out complete lines. It decodes and cleans only what it gives out: a task that prints
    a gigabyte costs little more than reading it."""

    def __init__(self) -> None:
        self.total = 0
        self._pending = bytearray()
        self._tail = bytearray()
        self._dropped = 0
        self._overlong = False

    def feed(self, data: bytes) -> None:
        """Add output."""
        self.total += len(data)
        self._tail += data
        del self._tail[:-TAIL_BYTES]
        if self._overlong:
            # skip the rest of a line that is long enough
            end = data.find(b"\n")
            if end < 0:
                return
            self._overlong = False
            data = data[end:]
        self._pending += data
        if len(self._pending) > QUEUE_BYTES:
            self._shorten()

    def _shorten(self) -> None:
        pending = self._pending
        end = pending.find(b"\n", len(pending) - QUEUE_BYTES - 1)
        if end < 0:
            end = pending.rfind(b"\n")
        self._dropped += pending.count(b"\n", 0, end + 1)
        del pending[: end + 1]
        if len(pending) > _PARTIAL_BYTES and b"\n" not in pending:
            del pending[_PARTIAL_BYTES:]
            self._overlong = True

    def take(self, *, last: bool = False) -> tuple[list[str], int]:
        """Remove and return the complete lines, with ``last`` the incomplete one as well, and how many were dropped
        before them."""
        end = len(self._pending) if last else self._pending.rfind(b"\n") + 1
        raw = bytes(self._pending[:end])
        del self._pending[:end]
        dropped, self._dropped = self._dropped, 0
        if (excess := raw.count(b"\n") - QUEUE_LINES) > 0:
            dropped += excess
            raw = raw.split(b"\n", excess)[excess]
        return _lines(raw), dropped

    def tail(self) -> list[str]:
        """The last lines of the whole output."""
        lines = _lines(bytes(self._tail))
        if self.total > TAIL_BYTES and len(lines) > 1:
            # the first line is incomplete
            del lines[0]
        return lines[-TAIL_LINES:]


def _lines(raw: bytes) -> list[str]:
    return [decode_line(line) for line in raw.removesuffix(b"\n").split(b"\n")] if raw else []
