"""Limits how many tasks that may kill the worker run in it at the same time."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from taskd.ports.handler import IN_PROCESS
from taskd.worker.held import HeldState, HeldTask

MAX_WAIT = 5.0
"""Seconds that a suspect waits for a place. Most are innocent: they ran beside the task that killed a worker."""

FEWER = 4
"""With each loss of a task, so many times fewer like it run at a time. With 100 slots these are 25, 6 and 1, so a task
that kills its workers is the only suspect there when it does so for the fourth time."""


class Suspects:
    """Tasks with losses. Of those with n losses or more, max(1, slots / 4^n) run in the worker at a time, for every n.
    One without a place waits without a slot, MAX_WAIT seconds at most. Then it runs as soon as a slot is free.

    ``begin`` is called with each one that has waited and now has a slot; ``on_place`` when there may be places for
    those that wait: then :meth:`start_waiting` is to be called as soon as tasks may begin.
    """

    def __init__(self, clock: IReactorTime, begin: Callable[[HeldTask], None], on_place: Callable[[], None]) -> None:
        self._clock = clock
        self._begin = begin
        self._on_place = on_place
        self._running: set[HeldTask] = set()
        self.waiting: list[HeldTask] = []

    def admit(self, held: HeldTask) -> bool:
        """Whether a task may begin now. A suspect that may has a place from now on."""
        if not is_suspect(held):
            return True
        if not self._has_place(held):
            return False
        self._running.add(held)
        return True

    def wait(self, held: HeldTask) -> None:
        """It has no place and no slot: let it wait."""
        held.since = self._clock.seconds()
        self.waiting.append(held)
        self._clock.callLater(MAX_WAIT, self._on_place)

    def ended(self, held: HeldTask) -> None:
        """Nothing of its handler runs any more."""
        if held in self._running:
            self._running.remove(held)
            if self.waiting:
                self._clock.callLater(0, self._on_place)

    def start_waiting(self) -> None:
        """Begin those that wait, as far as there are places and slots."""
        latest = self._clock.seconds() - MAX_WAIT
        for held in tuple(self.waiting):
            if held.state is not HeldState.WAITING:
                # it was given back or dropped
                self.waiting.remove(held)
            elif (held.since <= latest or self._has_place(held)) and held.pool.take(held):
                self.waiting.remove(held)
                self._running.add(held)
                self._begin(held)

    def _has_place(self, held: HeldTask) -> bool:
        losses = [other.task.losses for other in self._running]
        for n in range(1, held.task.losses + 1):
            most = max(1, held.pool.slots // FEWER**n)
            if sum(1 for other in losses if other >= n) >= most:
                return False
        return True


def is_suspect(held: HeldTask) -> bool:
    """Whether it may kill the worker, as far as one knows."""
    return held.task.losses > 0 and held.isolation in IN_PROCESS
