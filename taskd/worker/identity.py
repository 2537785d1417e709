"""The name under which the worker holds its tasks, and until when it may begin any."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

ALIVE_SECONDS = 2.5
"""A task begins only if a beat that was sent no longer ago than this was accepted. Servers take a worker for dead no
earlier than three of their polls later."""


class Identity:
    """The worker's present name. ``new_name`` makes names that nobody has or had: a name that was fenced never counts
    again, so the worker goes on under another one."""

    def __init__(self, clock: IReactorTime, new_name: Callable[[], str]) -> None:
        self._clock = clock
        self._new_name = new_name
        self._alive_until = float("-inf")
        self.name = new_name()

    @property
    def is_alive(self) -> bool:
        """Whether the store counts this name as alive, as far as the worker knows."""
        return self._clock.seconds() < self._alive_until

    def heard(self, sent: float) -> None:
        """The store has accepted a beat that was sent at this time of the clock."""
        self._alive_until = sent + ALIVE_SECONDS

    def rename(self) -> None:
        """Take a new name."""
        self.name = self._new_name()
        self._alive_until = float("-inf")
