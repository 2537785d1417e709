"""Bytes to lines, without I/O."""

from __future__ import annotations

from taskd.protocol.limits import MAX_LINE_BYTES


class Framer:
    """Cuts received bytes into lines without their ends (LF or CRLF).

    It keeps at most one line of ``limit`` bytes, and searches each byte once, however the bytes are split.
    """

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._partial = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """The lines that these bytes complete; None for each line longer than the limit, as soon as it is too long."""
        lines: list[bytes | None] = []
        *ends, rest = data.split(b"\n")
        for end in ends:
            if self._partial:
                end = bytes(self._partial + end)
                self._partial.clear()
            if self._skipping:
                self._skipping = False
                continue
            if end.endswith(b"\r"):
                end = end[:-1]
            lines.append(end if len(end) <= self._limit else None)
        if not self._skipping:
            self._partial += rest
            # one byte more is allowed: the carriage return of a line end
            if len(self._partial) > self._limit + self._partial.endswith(b"\r"):
                self._partial.clear()
                self._skipping = True
                lines.append(None)
        return lines

    def end(self) -> bytes | None:
        """The end of the stream: the last line, if it has no line end."""
        line = bytes(self._partial)
        self._partial.clear()
        return line or None
