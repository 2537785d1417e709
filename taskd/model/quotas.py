"""How much a user may have: open tasks, tasks a day, bytes."""

from __future__ import annotations

from typing import NamedTuple

MIB = 1024 * 1024

MAX_QUOTA = 10**12
"""The highest limit of open tasks or of tasks a day."""

MAX_QUOTA_MIB = 10**9


class Limits(NamedTuple):
    """Limits in force; 0: no limit. ``open`` counts tasks that have not ended, ``daily`` tasks created in the last 24
    hours, ``bytes`` texts, payloads, results and logs."""

    open: int = 0
    daily: int = 0
    bytes: int = 0


class Quota(NamedTuple):
    """The limits that were set for one user; None: the default of the settings."""

    open: int | None = None
    daily: int | None = None
    bytes: int | None = None

    def limits(self, default: Limits) -> Limits:
        """The limits in force."""
        return Limits(*(given if own is None else own for own, given in zip(self, default, strict=True)))


def text_bytes(text: str | None) -> int:
    """The size of a text in UTF-8, as it counts for a quota."""
    if not text:
        return 0
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
