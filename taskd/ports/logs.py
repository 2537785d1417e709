"""What running tasks report: progress and log lines in the store."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec
from zope.interface import Interface


class LogPlace(NamedTuple):
    """A line of a task's log: the number ``line``, from 1 on, of an attempt. Places sort as the lines were written."""

    dispatch: int
    attempt: int
    line: int


class LogChunk(NamedTuple):
    """Lines of a log, one after the other from ``place`` on. What is missing between two chunks was cut."""

    place: LogPlace
    at: datetime
    lines: Sequence[str]


class Report(msgspec.Struct, frozen=True):
    """What a running attempt has said since its last report.

    ``first_line`` is the number of the first of ``lines``, which makes a repetition harmless. With ``keep_from`` above
    1, everything in the log before that line of this attempt is dropped, earlier attempts included. ``progress`` and
    ``note`` are None when nothing new was said of them.
    """

    task_id: int
    dispatch: int
    attempt: int
    progress: float | None = None
    note: str | None = None
    first_line: int = 1
    lines: Sequence[str] = ()
    keep_from: int = 1


class ILogStore(Interface):
    """Progress and log lines of running tasks."""

    def report(worker: str, reports: Sequence[Report]) -> Awaitable[frozenset[int]]:
        """Store what running attempts have said; the ids of those that are still this worker's. The others' reports
        are not stored. ``version`` does not change."""

    def read_log(task_id: int, after: LogPlace | None, limit: int) -> Awaitable[Sequence[LogChunk]]:
        """The log of a task behind a place, from the first line that there is: up to ``limit`` chunks, in order. The
        first of them may begin before that place or at it."""

    def log_bytes(task_id: int) -> Awaitable[int]:
        """How much of a log there is, in bytes of UTF-8."""
