"""Counts how many there are of each key, and knows which key has the most."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Crowds(Generic[K]):
    """Every method takes constant time. ``total`` is the sum of all counts."""

    def __init__(self) -> None:
        self.total = 0
        self._counts: dict[K, int] = {}
        self._levels: list[dict[K, None]] = [{}]
        """The keys by their count. The last level is not empty, unless it is the only one."""

    def __len__(self) -> int:
        return len(self._counts)

    def count(self, key: K) -> int:
        """How many there are of this key."""
        return self._counts.get(key, 0)

    def largest(self) -> K:
        """One of the keys with the highest count. There must be one."""
        return next(reversed(self._levels[-1]))

    def add(self, key: K) -> None:
        """One more of this key."""
        count = self._move(key, 1)
        if len(self._levels) <= count:
            self._levels.append({})
        self._levels[count][key] = None

    def remove(self, key: K) -> None:
        """One less of this key. There must be one."""
        count = self._move(key, -1)
        if count:
            self._levels[count][key] = None
        else:
            del self._counts[key]
        if len(self._levels) > 1 and not self._levels[-1]:
            self._levels.pop()

    def _move(self, key: K, step: int) -> int:
        count = self._counts.get(key, 0)
        if count:
            del self._levels[count][key]
        self.total += step
        self._counts[key] = count + step
        return count + step
