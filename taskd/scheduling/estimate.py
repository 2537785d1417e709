"""When a waiting task probably begins, and what this estimate rests on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from taskd.model.tasks import Task
from taskd.ports.overview import Line
from taskd.scheduling.pools import WorkerPool

FREE_SLOTS = "free_slots"
"""The pool has room, and nothing waits before the task."""

ENDED_LATELY = "ended_lately"
"""How fast the owner's tasks in the routes of the pool have ended."""

MEASURED_TIMES = "measured_times"
"""The mean times that workers have measured, and the slots that the owner can expect."""


class Estimate(NamedTuple):
    """In how many ``seconds`` a task probably begins; ``basis`` is one of the codes of this module."""

    seconds: float
    basis: str


def estimate(task: Task, line: Line, pool: WorkerPool, by_minute: Mapping[tuple[str, str], float]) -> Estimate | None:
    """When a task probably begins that waits in this line of a pool; ``by_minute`` is how many of its owner's tasks
    have ended lately, while some waited, by queue and kind. None if nothing is known that it could rest on.

    It begins when as many tasks of the owner have ended as are before it, and one more, which gives it its place.
    """
    if pool.slots and pool.credit.room_left and not line.before and not line.others_wait:
        return Estimate(0.0, FREE_SLOTS)
    rate = sum(number for route, number in by_minute.items() if route in pool.routes)
    if rate > 0:
        return Estimate((sum(line.before.values()) + 1) * 60.0 / rate, ENDED_LATELY)
    work = pool.costs.seconds_of(task.user_id, task.kind)
    for kind, number in line.before.items():
        seconds = pool.costs.seconds_of(task.user_id, kind)
        work = None if work is None or seconds is None else work + number * seconds
    slots = _expected(line, pool.slots)
    return Estimate(work / slots, MEASURED_TIMES) if work is not None and slots else None


def _expected(line: Line, slots: int) -> float:
    """How many slots the owner has or can expect; 0 if nobody knows."""
    expected = float(line.held_by_owner)
    if line.share is not None:
        expected = max(expected, slots * line.share)
    if not line.others_wait:
        # what others hold they keep, but whatever they leave comes to the owner
        expected = max(expected, float(slots - (line.held - line.held_by_owner)))
    return min(expected, float(slots))
