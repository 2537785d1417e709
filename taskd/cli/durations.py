"""Numbers, durations and times as people write them: ``7``, ``1h30m``, ``2026-12-01 08:00``."""

from __future__ import annotations

import re
from datetime import datetime

_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_PLAIN = re.compile(_NUMBER)
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_PARTS = re.compile("".join(rf"(?:{_NUMBER}{unit} ?)?" for unit in _UNITS))
# datetime.fromisoformat accepts more, and different forms in different versions of Python
_MOMENT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[ T]([0-9]{2}:[0-9]{2}(?::[0-9]{2})?))?(?: ?(Z|([+-][0-9]{2})(?::?([0-9]{2}))?))?"
)


def seconds_in(text: str) -> float:
    """The seconds in ``90``, ``90s``, ``1h30m``, ``1.5h`` or ``2d``; infinite if the number is too large for a float.

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
    """The aware time of ``2026-12-01 08:00``, in the local zone unless it has an offset. A date alone means midnight.

    Raises ValueError for anything else, and for a time that does not exist.
    """
    found = _MOMENT.fullmatch(text.strip().upper())
    if found is None:
        raise ValueError(text)
    day, time, zone, hours, minutes = found.groups()
    offset = f"{hours or '+00'}:{minutes or '00'}" if zone else ""
    try:
        at = datetime.fromisoformat(f"{day}T{time or '00:00'}{offset}")
        return at if zone else at.astimezone()
    except (OverflowError, OSError):  # the system cannot convert this year
        raise ValueError(text) from None


def number_in(text: str) -> int:
    """The whole number of 1 or more that the text is. Raises ValueError for anything else."""
    if text.isascii() and text.isdecimal() and len(text) < 20 and 1 <= int(text) < 2**63:
        return int(text)
    raise ValueError(text)


def duration(seconds: float) -> str:
    """A number of seconds in the shortest form that :func:`seconds_in` reads: ``1h30m``, ``0.5s``."""
    whole = int(seconds)
    if whole != seconds or not whole:
        return f"{seconds:g}s"
    parts = []
    for unit, size in _UNITS.items():
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)
