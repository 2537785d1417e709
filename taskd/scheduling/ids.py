"""The stock of ids for new tasks. An id is known before the transaction that creates its task, so that a repetition of
that transaction changes nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime

LEAST = 50
"""Ids that the stock has at least after a creation; after a large one it has twice as many as that has used."""

FRESH = 5.0
"""Seconds for which older ids than those of other servers are still given out: lists of tasks are sorted by id, so a
new task must not get a very old one."""


class Ids:
    """Ids that the store has drawn for this server. They are given out in ascending order: later tasks have higher
    ids."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._stock: deque[int] = deque()
        self._drawn_at = clock.seconds()
        self._last = 0
        """The last id that was given out."""
        self._highest_seen = 0

    def missing(self, count: int) -> int:
        """How many of so many ids must be drawn before they can be taken."""
        if self._stock and self._stock[0] < self._highest_seen and self._clock.seconds() - self._drawn_at > FRESH:
            self._stock.clear()
        return max(0, count - len(self._stock))

    def spare(self, count: int) -> int:
        """How many ids a creation that has taken so many should draw for the next one."""
        return max(0, max(LEAST, 2 * count) - len(self._stock))

    def take(self) -> int:
        """The next id."""
        self._last = self._stock.popleft()
        return self._last

    def add(self, ids: Sequence[int]) -> None:
        """The store has drawn these. They are the youngest, unless answers overtake each other; what comes too late is
        never given out."""
        if ids and ids[0] <= self._last:
            ids = [each for each in ids if each > self._last]
        if not ids:
            return
        if self._stock and ids[0] < self._stock[-1]:
            self._stock = deque(sorted({*self._stock, *ids}))
        else:
            self._stock += ids
        self._drawn_at = self._clock.seconds()

    def drawn(self, ids: Sequence[int]) -> None:
        """The store has drawn these after it has drawn all that were given out. If they are not above those, it has
        gone on from an older state, and begins anew."""
        if ids and ids[-1] <= self._last:
            self._stock.clear()
            self._last = 0
        self.add(ids)

    def seen(self, task_id: int) -> None:
        """Another server has given this id to a task."""
        if task_id > self._highest_seen:
            self._highest_seen = task_id
