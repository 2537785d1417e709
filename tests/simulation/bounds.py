"""The bounds of a healthy system: who is free begins what is due, what is cancelled stops, and explain is right.

They hold after the faults, and all the time in games in which only the broker and clients fail: work needs no broker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from taskd.model.states import State
from tests.simulation.clock import START
from tests.simulation.referee import (
    CANCEL_STOPS,
    EXPLAINED,
    FREE_BEGINS,
    LOST_HINTS,
    NO_IDLE_SLOT,
    Change,
    Known,
    Referee,
)

if TYPE_CHECKING:
    from tests.simulation.holders import Holder
    from tests.simulation.world import World

BEGINS_WITHIN = 3.5
"""Seconds within which a worker with free slots begins what was assigned to it. A lost hint costs two of them."""

STOPS_WITHIN = 4.0
"""Seconds within which a worker stops an attempt that was cancelled, and after which it does not begin it any more."""

RUNS_WITHIN = 4.0
"""Seconds within which some due task is assigned while a slot is free. It is far less for a server that has heard of
the task; here events are lost and late."""

CALM_AFTER = 10.0
"""Seconds after the last effect of a fault, or after the start. Suspects and returned tasks have found their places by
then."""

OLD_READS = 1.0
"""Seconds by which the answer to a read may be older than its request: a crash of the database undoes what was read."""

SEEN_WITHIN = 3.0
"""Seconds within which servers know of a worker."""

_ENDED = (State.COMPLETED, State.FAILED, State.CANCELLED)

_WANTED = (State.QUEUED, State.RUNNING)


class Bounds:
    """Checks them."""

    def __init__(self, world: World, referee: Referee, now: Callable[[], float]) -> None:
        self._world = world
        self._referee = referee
        self._now = now
        self._room_since = now()

    def _calm(self, now: float) -> bool:
        """Whether nothing keeps workers from the store, and nothing has done so of late."""
        world = self._world
        if world.closing:
            return False
        if world.plan.only_broker_fails:
            return now > START + CALM_AFTER
        return not world.rates and now > world.last_effects + CALM_AFTER

    def check_work(self, holder: Holder, now: float, tasks: Sequence[Known]) -> None:
        """Does the worker begin what was assigned to it, and stop what was cancelled?"""
        process = holder.process
        running = self._referee.running.get(process.name, set())
        fit = holder.alive and not (process.dead or process.paused or process.draining or process.stalled)
        # servers assign nothing to a worker for which only its watchdog beats
        fit = fit and process.worker._identity.is_alive
        if not fit or len(running) + process.stubborn >= process.slots or process.runner.hung:
            holder.free_since = None
            return
        if holder.free_since is None:
            holder.free_since = now
        if not self._calm(now) or process.worker.name != holder.name:
            return
        for known in tasks:
            since = now - max(known.changed, holder.free_since)
            mine, what = (known.task_id, known.dispatch), f"{holder.name}, task {known.task_id}"
            unbegun = known.state is State.QUEUED and not known.losses and not self._referee.has_begun(*mine)
            if unbegun and since > BEGINS_WITHIN:
                self._referee.fail(LOST_HINTS, f"{what} has not begun for {since:.3f} s")
            runs = any(attempt[:2] == mine for attempt in running)
            if known.state is State.CANCELLED and runs and now - known.changed > STOPS_WITHIN:
                self._referee.fail(CANCEL_STOPS, f"{what} still runs")

    def check_idle(self, now: float, holders: Sequence[Holder]) -> None:
        """Is every due task assigned while a worker has room?"""
        held = Counter(known.worker for known in self._referee.tasks.values() if known.held)
        free = any(h.free_since is not None and held[h.name] < h.process.slots for h in holders)
        if not free:
            self._room_since = now
        if not self._calm(now):
            return
        for task_id, run_at in self._world.database.waiting():
            # while tasks of others are assigned, it may wait for its user's share
            since = max(self._referee.tasks[task_id].changed, run_at, self._room_since, self._referee.last_assigned)
            passed = now - since
            if free and passed > RUNS_WITHIN:
                self._referee.fail(NO_IDLE_SLOT, f"task {task_id} waits for {passed:.3f} s")

    def began(self, worker: str, known: Known) -> None:
        """A worker has begun a task that it holds."""
        now = self._now()
        if known.state not in _WANTED and now - known.changed > STOPS_WITHIN and self._calm(now):
            self._referee.fail(CANCEL_STOPS, f"{worker} begins task {known.task_id}, which is {known.state.value}")

    def gave_back(self, holder: Holder | None, c: Change) -> None:
        """A worker that does not stop has given this back."""
        now = self._now()
        if (
            holder is None
            or holder.free_since is None
            or c.old_state != "queued"
            or c.old_losses
            or not self._calm(now)
        ):
            return
        assigned = self._referee.assigned_at.get((c.task_id, c.old_dispatch), now)
        if holder.free_since < assigned and not self._referee.has_begun(c.task_id, c.old_dispatch):
            self._referee.fail(FREE_BEGINS, f"{c}, after {now - assigned:.3f} s")

    def explained(self, message: dict[str, Any], asked: float) -> None:
        """A client has asked at this time why a task is in its state, and reads the answer. Only the reason of a task
        that has not changed since then is sure."""
        now, known = self._now(), self._referee.tasks[message["task_id"]]
        if known.changed >= asked - OLD_READS or asked < START + CALM_AFTER or not self._calm(asked):
            return
        holders = [holder for holder in self._world.holders.by_name.values() if holder.alive]
        fit = [h for h in holders if not (h.process.dead or h.process.paused or h.process.draining)]
        right = self._reasons(known, asked)
        if known.state in (State.WAITING, State.QUEUED):
            right |= {"no_worker"} - {"no_worker" for h in fit if h.changed < asked - SEEN_WITHIN}
            right |= {"hung" for h in holders if h.process.runner.hung}
            right |= {"stalled" for h in holders if h.process.paused or not h.process.can_beat}
        if message["code"] not in right:
            what = f"task {known.task_id}, {known.state.value} since {known.changed:.3f}, held by {known.worker}"
            self._referee.fail(
                EXPLAINED, f"{what}: {message['code']} instead of {sorted(right)}, asked {now - asked:.3f} s ago"
            )

    def _reasons(self, known: Known, asked: float) -> set[str]:
        """The codes that are right for a task in this state while all is well with the workers."""
        if known.state in (*_ENDED, State.RUNNING):
            return {known.state.value}
        if known.state is State.QUEUED:
            return {"suspect" if known.losses else "queued"}
        run_at = self._world.database.run_at(known.task_id)
        later = {"retrying" if known.attempt else "scheduled"}
        due = {"waiting"}
        if run_at > self._now():
            return later
        return due if run_at <= asked else later | due
