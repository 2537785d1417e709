"""Slots: how many tasks of one isolation run at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class SlotPool(Generic[T]):
    """``slots`` tasks at a time. It calls ``start`` with each item that gets a slot, which :meth:`release` gives back;
    the others wait in ``waiting``, in their order. ``ahead`` has what goes before them: while it is not empty,
    ``first`` is called, which may :meth:`take` slots for it."""

    def __init__(
        self, slots: int, start: Callable[[T], None], first: Callable[[], None], ahead: Sequence[object]
    ) -> None:
        self.slots = slots
        self.taken = 0
        self.waiting: deque[T] = deque()
        self._start = start
        self._first = first
        self.ahead = ahead
        self._closed = False

    def add(self, items: Sequence[T]) -> None:
        """Let these wait for a slot."""
        self.waiting.extend(items)
        self.fill()

    def take(self) -> bool:
        """Take a slot if one is free."""
        if self._closed or self.taken >= self.slots:
            return False
        self.taken += 1
        return True

    def release(self) -> None:
        """A slot is free again. Call :meth:`fill` when it may be taken."""
        self.taken -= 1

    def fill(self) -> None:
        """Start what waits, as far as slots are free."""
        if self.ahead:
            self._first()
        while self.waiting and self.take():
            self._start(self.waiting.popleft())

    def close(self) -> list[T]:
        """Start nothing more; returns what was waiting."""
        self._closed = True
        waiting = list(self.waiting)
        self.waiting.clear()
        return waiting
