"""Progress and log lines of running tasks in the store."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec
from zope.interface import Interface


class LogPlace(NamedTuple):
    """A line of a task's log: number ``line`` (from 1) of an attempt. Places sort in the order of writing."""

    dispatch: int
    attempt: int
    line: int


class LogChunk(NamedTuple):
    """Consecutive lines of a log; the first is at ``place``, and ``at`` is when they were stored. Lines that are
    missing between two chunks were cut."""

    place: LogPlace
    at: datetime
    lines: Sequence[str]


class Report(msgspec.Struct, frozen=True):
    """What a running attempt has reported since its last report.

    ``first_line`` is the number of the first of ``lines``, which makes a repetition harmless. With ``keep_from`` above
    1, every line of the task before that line of this attempt is deleted, those of earlier attempts included.
    ``progress`` is from 0 to 1; it and ``note`` are None when they have not changed.
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
        """Store reports of attempts that are queued or running. Returns the ids of the tasks that this worker still
        holds; reports of other tasks are not stored. ``version`` does not change."""

    def read_log(task_id: int, after: LogPlace | None, limit: int) -> Awaitable[Sequence[LogChunk]]:
        """The log of a task after a place (None: from its first line): up to ``limit`` chunks, in order. The first
        chunk may begin at that place or before it."""

    def log_bytes(task_id: int) -> Awaitable[int]:
        """The size of a task's log in bytes of UTF-8."""
