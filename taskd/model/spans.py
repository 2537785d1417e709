"""Rough spans of time for people: about 40 seconds, about 3 hours."""

from __future__ import annotations

_UNITS = (("seconds", 1), ("minutes", 60), ("hours", 3600), ("days", 86_400))

_MOST = 90
"""So many of a unit are said before the next larger one is used; of hours, a day and a half."""

_EXACT = 20
"""Larger numbers are rounded to fives."""


def about(seconds: float) -> tuple[int, str]:
    """A rounded number, at least 1, and its unit: ``seconds``, ``minutes``, ``hours`` or ``days``."""
    for unit, size in _UNITS:
        number = max(1, round(seconds / size))
        if number > _EXACT:
            number = 5 * round(number / 5)
        if number < (36 if unit == "hours" else _MOST):
            break
    return number, unit
