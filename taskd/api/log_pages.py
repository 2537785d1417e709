"""Reads pages of a task's log: the first lines after a place, or the last ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

from taskd.ports.logs import LogChunk, LogPlace
from taskd.ports.store import IStore

CHUNKS = 50
"""Chunks of a log to read at a time."""


class LogLine(NamedTuple):
    """One line of a log."""

    place: LogPlace
    at: datetime
    text: str


class Lines(NamedTuple):
    """Consecutive lines of a log. ``cut``: the line just before the first one has been deleted. ``more``: there are
    lines after the last one already."""

    lines: list[LogLine]
    cut: bool
    more: bool


async def read_lines(store: IStore, task_id: int, after: LogPlace | None, limit: int, chars: int) -> Lines:
    """The first lines after a place: up to ``limit``, and about ``chars`` characters. Raises Unavailable."""
    found: list[LogLine] = []
    size, last = 0, after
    while True:
        chunks = await store.read_log(task_id, last, CHUNKS)
        for line in _after_place(last, chunks):
            size += len(line.text)
            if found and (len(found) == limit or size > chars):
                return Lines(found, _is_cut(after, found), True)
            found.append(line)
            last = line.place
        if len(chunks) < CHUNKS:
            return Lines(found, _is_cut(after, found), False)


async def read_tail(store: IStore, task_id: int, after: LogPlace | None, limit: int, chars: int) -> Lines:
    """The last lines after a place: up to ``limit``, and about ``chars`` characters. Raises Unavailable."""
    found: deque[LogLine] = deque()
    size, last, before = 0, after, after
    while True:
        chunks = await store.read_log(task_id, last, CHUNKS)
        for line in _after_place(last, chunks):
            found.append(line)
            size += len(line.text)
            last = line.place
            while len(found) > limit or (size > chars and len(found) > 1):
                first = found.popleft()
                size -= len(first.text)
                before = first.place
        if len(chunks) < CHUNKS:
            return Lines(list(found), _is_cut(before, found), False)


def _after_place(after: LogPlace | None, chunks: Iterable[LogChunk]) -> Iterator[LogLine]:
    for place, at, lines in chunks:
        for number, text in enumerate(lines, place.line):
            here = place._replace(line=number)
            if after is None or here > after:
                yield LogLine(here, at, text)


def _is_cut(before: LogPlace | None, found: deque[LogLine] | list[LogLine]) -> bool:
    if not found:
        return False
    first = found[0].place
    if before is not None and before[:2] == first[:2]:
        return first.line != before.line + 1
    return first.line != 1


def view_lines(lines: Iterable[LogLine]) -> list[dict[str, Any]]:
    """Lines as replies and events show them."""
    return [{"attempt": x.place.attempt, "line": x.place.line, "at": x.at, "text": x.text} for x in lines]
