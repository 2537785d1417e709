"""What the log says of something that strangers can cause as often as they like: a line at once, then a number once a
minute."""

from __future__ import annotations

from collections import Counter

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

MINUTE = 60.0


class FloodLog:
    """``what`` is what has happened, such as ``closed a connection``."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, what: str) -> None:
        self._clock = clock
        self._what = what
        self._quiet_until = float("-inf")
        self._counts: Counter[str] = Counter()
        self._timer: IDelayedCall | None = None
        self._closed = False

    def note(self, why: str, address: str | None = None, detail: str = "") -> None:
        """It has happened to a client at ``address``. ``why`` is one of a few texts; ``detail`` may be different each
        time."""
        now = self._clock.seconds()
        if self._closed:
            more = ""
        elif now < self._quiet_until or self._timer is not None:
            self._counts[why] += 1
            if self._timer is None:
                self._timer = self._clock.callLater(self._quiet_until - now, self._minute_over)
            return
        else:
            self._quiet_until = now + MINUTE
            more = "; more within a minute are only counted"
        self._log.warn(
            "{what} from {address}: {why}{detail}{more}",
            what=self._what,
            address=address or "this machine",
            why=why,
            detail=detail and f" ({detail})",
            more=more,
        )

    def close(self) -> None:
        """The server stops: say what was not said yet. What happens later is said at once, without a timer."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._minute_over()

    def _minute_over(self) -> None:
        self._timer = None
        self._quiet_until = self._clock.seconds() + MINUTE
        self._tell()

    def _tell(self) -> None:
        counts, self._counts = self._counts, Counter()
        if counts:
            self._log.warn(
                "{what} {count} more times within a minute: {reasons}",
                what=self._what,
                count=counts.total(),
                reasons=", ".join(f"{why}: {count}" for why, count in counts.most_common()),
            )
