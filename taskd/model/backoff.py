"""How long to wait between two attempts of a task."""

from __future__ import annotations

import msgspec


class Backoff(msgspec.Struct, frozen=True):
    """How long to wait between attempts, in seconds: ``first``, then ``factor`` times as long each time up to
    ``longest``; a random part of up to ``jitter`` of it is left out, so that what failed together does not come
    together again (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015)."""

    first: float = 2.0
    factor: float = 2.0
    longest: float = 3600.0
    jitter: float = 0.5

    def delay(self, failures: int, chance: float) -> float:
        """Seconds to wait after so many failures (1 or more); ``chance`` is a random number from 0 to 1."""
        exponent = min(max(failures, 1) - 1, 64)
        return min(self.longest, self.first * self.factor**exponent) * (1 - self.jitter * chance)
