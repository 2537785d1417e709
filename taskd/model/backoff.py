"""How long to wait between two attempts of a task."""

from __future__ import annotations

import msgspec


class Backoff(msgspec.Struct, frozen=True):
    """Exponential backoff with jitter: ``first`` seconds, then ``factor`` times as long each time, up to ``longest``.

    Each delay is shortened by a random part of up to ``jitter`` of it, so that tasks that failed together are not tried
    again together (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
    """

    first: float = 2.0
    factor: float = 2.0
    longest: float = 3600.0
    jitter: float = 0.5

    def delay(self, failures: int, chance: float) -> float:
        """Seconds to wait after so many failures (1 or more); ``chance`` is a random number from 0 to 1."""
        exponent = min(max(failures, 1) - 1, 64)
        return min(self.longest, self.first * self.factor**exponent) * (1 - self.jitter * chance)
