"""How long tasks hold a slot: servers send workers of short tasks more of them at a time."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.internet.interfaces import IReactorTime

from taskd.ports.workers import Mean
from taskd.worker.held import HeldState, HeldTask

MOST = 1000
"""Pairs of user and kind that are told, those with the latest ends. The servers read them twice a second."""

FORGOTTEN_AFTER = 60.0
"""Seconds after the last end of a user and a kind."""

TELLING = 1.0
"""Seconds from which on the age of a running task says something if no task like it has ended: it is not a short one.
Before that, servers count it as a long one anyway, because nothing is known."""


class _Ends:
    """Ends of tasks of one user and kind."""

    __slots__ = ("count", "last", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.count = 0.0
        self.last = 0.0


class Means:
    """The mean time of each user and kind. What runs now counts with its age when that exceeds the mean, so that tasks
    that have become long show before the first of them ends."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._ends: dict[tuple[int, str], _Ends] = {}

    def ended(self, held: HeldTask) -> None:
        """Its slot is free."""
        task = held.task
        key = task.user_id, task.kind
        ends = self._ends.get(key)
        if ends is None:
            ends = self._ends[key] = _Ends()
        now = self._clock.seconds()
        ends.seconds += now - held.began
        ends.count += 1
        ends.last = now

    def now(self, held: Iterable[HeldTask]) -> list[Mean]:
        """The means, with what of ``held`` runs at this moment. To be called once a second: earlier ends weigh half as
        much the next time, so that tasks that have become longer or shorter show soon."""
        now = self._clock.seconds()
        kept = [(key, ends) for key, ends in self._ends.items() if now - ends.last < FORGOTTEN_AFTER]
        if len(kept) > MOST:
            kept = sorted(kept, key=lambda pair: -pair[1].last)[:MOST]
        self._ends = dict(kept)
        means = {key: (ends.seconds, ends.count) for key, ends in self._ends.items()}
        for each in held:
            if each.state is not HeldState.RUNNING:
                continue
            key = each.task.user_id, each.task.kind
            age = now - each.began
            ends = self._ends.get(key)
            if age > ends.seconds / ends.count if ends is not None else age >= TELLING:
                seconds, count = means.get(key, (0.0, 0.0))
                means[key] = seconds + age, count + 1
        for ends in self._ends.values():
            ends.count /= 2
            ends.seconds /= 2
        return [Mean(user, kind, seconds / count) for (user, kind), (seconds, count) in means.items()]
