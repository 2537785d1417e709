"""The referee of who holds tasks: the healthy keep theirs, the dead lose theirs soon, and losses have a culprit.

Time counts here as it passes, whatever the clocks of the processes show. A worker's silence is the time since its last
beat that the database has stored, or since the database was started.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.ports.workers import WorkerPoll
from tests.simulation.bounds import Bounds
from tests.simulation.referee import SERVING_GETS, Change, Known, Referee

if TYPE_CHECKING:
    from tests.simulation.processes import ServerProcess, WorkerProcess
    from tests.simulation.world import World

HEALTHY_KEEPS = "a healthy holder keeps its task"
DEAD_LOSES = "a dead holder's task runs again within its bound"
SPENT_BY_CULPRIT = "every spent attempt has a culprit"
FEW_SUSPECTS = "a worker runs few tasks with losses at a time"
FENCED_STOPS = "a fenced worker stops what it runs"
BLOCKED_LOSES = "nothing that has not begun stays on a blocked worker"
GIVEN_BACK_RUNS = "what a watchdog has given back is assigned soon"
UNKNOWN_RETURNS = "a task that its holder does not know goes back"

TICK = 0.25
"""Seconds between looks."""

PROMPT = 0.5
"""A series of polls is unbroken while every poll and every taking back is answered within these seconds."""

GONE_BOUND = 2.0
"""Seconds within which the tasks of a worker that is gone or fenced are taken back."""

TOLD_BOUND = 3.0
"""Likewise after the death of a worker whose watchdog lives and reaches the store."""

RETRY_MARGIN = 2.5
"""What this takes longer while calls are refused or slow: the watchdog tries again."""

LOST_BOUND = 5.0 + 3 * PROMPT
"""Likewise after the death of a worker that no watchdog tells: the database has seen its connection close."""

LEASE_MARGIN = 2.0 + 3 * PROMPT
"""Likewise for a worker that is silent: the lease and these seconds more."""

LOST_SILENCE = 1.5
"""Three counted polls after a lost connection take so long, or longer. The first may begin before it sees the loss."""

LATEST_LOOK = 30.0
"""Seconds after which a task that its living holder does not know is released: two beats that are not in step, and a
margin for answers that are lost."""

BLOCKED_BOUND = 4.0
"""Seconds after which nothing stands under the name of a blocked worker that it has not begun, while its watchdog
reaches the store."""

STORE_ANSWERS = 11.0
"""Seconds after trouble with the store after which no call from before waits for its answer any more."""

HEARD_WITHIN = 3.0
"""Seconds within which what a watchdog gives back is assigned, while somebody has a free slot. Servers look once a
second."""

_RUNS = (State.QUEUED, State.RUNNING)

_LIVE = ("serving", "draining")

STOP_WITHIN = 0.5
"""Seconds that a fenced worker has to stop its attempts."""

SUSPECT_WAITS = 5.0
"""Seconds after which a task with losses runs although others do."""

LAST_UNSPENT = 3
"""The fourth loss spends the attempt."""


class WorkerChange(NamedTuple):
    """A row of the audit table: a worker before and after a change. A deleted one has the state ``deleted``."""

    name: str
    old_beat: int
    beat: int
    old_state: str
    state: str
    culprit: str | None


@dataclass
class Holder:
    """A worker's name: a process has another one each time that it was fenced.

    ``hindered`` is for how many seconds of its silence it could not beat, and ``disturbed`` how many of its beats were
    late or lost meanwhile. ``connected``: since the database was started, a poll has shown some server that its
    connection was open. ``lost`` is the time at which the connection that sent the last beat was closed, if so.
    ``untold``: its watchdog could not tell of its death at once.
    """

    name: str
    process: WorkerProcess
    beat: float
    state: str = "serving"
    changed: float = 0.0
    culprit: str | None = None
    hindered: float = 0.0
    disturbed: int = 0
    connected: bool = False
    untold: bool = False
    lost: float | None = None
    unknown: dict[tuple[int, int, int], float] = field(default_factory=dict)
    free_since: float | None = None
    """Since when it has had a free slot without a break."""
    blocked_since: float | None = None
    """Since when it is blocked, and its watchdog could give back without a break what it has not begun."""

    @property
    def alive(self) -> bool:
        """Whether the store counts it as alive."""
        return self.state in _LIVE


class Suspect(NamedTuple):
    """A running attempt of a task with losses. ``overdue``: it had waited so long that it needed no place."""

    losses: int
    began: float
    overdue: bool


class Series:
    """One server's series of polls: since when every poll was answered in time. None: it is broken now.

    ``seen_connected`` are the workers whose connection to the database it has seen open in this series. At ``reset_at``
    the server began to count from 0: it has just started, or a poll has failed.
    """

    def __init__(self, server: ServerProcess, now: float) -> None:
        self.server = server
        self.since: float | None = None
        self.pending: dict[object, float] = {}
        self.seen_connected: set[str] = set()
        self.reset_at = now
        self._epoch = ""

    def asked(self, call: object, now: float) -> None:
        """A poll, or a taking back, was sent."""
        self.pending[call] = now

    def answered(self, call: object, now: float, good: bool) -> None:
        """It was answered, or has failed."""
        sent = self.pending.pop(call, now)
        if not good or now - sent > PROMPT:
            self._break()
        elif self.since is None:
            self.since = now

    def saw(self, poll: WorkerPoll) -> None:
        """The server looks at this answer of a poll."""
        if poll.epoch != self._epoch:
            self._epoch = poll.epoch
            self.seen_connected.clear()
        if self.since is not None:
            self.seen_connected |= {status.info.name for status in poll.workers if status.connected}

    def look(self, now: float) -> None:
        """Break the series if the server cannot poll."""
        server = self.server
        waiting = any(now - sent > PROMPT for sent in self.pending.values())
        if waiting or server.dead or server.paused or server.draining or not server.store.ready:
            self._break()

    def _break(self) -> None:
        self.since = None
        self.seen_connected.clear()


class Holders:
    """Checks who holds tasks, and who loses them."""

    def __init__(self, world: World, referee: Referee, now: Callable[[], float]) -> None:
        self._world = world
        self._referee = referee
        self._now = now
        self.by_name: dict[str, Holder] = {}
        self.series: dict[str, Series] = {}
        self._suspects: dict[str, dict[tuple[int, int, int], Suspect]] = {}
        """By process."""
        self._given_back: dict[tuple[int, int], float] = {}
        """When a watchdog has given back what waits since then: tasks and dispatches."""
        self._store_failed = 0.0
        self.bounds = Bounds(world, referee, now)

    def start(self) -> None:
        """Look at all workers from now on."""
        self._world.clock.call(None, TICK, self._look)

    # -- what processes and the database tell

    def registered(self, process: WorkerProcess, name: str) -> None:
        """A worker has registered under this name."""
        holder = self.by_name.get(name)
        if holder is None:
            self.by_name[name] = Holder(name, process, self._now(), changed=self._now())
        elif holder.state == "deleted":
            # a registration that was counted as lost has come after the worker's end: only its silence tells
            holder.state, holder.changed, holder.beat = "serving", self._now(), self._now()
            holder.untold = True

    def beaten(self, name: str) -> None:
        """The database has stored a beat."""
        holder = self.by_name.get(name)
        if holder is not None:
            holder.beat, holder.hindered, holder.disturbed, holder.lost = self._now(), 0.0, 0, None

    def polled(self, series: Series, poll: WorkerPoll) -> None:
        """A server looks at the answer of a poll. It knows from nothing else who was connected."""
        series.saw(poll)
        if poll.epoch == str(self._world.database.epoch):
            for status in poll.workers:
                if status.connected and (holder := self.by_name.get(status.info.name)) is not None:
                    holder.connected = True

    def disturbed(self, name: str) -> None:
        """A beat was late, or did not arrive."""
        if name in self.by_name:
            self.by_name[name].disturbed += 1

    def database_started(self) -> None:
        """The database was down: nobody could beat, and all connections are new."""
        self._all_silent(self.by_name)
        for holder in self.by_name.values():
            holder.connected = False

    def database_writable(self, since: float) -> None:
        """The database has taken no changes since then, and takes them again. A server that was frozen meanwhile has
        not noticed, and goes on counting."""
        counting = [server for server in self._world.servers if not server.draining]
        if all(server.series.reset_at >= since for server in counting):
            lease = self._world.plan.lease
            # who was dead by then may be fenced by a statement that has waited behind a lock since
            self._all_silent(
                name
                for name, holder in self.by_name.items()
                if since - holder.beat < lease - 1.1 and (holder.lost is None or since - holder.lost < LOST_SILENCE)
            )

    def _all_silent(self, names: Iterable[str]) -> None:
        """None of these could beat until now, by the fault of the database, and every server knows it."""
        for name in list(names):
            self.beaten(name)

    def workers_changed(self, who: str, how: str, changes: Iterable[WorkerChange]) -> None:
        """A call has changed these rows."""
        for c in changes:
            holder = self.by_name.get(c.name)
            if holder is None:
                continue
            if c.state == c.old_state:
                self.beaten(c.name)
                continue
            # a worker that has not beaten yet does not know that it is registered, and holds nothing
            if c.state == "fenced" and holder.alive and c.beat > 1 and (why := self._healthy(holder)):
                self._referee.fail(HEALTHY_KEEPS, f"{who} has fenced {c.name} at beat {c.beat}, {why}")
            holder.state, holder.changed, holder.culprit = c.state, self._now(), c.culprit
            self._world.note(who, how, f"{c.name} is {c.state}")

    def fenced(self, process: WorkerProcess, name: str) -> None:
        """A worker has got the answer that it is fenced."""
        began = set(self._referee.running.get(process.name, ()))

        def look() -> None:
            left = began & self._referee.running.get(process.name, set())
            if left and not process.dead and not process.paused:
                self._referee.fail(FENCED_STOPS, f"{process.name} was fenced as {name} and still runs {sorted(left)}")

        self._world.clock.call(None, STOP_WITHIN, look)

    def stops(self, process: WorkerProcess, name: str, known: Known, attempt: tuple[int, int]) -> None:
        """A worker stops an attempt, although nothing asks it to drain."""
        holder = self.by_name.get(name)
        ours = known.state in _RUNS and (known.dispatch, known.attempt, known.worker) == (*attempt, name)
        if holder is not None and holder.alive and ours:
            what = f"task {known.task_id} dispatch {attempt[0]} attempt {attempt[1]}"
            self._referee.fail(HEALTHY_KEEPS, f"{process.name} stops {what}, which is its own")

    def began(self, process: str, task: Task, slots: int) -> None:
        """A handler has begun."""
        there = self._suspects.setdefault(process, {})
        running = self._referee.running[process]
        for gone in there.keys() - running:
            del there[gone]
        attempt = task.id, task.dispatch, task.attempt
        assigned = self._referee.assigned_at.get(attempt[:2], 0.0)
        waited = self._now() - assigned
        # Between getting a place and its begin it waits for the store. Whoever is overdue may have begun meanwhile.
        before = [other.losses for other in there.values() if not other.overdue or other.began < assigned]
        for n in range(1, task.losses + 1):
            others = sum(1 for losses in before if losses >= n)
            if others >= max(1, slots // 4**n) and waited < SUSPECT_WAITS:
                what = f"{process} begins task {task.id} with {task.losses} losses after {waited:.3f} s"
                self._referee.fail(FEW_SUSPECTS, f"{what} beside {others} with {n} losses or more, in {slots} slots")
        if task.losses:
            there[attempt] = Suspect(task.losses, self._now(), waited >= SUSPECT_WAITS)
        self.bounds.began(process, self._referee.tasks[task.id])

    # -- what the store did

    def assigned(self, changes: Sequence[Change]) -> None:
        """A turn or a creation has assigned tasks."""
        for c in changes:
            holder = self.by_name.get(c.worker or "")
            if c.worker is not None and (holder is None or holder.state != "serving"):
                self._referee.fail(SERVING_GETS, f"{c.worker} is {holder and holder.state}: {c}")

    def released(self, who: str, changes: Sequence[Change]) -> None:
        """A worker has given tasks back."""
        running = self._referee.running.get(who, set())
        stays = any(worker.name == who and not worker.draining for worker in self._world.workers)
        for c in changes:
            if stays:
                self.bounds.gave_back(self.by_name.get(c.old_worker or ""), c)
            if stays and (c.task_id, c.old_dispatch, c.old_attempt) in running:
                self._referee.fail(HEALTHY_KEEPS, f"{who} runs what it has released: {c}")

    def given_back(self, changes: Sequence[Change]) -> None:
        """A watchdog has given tasks back."""
        self._given_back.update(((c.task_id, c.dispatch), self._now()) for c in changes if c.state == "waiting")

    def taken_back(self, changes: Sequence[Change], recorded: set[tuple[int, int, int]]) -> None:
        """A server has taken tasks back. ``recorded`` are the attempts that were recorded as lost."""
        by_worker: dict[str | None, list[Change]] = {}
        for c in changes:
            if c.old_state in ("queued", "running"):
                by_worker.setdefault(c.old_worker, []).append(c)
        for name, those in by_worker.items():
            holder = self.by_name.get(name or "")
            culprit = json.loads(holder.culprit) if holder is not None and holder.culprit else {}
            suspects = [c.task_id for c in those if c.old_losses and c.candidate]
            for c in those:
                if "task_id" in culprit:
                    guilty = (culprit["task_id"], culprit["dispatch"]) == (c.task_id, c.old_dispatch)
                else:
                    guilty = suspects == [c.task_id]
                # what has not begun cannot have done it
                guilty = c.candidate and (guilty or c.old_losses >= LAST_UNSPENT)
                guilty = guilty or (c.old_state == "running" and c.max_attempts == 1)
                spent = c.attempt == c.old_attempt
                noted = (c.task_id, c.old_dispatch, c.old_attempt) in recorded
                if not spent == noted == guilty:
                    told = f"spent: {spent}, recorded: {noted}, {c.old_losses} losses before, {len(those)} tasks"
                    self._referee.fail(SPENT_BY_CULPRIT, f"{c}; {told}, suspects {suspects}, culprit {culprit}")

    def _healthy(self, holder: Holder) -> str:
        """Why this worker is not dead for any server; empty if it is, or may seem to be."""
        now, process = self._now(), holder.process
        if process.dead or process.ended:
            return ""
        silence = now - holder.beat
        hindered = holder.hindered + (TICK if holder.hindered else 0.0)
        if (
            holder.lost is not None
            # the loss was noted up to a tick late
            and now - max(holder.lost - TICK, holder.beat) >= LOST_SILENCE
            and (holder.disturbed or hindered >= 1.0)
        ):
            return ""
        lease = self._world.plan.lease
        if silence >= lease - 1.1 and (hindered >= lease - 4.0 or holder.disturbed >= 2):
            return ""
        lost = None if holder.lost is None else round(now - holder.lost, 3)
        return (
            f"which was silent for {silence:.3f} s, hindered for {hindered:.3f} s, disturbed {holder.disturbed} times,"
            f" its connection lost since {lost} s"
        )

    # -- looks

    def _look(self) -> None:
        now, database = self._now(), self._world.database
        for series in self.series.values():
            series.look(now)
        holding: dict[str, float] = {}
        tasks: dict[str, list[Known]] = {}
        for known in self._referee.tasks.values():
            if known.held and known.worker is not None:
                holding[known.worker] = min(known.changed, holding.get(known.worker, now))
                tasks.setdefault(known.worker, []).append(known)
        for holder in self.by_name.values():
            if holder.process.dead and not holder.process.watchdog.tells:
                holder.untold = True
            if holder.alive and database.up:
                if not holder.process.can_beat:
                    holder.hindered += TICK
                if self._world.plan.pooler or database.connected(holder.name):
                    holder.lost = None
                elif holder.connected and holder.lost is None:
                    holder.lost = now
            if holder.name in holding and database.up:
                self._check_bound(holder, now, holding[holder.name])
                self._check_known(holder, now, tasks[holder.name])
            self._check_blocked(holder, now, tasks.get(holder.name, ()))
            self.bounds.check_work(holder, now, tasks.get(holder.name, []))
        self.bounds.check_idle(now, list(self.by_name.values()))
        self._check_given_back(now, tasks)
        if not self._world.over:
            self._world.clock.call(None, TICK, self._look)

    def _check_bound(self, holder: Holder, now: float, held_since: float) -> None:
        series = {s: s.since for s in self.series.values() if s.since is not None}
        if not series:
            return
        steady = min(series.values())
        silent = now - max(holder.beat, steady)
        lease = self._world.plan.lease
        process = holder.process
        # a watchdog does not know the name of who died before the answer of its registration
        told = process.dead and not holder.untold and process.board.name == holder.name
        knowing = [since for s, since in series.items() if holder.name in s.seen_connected]
        if not holder.alive:
            bound, passed = GONE_BOUND, now - max(holder.changed, held_since, steady)
        elif told:
            bound = TOLD_BOUND + (RETRY_MARGIN if self._world.rates else 0.0)
            passed = now - max(process.died, held_since, steady)
        elif process.dead and holder.lost is not None and knowing:
            # who lived for less than a second may never have been seen connected
            bound = min(LOST_BOUND, lease + LEASE_MARGIN)
            passed = now - max(holder.beat, min(knowing), holder.lost)
        else:
            bound, passed = lease + LEASE_MARGIN, silent
        if passed > bound:
            what = f"{holder.name} is {holder.state}, {'dead' if holder.process.dead else 'not dead'}"
            self._referee.fail(DEAD_LOSES, f"{what}, and holds tasks after {passed:.3f} s; the bound is {bound:.3f} s")

    def _check_known(self, holder: Holder, now: float, tasks: Sequence[Known]) -> None:
        process = holder.process
        if self._world.rates or process.dead or process.draining or not holder.alive:
            holder.unknown.clear()
            return
        known_there = process.tasks()
        those = {(k.task_id, k.dispatch, k.attempt) for k in tasks if k.task_id not in known_there}
        holder.unknown = {key: holder.unknown.get(key, now) for key in sorted(those)}
        for key, since in holder.unknown.items():
            if now - since > LATEST_LOOK:
                self._referee.fail(UNKNOWN_RETURNS, f"{holder.name} does not know task {key} for {now - since:.0f} s")

    @property
    def _store_fails(self) -> bool:
        """Whether calls of the store fail now, or are slow."""
        world, now = self._world, self._now()
        rates, database = world.rates, world.database
        troubled = rates and (rates.refused or rates.ambiguous or rates.straggling or rates.slow_store or rates.stale)
        return bool(troubled) or not database.up or max(database.locked_until, database.read_only_until) > now

    def _check_blocked(self, holder: Holder, now: float, tasks: Sequence[Known]) -> None:
        process = holder.process
        named = process.board.name == holder.name
        if self._store_fails or not (process.stalled and process.watchdog.can_vouch and holder.alive and named):
            holder.blocked_since = None
            return
        if holder.blocked_since is None:
            holder.blocked_since = now
        begun = process.board.begun() or ()
        for known in tasks:
            waits = known.state is State.QUEUED and (known.task_id, known.dispatch) not in begun
            # between two blocks it may have run for a moment
            passed = now - max(known.changed, holder.blocked_since, process.stalled_since)
            if waits and passed > BLOCKED_BOUND:
                self._referee.fail(BLOCKED_LOSES, f"{holder.name} holds task {known.task_id} for {passed:.3f} s")

    def _check_given_back(self, now: float, tasks: Mapping[str, Sequence[Known]]) -> None:
        known = self._referee.tasks
        for task_id, dispatch in tuple(self._given_back):
            if known[task_id].state is not State.WAITING or known[task_id].dispatch != dispatch:
                del self._given_back[task_id, dispatch]
        # nobody assigns to a worker whose connection is closed
        free = [
            holder.free_since
            for holder in self.by_name.values()
            if holder.free_since is not None and holder.lost is None
            if len(tasks.get(holder.name, ())) < holder.process.slots
        ]
        steady = [series.since for series in self.series.values() if series.since is not None]
        if self._store_fails:
            self._store_failed = now
        if now - self._store_failed < STORE_ANSWERS or not free or not steady:
            # all that waits gets its time again
            self._given_back = dict.fromkeys(self._given_back, now)
            return
        begin = max(min(free), min(steady), self._referee.last_assigned)
        for (task_id, _), at in self._given_back.items():
            passed = now - max(at, begin)
            if passed > HEARD_WITHIN:
                self._referee.fail(GIVEN_BACK_RUNS, f"task {task_id} waits for {passed:.3f} s")
