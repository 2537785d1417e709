"""What both databases know of the audit."""

from __future__ import annotations

from msgspec.structs import replace

from taskd.ports.accounts import GUESSED, NO_GUESS, Entry
from taskd.store.refusals import sanitize

ENTRY = ", ".join(Entry.__struct_fields__)
"""The columns of an entry."""


def _texts(texts: tuple[str, ...]) -> str:
    return ", ".join(f"'{text}'" for text in texts)


WRONG_GUESS = f"outcome <> 'ok' AND action IN ({_texts(GUESSED)}) AND outcome NOT IN ({_texts(NO_GUESS)})"
"""The condition for a row of the audit. Its first part is that of the index."""

SWEPT = 5000
"""Rows of each table that one sweep deletes."""

TOUCH_SECONDS = 3600.0
"""How exact the last use of a session is. A login ends after some days without use, so this is exact enough, and a
request almost never writes."""


def touch_after(idle: float) -> float:
    """After how many seconds the use of a session is noted again, if logins end after ``idle`` seconds without use."""
    return min(TOUCH_SECONDS, idle / 10)


def storable(entry: Entry) -> Entry:
    """The entry with texts that a database takes: names may come from a request that was refused."""
    return replace(
        entry,
        actor=sanitize(entry.actor),
        subject=sanitize(entry.subject),
        address=None if entry.address is None else sanitize(entry.address),
        details=None if entry.details is None else sanitize(entry.details),
    )
