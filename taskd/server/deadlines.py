"""One time limit for many connections, with one timer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Calls ``expire`` with each item that stays for ``seconds``.

    All items get the same time, so the one that was added first is due first. The timer is set for that one. To add
    and to discard an item costs no more with ten thousand others.
    """

    def __init__(self, clock: IReactorTime, seconds: float, expire: Callable[[T], None]) -> None:
        self._clock = clock
        self._seconds = seconds
        self._expire = expire
        self._due: dict[T, float] = {}
        self._timer: IDelayedCall | None = None

    def add(self, item: T) -> None:
        """Give the item its time. It must not be there already."""
        self._due[item] = self._clock.seconds() + self._seconds
        if self._timer is None:
            self._timer = self._clock.callLater(self._seconds, self._look)

    def discard(self, item: T) -> bool:
        """The item needs no time limit any more. Returns whether it had one."""
        if self._due.pop(item, None) is None:
            return False
        if not self._due and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return True

    def __len__(self) -> int:
        return len(self._due)

    def __iter__(self) -> Iterator[T]:
        """All items, the oldest first."""
        return iter(self._due)

    def _look(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        late = []
        for item, due in self._due.items():
            if due > now:
                break
            late.append(item)
        for item in late:
            # an earlier one may have discarded it
            if self._due.pop(item, None) is not None:
                self._expire(item)
        if self._due and self._timer is None:
            self._timer = self._clock.callLater(max(0.0, next(iter(self._due.values())) - now), self._look)
