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
    """Claimed tasks with losses. Of those with n losses or more, max(1, slots / 4^n) run in the worker at a time, for
    every n. One without a place waits without a slot, MAX_WAIT seconds at most. Then it runs as soon as a slot is free.

    ``begin`` is called with each one that has waited and now has a slot.
    """

    def __init__(self, clock: IReactorTime, begin: Callable[[HeldTask], None]) -> None:
        self._clock = clock
        self._begin = begin
        self._running: set[HeldTask] = set()
        self.waiting: list[HeldTask] = []
        """Always the same list: the slot pools look whether it is empty."""

    def admit(self, held: HeldTask) -> bool:
        """Whether a claimed task may begin now. A suspect that may has a place from now on."""
        if not _is_suspect(held):
            return True
        if not self._has_place(held):
            return False
        self._running.add(held)
        return True

    def wait(self, held: HeldTask) -> None:
        """It has no place and no slot: let it wait."""
        held.state = HeldState.WAITING
        held.since = self._clock.seconds()
        self.waiting.append(held)
        self._clock.callLater(MAX_WAIT, self.start_waiting)

    def ended(self, held: HeldTask) -> None:
        """Nothing of its handler runs any more."""
        if held in self._running:
            self._running.remove(held)
            if self.waiting:
                self._clock.callLater(0, self.start_waiting)

    def start_waiting(self) -> None:
        """Begin those that wait, as far as there are places and slots."""
        if not self.waiting:
            return
        latest = self._clock.seconds() - MAX_WAIT
        for held in tuple(self.waiting):
            if held.state is not HeldState.WAITING:
                # the worker holds it no longer
                self.waiting.remove(held)
            elif (held.since <= latest or self._has_place(held)) and held.pool.take():
                self.waiting.remove(held)
                self._running.add(held)
                self._begin(held)

    def close(self) -> list[HeldTask]:
        """Begin nothing more; returns those that wait."""
        waiting = [held for held in self.waiting if held.state is HeldState.WAITING]
        self.waiting.clear()
        return waiting

    def _has_place(self, held: HeldTask) -> bool:
        losses = [_losses(other) for other in self._running]
        for n in range(1, _losses(held) + 1):
            most = max(1, held.pool.slots // FEWER**n)
            if sum(1 for other in losses if other >= n) >= most:
                return False
        return True


def _is_suspect(held: HeldTask) -> bool:
    return held.isolation in IN_PROCESS and _losses(held) > 0


def _losses(held: HeldTask) -> int:
    return held.task.losses if held.task is not None else 0
