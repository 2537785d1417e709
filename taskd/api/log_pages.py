"""Reading a task's log: lines behind a place, or the last ones, and the cursors that say where a reader is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

from taskd.ports.logs import LogChunk, LogPlace
from taskd.ports.store import IStore

CHUNKS = 50
"""Chunks of a log that are read at a time."""


class LogLine(NamedTuple):
    """One line of a log."""

    place: LogPlace
    at: datetime
    text: str


class Lines(NamedTuple):
    """Consecutive lines of a log. ``cut`` when what stood just before the first of them is gone, ``more`` when there
    are lines behind the last of them already."""

    lines: list[LogLine]
    cut: bool
    more: bool


async def read_lines(store: IStore, task_id: int, after: LogPlace | None, limit: int, chars: int) -> Lines:
    """The first lines behind a place: up to ``limit``, and about ``chars`` characters. Raises Unavailable."""
    found: list[LogLine] = []
    size, last = 0, after
    while True:
        chunks = await store.read_log(task_id, last, CHUNKS)
        for line in _behind(last, chunks):
            size += len(line.text)
            if found and (len(found) == limit or size > chars):
                return Lines(found, _is_cut(after, found), True)
            found.append(line)
            last = line.place
        if len(chunks) < CHUNKS:
            return Lines(found, _is_cut(after, found), False)


async def read_tail(store: IStore, task_id: int, after: LogPlace | None, limit: int, chars: int) -> Lines:
    """The last lines behind a place: up to ``limit``, and about ``chars`` characters. Raises Unavailable."""
    found: deque[LogLine] = deque()
    size, last, before = 0, after, after
    while True:
        chunks = await store.read_log(task_id, last, CHUNKS)
        for line in _behind(last, chunks):
            found.append(line)
            size += len(line.text)
            last = line.place
            while len(found) > limit or (size > chars and len(found) > 1):
                first = found.popleft()
                size -= len(first.text)
                before = first.place
        if len(chunks) < CHUNKS:
            return Lines(list(found), _is_cut(before, found), False)


def _behind(after: LogPlace | None, chunks: Iterable[LogChunk]) -> Iterator[LogLine]:
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
