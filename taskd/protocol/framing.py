"""Bytes to lines, without I/O."""

from __future__ import annotations

from taskd.protocol.limits import MAX_LINE_BYTES


class Framer:
    """Cuts what arrives into lines without their ends (LF or CRLF).

    It keeps no more than one line of ``limit`` bytes, and searches each byte once, in whatever pieces they come.
    """

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._begun = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """The lines that this completes; None for each that is longer than the limit, as soon as that is known."""
        lines: list[bytes | None] = []
        *ends, rest = data.split(b"\n")
        for end in ends:
            if self._begun:
                end = bytes(self._begun + end)
                self._begun.clear()
            if self._skipping:
                self._skipping = False
                continue
            if end.endswith(b"\r"):
                end = end[:-1]
            lines.append(end if len(end) <= self._limit else None)
        if not self._skipping:
            self._begun += rest
            # one more may be the carriage return of a line end
            if len(self._begun) > self._limit + self._begun.endswith(b"\r"):
                self._begun.clear()
                self._skipping = True
                lines.append(None)
        return lines

    def end(self) -> bytes | None:
        """No more will come: the last line, if it had no end."""
        line = bytes(self._begun)
        self._begun.clear()
        return line or None
