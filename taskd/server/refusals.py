"""What the log says of connections that the server refuses or closes: a line at once, then a number once a minute."""

from __future__ import annotations

from collections import Counter

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

MINUTE = 60.0


class RefusalLog:
    """A flood of refusals must not become a flood of log lines."""

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self._timer: IDelayedCall | None = None

    def note(self, why: str, address: str | None = None, detail: str = "") -> None:
        """A connection from ``address`` was refused or closed. ``why`` is one of a few texts; ``detail`` may be
        different each time."""
        if self._timer is not None:
            self._counts[why] += 1
            return
        self._timer = self._clock.callLater(MINUTE, self._minute_over)
        self._log.warn(
            "closed a connection from {address}: {why}{detail}; more within a minute are only counted",
            address=address or "this machine",
            why=why,
            detail=detail and f" ({detail})",
        )

    def close(self) -> None:
        """The server stops: say what was not said yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._tell()

    def _minute_over(self) -> None:
        self._timer = None
        if self._counts:
            self._timer = self._clock.callLater(MINUTE, self._minute_over)
            self._tell()

    def _tell(self) -> None:
        counts, self._counts = self._counts, Counter()
        if counts:
            self._log.warn(
                "closed {count} more connections within a minute: {reasons}",
                count=counts.total(),
                reasons=", ".join(f"{why}: {count}" for why, count in counts.most_common()),
            )
