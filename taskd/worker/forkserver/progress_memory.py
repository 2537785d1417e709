"""A page of memory that a child and the fork server share, for the newest progress of the child's task."""

from __future__ import annotations

import mmap
import struct
import zlib

import msgspec

_BYTES = 4096
_HEADER = struct.Struct("=II")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[int, float, str]).decode


class ProgressMemory:
    """The child writes, the fork server reads when it has time: a handler may report as often as it likes."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, _BYTES)

    def write(self, job: int, fraction: float, note: str) -> None:
        """Replace the progress. A checksum shows the reader a half-written one."""
        data = _encode((job, fraction, note))
        self._page[: _HEADER.size + len(data)] = _HEADER.pack(len(data), zlib.crc32(data)) + data

    def read(self, job: int) -> tuple[float, str] | None:
        """The newest progress of this job. None if there is none, or if it is half-written."""
        length, checksum = _HEADER.unpack_from(self._page)
        data = self._page[_HEADER.size : _HEADER.size + length]
        if not length or zlib.crc32(data) != checksum:
            return None
        try:
            of, fraction, note = _decode(data)
        except msgspec.DecodeError:
            return None
        return (fraction, note) if of == job else None
