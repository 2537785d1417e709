"""What is remembered of the latest sources, in bounded memory.

Somebody with very many addresses could have the server forget what it knows of one of them, by using others. So what
is evicted stays remembered, but less exactly: many keys share a cell, and each of them counts as the worst of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from itertools import islice
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MAX_SOURCES = 65_536


class Recent(Generic[K, V]):
    """The values of the ``most`` keys that were set last. ``holds`` says whether a value still means anything, and
    ``worst`` joins two values to one that is at least as strict as both. Every method takes constant time."""

    def __init__(self, holds: Callable[[V], bool], worst: Callable[[V, V], V], most: int = MAX_SOURCES) -> None:
        self._holds = holds
        self._worst = worst
        self._most = most
        self._values: OrderedDict[K, V] = OrderedDict()
        self._cleared: OrderedDict[K, None] = OrderedDict()
        """Keys that are known not to be the ones that their cells are about."""
        self._cells: dict[int, V] = {}
        self._number = max(1, most // 4)

    def __len__(self) -> int:
        return len(self._values)

    def own(self, key: K) -> V | None:
        """What was set for this key itself. A new value builds on it. If it built on that of a cell, keys that share a
        cell would drive each other up."""
        value = self._values.get(key)
        return value if value is not None and self._holds(value) else None

    def get(self, key: K) -> V | None:
        """What counts for this key, None if nothing that still means anything."""
        own, shared = self.own(key), self._cells.get(self._cell(key))
        if shared is None or not self._holds(shared) or key in self._cleared:
            return own
        return shared if own is None else self._worst(own, shared)

    def set(self, key: K, value: V) -> None:
        """Remember this value."""
        self._values[key] = value
        self._values.move_to_end(key)
        # the oldest two that mean nothing any more make room for this one and the next
        for oldest, old in tuple(islice(self._values.items(), 2)):
            if self._holds(old):
                break
            del self._values[oldest]
        if len(self._values) > self._most:
            self._evict()

    def clear(self, key: K) -> None:
        """There is nothing against this key."""
        self._values.pop(key, None)
        if self._cell(key) in self._cells:
            self._cleared[key] = None
            self._cleared.move_to_end(key)
            if len(self._cleared) > self._most:
                self._cleared.popitem(last=False)

    def _evict(self) -> None:
        key, value = self._values.popitem(last=False)
        if not self._holds(value):
            return
        # what it is now evicted with is about this very key
        self._cleared.pop(key, None)
        cell = self._cell(key)
        shared = self._cells.get(cell)
        self._cells[cell] = value if shared is None or not self._holds(shared) else self._worst(value, shared)

    def _cell(self, key: K) -> int:
        # Python's hash of texts has a secret key, so nobody can choose addresses that share a cell
        return hash(key) % self._number
