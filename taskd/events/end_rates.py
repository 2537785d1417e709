"""How many tasks have ended lately, as the events tell it: no look at the store."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence

from twisted.internet.interfaces import IReactorTime

from taskd.events.records import TaskChange
from taskd.model.states import State

WINDOW = 120.0
"""Seconds that are counted."""

STEP = 10.0
"""Seconds after which the oldest part of the window is forgotten."""

MAX_COUNTS = 10_000
"""So many counts are kept for one step; what more users do is counted for all users only."""

_ENDED = (State.COMPLETED, State.FAILED)

_Routes = Counter[tuple[str, str]]


class _Step:
    """What has ended in one step: by route, and by user and route."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.all: _Routes = Counter()
        self.by_user: dict[int, _Routes] = {}
        self._size = 0

    def add(self, user_id: int, route: tuple[str, str]) -> None:
        self.all[route] += 1
        theirs = self.by_user.get(user_id)
        if theirs is None or route not in theirs:
            if self._size >= MAX_COUNTS:
                return
            self._size += 1
            theirs = self.by_user.setdefault(user_id, Counter())
        theirs[route] += 1


class EndRates:
    """Counts completed and failed tasks, of all processes whose events this server gets. A cancellation is not an end
    that a worker has brought about."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._since = clock.seconds()
        self._steps: deque[_Step] = deque()

    @property
    def seconds(self) -> float:
        """For how long it has counted, up to the window."""
        return max(1.0, self._clock.seconds() - max(self._since, (self._now() - WINDOW / STEP + 1) * STEP))

    def note(self, changes: Sequence[TaskChange]) -> None:
        """These tasks have changed."""
        step = None
        for change in changes:
            if change.state in _ENDED:
                step = step or self._step()
                step.add(change.user_id, (change.queue, change.kind))

    def by_minute(self, user_id: int | None) -> Mapping[tuple[str, str], float]:
        """The ends a minute by queue and kind, of a user or of all users. Routes without any are missing."""
        self._forget()
        return self._rates(user_id, 0, self.seconds)

    def by_minute_in(self, user_id: int, seconds: float) -> Mapping[tuple[str, str], float]:
        """The same of a user in the last ``seconds``, in whole steps; nothing if this is less than one step."""
        self._forget()
        first = math.ceil((self._clock.seconds() - seconds) / STEP)
        counted = min(self.seconds, self._clock.seconds() - first * STEP)
        return self._rates(user_id, first, counted) if counted >= STEP else {}

    def _rates(self, user_id: int | None, first: int, seconds: float) -> Mapping[tuple[str, str], float]:
        total: _Routes = Counter()
        for step in self._steps:
            found = step.all if user_id is None else step.by_user.get(user_id)
            if found and step.number >= first:
                total.update(found)
        return {route: number * 60.0 / seconds for route, number in total.items()}

    def _now(self) -> int:
        return int(self._clock.seconds() // STEP)

    def _step(self) -> _Step:
        number = self._now()
        if not self._steps or self._steps[-1].number != number:
            self._forget()
            self._steps.append(_Step(number))
        return self._steps[-1]

    def _forget(self) -> None:
        first = self._now() - WINDOW / STEP + 1
        while self._steps and self._steps[0].number < first:
            self._steps.popleft()
