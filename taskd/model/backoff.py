"""How long to wait between two attempts of a task."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from taskd.model.limits import MAX_DELAY_SECONDS

Delay = Annotated[float, Meta(ge=0, le=MAX_DELAY_SECONDS)]
"""Seconds."""


class Backoff(Struct, frozen=True, forbid_unknown_fields=True):
    """Exponential backoff with jitter: ``first`` seconds, then ``factor`` times as long each time, up to ``longest``.

    Each delay is shortened by a random part of up to ``jitter`` of it, so that tasks that failed together are not tried
    again together (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
    """

    first: Delay = 2.0
    factor: Annotated[float, Meta(ge=1, le=100)] = 2.0
    longest: Delay = 3600.0
    jitter: Annotated[float, Meta(ge=0, le=1)] = 0.5

    def delay(self, failures: int, chance: float) -> float:
        """Seconds to wait after so many failures (1 or more); ``chance`` is a random number from 0 to 1."""
        exponent = min(max(failures, 1) - 1, 64)
        return min(self.longest, self.first * self.factor**exponent) * (1 - self.jitter * chance)
