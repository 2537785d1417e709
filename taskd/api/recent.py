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
        self._values: OrderedDict[K, V | None] = OrderedDict()
        self._cells: dict[int, V] = {}
        self._number = max(1, most // 4)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        """The value of the key, None if nothing is remembered that still means anything."""
        value = self._values[key] if key in self._values else self._cells.get(self._cell(key))
        return value if value is not None and self._holds(value) else None

    def set(self, key: K, value: V | None) -> None:
        """Remember this value. None: there is nothing against this key."""
        self._values.pop(key, None)
        if value is None and self._cell(key) not in self._cells:
            return
        self._values[key] = value
        # the oldest two that mean nothing any more make room for this one and the next
        for oldest, old in tuple(islice(self._values.items(), 2)):
            if old is None or self._holds(old):
                break
            del self._values[oldest]
        if len(self._values) > self._most:
            self._evict()

    def _evict(self) -> None:
        key, value = self._values.popitem(last=False)
        if value is None or not self._holds(value):
            return
        cell = self._cell(key)
        shared = self._cells.get(cell)
        self._cells[cell] = value if shared is None or not self._holds(shared) else self._worst(value, shared)

    def _cell(self, key: K) -> int:
        # Python's hash of texts has a secret key, so nobody can choose addresses that share a cell
        return hash(key) % self._number
