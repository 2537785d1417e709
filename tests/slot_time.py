"""What users had of the slots, and how equal that is. For the fairness of real processes (bench) and of games."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """A task of a user held a slot from ``began`` to ``ended``, in seconds."""

    user: int
    began: float
    ended: float


def slot_seconds(spans: Iterable[Span], since: float, until: float) -> dict[int, float]:
    """What each user had of the slots in a period."""
    found: dict[int, float] = {}
    for span in spans:
        part = min(span.ended, until) - max(span.began, since)
        if part > 0:
            found[span.user] = found.get(span.user, 0.0) + part
    return found


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness: 1 if all values are equal, 1 / n if one has everything. Source: Jain, Chiu, Hawe, "A
    quantitative measure of fairness", 1984."""
    squares = sum(v * v for v in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 0.0
