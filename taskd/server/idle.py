"""Closes connections of users who send nothing for a long time, if the operator wants that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

SWEEPS = 2
"""Looks at all connections in one idle time: a connection is closed after at most half of it more."""


class Idler(Protocol):
    """A connection. It sets ``quiet`` to 0 when something comes."""

    quiet: int

    @property
    def busy(self) -> bool:
        """Whether a request waits for its answer."""

    @property
    def logged_in(self) -> bool:
        """Whether the client has logged in. Others have a shorter time."""

    def leave_idle(self) -> None:
        """Close."""


class IdleSweep:
    """Looks at all connections now and then. ``seconds`` is the idle time; with 0 there is no limit."""

    def __init__(self, clock: IReactorTime, seconds: float, connections: Iterable[Idler]) -> None:
        self._clock = clock
        self._interval = seconds / SWEEPS
        self._connections = connections
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        """There is a connection. Does nothing if there was one already."""
        if self._interval and self._timer is None:
            self._timer = self._clock.callLater(self._interval, self._sweep)

    def stop(self) -> None:
        """There is no connection any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        self._timer = self._clock.callLater(self._interval, self._sweep)
        for connection in tuple(self._connections):
            # at the first of these sweeps something may have come shortly before
            connection.quiet += 1
            if connection.quiet > SWEEPS and connection.logged_in and not connection.busy:
                connection.leave_idle()
