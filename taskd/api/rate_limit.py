"""At most so many times in so many seconds, by source."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from taskd.api.recent import MAX_SOURCES, Recent


class RateLimit:
    """A token bucket for each source: it holds ``number`` tokens and fills up within ``seconds``. With ``number`` 0
    there is no limit.

    All that is kept of a source is when its bucket will be full. Source: the virtual scheduling algorithm of ITU-T
    I.371, annex A (GCRA).
    """

    def __init__(self, clock: IReactorTime, number: int, seconds: float, most: int = MAX_SOURCES) -> None:
        self._clock = clock
        self._number = number
        self._interval = seconds / max(number, 1)
        self._full_at: Recent[str, float] = Recent(lambda at: at > clock.seconds(), max, most)

    def wait(self, source: str) -> float:
        """Seconds until the source may take a token, 0 if it may do so now."""
        if not self._number:
            return 0.0
        full_at = self._full_at.get(source)
        if full_at is None:
            return 0.0
        # a tolerance for rounding: a token that is due now is there
        seconds = full_at - self._clock.seconds() - (self._number - 1) * self._interval
        return seconds if seconds > 1e-6 else 0.0

    def take(self, source: str) -> None:
        """Take a token, also if :meth:`wait` says that it should wait."""
        if self._number:
            now = self._clock.seconds()
            self._full_at.set(source, (self._full_at.own(source) or now) + self._interval)

    def give_back(self, source: str) -> None:
        """What a token was taken for does not count."""
        full_at = self._full_at.own(source)
        if full_at is not None:
            self._full_at.set(source, full_at - self._interval)
