"""Lengths of time and moments as people write them: ``1h30m``, ``2026-12-01 08:00``."""

from __future__ import annotations

import re
from datetime import datetime

_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_PLAIN = re.compile(_NUMBER)
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_PARTS = re.compile("".join(rf"(?:{_NUMBER}{unit} ?)?" for unit in _UNITS))
# The interpreter's own reader takes more, and each version of it something else
_MOMENT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[ T]([0-9]{2}:[0-9]{2}(?::[0-9]{2})?))?(?: ?(Z|[+-][0-9]{2}(?::?[0-9]{2})?))?"
)


def seconds_in(text: str) -> float:
    """The seconds in ``90``, ``90s``, ``1h30m``, ``1.5h`` or ``2d``; infinite where the number is past all bounds.

    Raises ValueError for anything else.
    """
    text = text.strip().lower()
    if _PLAIN.fullmatch(text):
        return float(text)
    found = _PARTS.fullmatch(text)
    if not text or found is None:
        raise ValueError(text)
    return sum(float(number) * size for number, size in zip(found.groups(), _UNITS.values(), strict=True) if number)


def moment_in(text: str) -> datetime:
    """The aware time of ``2026-12-01 08:00``, in the local zone unless it names an offset; a date alone begins its day.

    Raises ValueError for anything else, and for a time that does not exist.
    """
    found = _MOMENT.fullmatch(text.strip().upper())
    if found is None:
        raise ValueError(text)
    day, time, zone = found.groups()
    if zone == "Z":
        zone = "+00:00"
    elif zone:
        digits = zone[1:].replace(":", "").ljust(4, "0")
        zone = f"{zone[0]}{digits[:2]}:{digits[2:]}"
    try:
        at = datetime.fromisoformat(f"{day}T{time or '00:00'}{zone or ''}")
        return at if zone else at.astimezone()
    except (OverflowError, OSError):  # a year that the system's clock does not know
        raise ValueError(text) from None


def duration(seconds: float) -> str:
    """The shortest of these forms for so many seconds: ``1h30m``, ``0.5s``."""
    whole = int(seconds)
    if whole != seconds or not whole:
        return f"{seconds:g}s"
    parts = []
    for unit, size in _UNITS.items():
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)
