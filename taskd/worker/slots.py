"""Slots: how many tasks of one isolation run at a time, and whose task is next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IDelayedCall, IReactorTime

if TYPE_CHECKING:
    from taskd.worker.held import HeldTask

TURN = 0.01
"""Seconds for which a pool begins tasks at a stretch. Handlers that wait for nothing end as soon as they begin, so that
otherwise nothing else would happen until all that waits has run."""


class SlotPool:
    """``slots`` tasks at a time. It calls ``start`` with each task that gets a slot, which :meth:`release` gives back;
    the others wait. Next is a task of a user without slots, then of the user with the fewest by weight, by the rule of
    the dispatcher's turn (Webster's: half a slot more than the user has, by weight); among equals, users take turns. So
    a newcomer is next, however much of others waits.

    ``may_start`` tells whether anything may begin now. Before others, ``first`` is called: it may :meth:`take` slots.
    ``on_room`` is called when slots stay free.
    """

    def __init__(
        self,
        clock: IReactorTime,
        slots: int,
        start: Callable[[HeldTask], None],
        may_start: Callable[[], bool],
        first: Callable[[], None],
        on_room: Callable[[], None],
    ) -> None:
        self._clock = clock
        self.slots = slots
        self.taken = 0
        self._start = start
        self._may_start = may_start
        self._first = first
        self._on_room = on_room
        self._waiting: dict[int, deque[HeldTask]] = {}
        """By user, those that had no turn for the longest time first. No deque is empty."""
        self._slots_of: dict[int, int] = {}
        self._filling = False
        self._timer: IDelayedCall | None = None

    @property
    def has_room(self) -> bool:
        """Whether more tasks could begin than are here."""
        return self.taken < self.slots and not self._waiting

    def add(self, held: HeldTask) -> None:
        """Let it wait for a slot. Call :meth:`fill` afterwards."""
        waiting = self._waiting.get(held.task.user_id)
        if waiting is None:
            waiting = self._waiting[held.task.user_id] = deque()
        waiting.append(held)

    def remove(self, held: HeldTask) -> None:
        """Let it wait no longer, if it does."""
        user = held.task.user_id
        waiting = self._waiting.get(user)
        if waiting is not None and held in waiting:
            waiting.remove(held)
            if not waiting:
                del self._waiting[user]

    def waiting_since(self, latest: float) -> list[HeldTask]:
        """Those that have been waiting since then or longer."""
        return [held for waiting in self._waiting.values() for held in takewhile(lambda h: h.since <= latest, waiting)]

    def take(self, held: HeldTask) -> bool:
        """Take a slot for it if one is free."""
        if self.taken >= self.slots:
            return False
        self.taken += 1
        user = held.task.user_id
        self._slots_of[user] = self._slots_of.get(user, 0) + 1
        return True

    def release(self, held: HeldTask) -> None:
        """Its slot is free again. Call :meth:`fill` when it may be taken."""
        self.taken -= 1
        user = held.task.user_id
        left = self._slots_of[user] - 1
        if left:
            self._slots_of[user] = left
        else:
            del self._slots_of[user]

    def fill(self) -> None:
        """Start what waits, as far as slots are free."""
        # a handler may end another one, whose slot is filled by the loop that is under way, or goes on next turn
        if self._filling or self._timer is not None or not self._may_start():
            return
        self._filling = True
        try:
            self._first()
            if self._waiting and self.taken < self.slots:
                self._start_waiting()
        finally:
            self._filling = False
        if self.has_room:
            self._on_room()

    def _start_waiting(self) -> None:
        seconds = self._clock.seconds
        until = seconds() + TURN
        while self._waiting and self.taken < self.slots:
            held = self._next()
            self.take(held)
            self._start(held)
            if seconds() >= until:
                if self._waiting and self._timer is None:
                    self._timer = self._clock.callLater(0, self._fill_on)
                return

    def _fill_on(self) -> None:
        self._timer = None
        self.fill()

    def _next(self) -> HeldTask:
        slots_of, best, least = self._slots_of, -1, float("inf")
        for user, waiting in self._waiting.items():
            slots = slots_of.get(user, 0)
            if not slots:
                best = user
                break
            share = (slots + 0.5) / waiting[0].weight
            if share < least:
                best, least = user, share
        waiting = self._waiting.pop(best)
        held = waiting.popleft()
        if waiting:
            self._waiting[best] = waiting
        return held
