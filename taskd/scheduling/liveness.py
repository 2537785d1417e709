"""Who is alive: reads the workers' beats twice a second, and takes the tasks of dead workers back.

No time is compared, and nothing that any other machine's clock says decides. A server counts its own looks at the
workers that saw no new beat. Its own trouble, and the database's, sets all counts to 0, so it ages nobody.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from taskd.model.errors import Unavailable
from taskd.ports.store import IStore
from taskd.ports.workers import WorkerPoll, WorkerState, WorkerStatus
from taskd.scheduling.dispatcher import Dispatcher
from taskd.scheduling.take_back import TakeBack

INTERVAL = 0.5
"""Seconds between polls."""

APART = 1.0
"""Seconds between the polls that count for one worker, on average at least."""

EARLY = 0.1
"""So much earlier than that a poll may come: a loop is not called at exact times, and must not miss every turn."""

ANSWERED_WITHIN = 1.0
"""A poll whose answer took longer does not count: what it saw may be old."""

POLLS_AFTER_LOSS = 3
"""So many counted polls without a beat after the worker's connection to the database was seen closed."""

QUIET_POLLS = 3
"""After so many counted polls without a beat a worker gets nothing new: it may be frozen, or cut off."""

CUT_OFF = "its connection to the database is closed"

QUIET = f"neither it nor its watchdog has beaten for {QUIET_POLLS} s"

ORPHANS_EVERY = 5.0
"""Seconds between searches for tasks that are held by workers that are dead already. None should be there: whoever dies
leaves its tasks to the search that its death begins."""

ORPHANS_SOON = 0.9
"""The same while there may be some, about one: a turn that is committed with its worker's end is missed by that search,
and a search may fail."""

SOON_FOR = 15.0
"""Seconds for which there may be some after a worker's end, trouble with the database, and the server's own start: no
statement takes longer."""

BLOCKED_LOOK = 0.5
"""Seconds between turns in all pools while a worker is blocked: its watchdog gives back what it has not begun, and has
no way to announce it."""

_LIVING = (WorkerState.SERVING, WorkerState.DRAINING)

ORPHANED = "their worker is gone"


@dataclass
class _Watched:
    """What a series of polls has seen of one worker. ``silent`` counts polls since its last beat, and ``lost`` those of
    them since its connection was seen closed; the next poll that begins at ``due`` counts. ``behind`` counts polls in
    which it had not said what it holds, from ``behind_due`` on."""

    status: WorkerStatus
    due: float
    silent: int = 0
    lost: int = 0
    seen_connected: bool = False
    behind: int = 0
    behind_due: float = 0.0


class Liveness:
    """Has tasks assigned to the living workers, and taken back from the dead.

    Dead is who is gone; who had no beat in 3 counted polls after its database connection was seen open and then
    closed; and who had none in ``lease`` counted polls. ``lease`` is None for an embedded server: it takes nothing
    back, since its only worker lives and dies with it. While the store is away, the last known workers count.
    """

    _log = Logger()

    def __init__(
        self, clock: IReactorTime, store: IStore, dispatcher: Dispatcher, take_back: TakeBack, lease: float | None
    ) -> None:
        self._clock = clock
        self._store = store
        self._dispatcher = dispatcher
        self._take_back = take_back
        self._lease = None if lease is None else math.ceil(lease)
        self.alive: Sequence[WorkerStatus] = ()
        """The living workers of the last poll, those that are draining included."""
        self.waits_for: str | None = None
        """The name of a living worker that has not said what it holds since the database has gone on from an older
        state: see :meth:`IAttemptStore.assert_held`. Nothing is assigned meanwhile."""
        self._watched: dict[str, _Watched] = {}
        self._epoch: str | None = None
        self._blocked: dict[str, str] = {}
        self._blocked_look = float("-inf")
        self._told: set[str] = set()
        self._news: dict[str, str] = {}
        self._poll_again = self._polling = self._taking = self._stopped = False
        self._orphans_at = clock.seconds()
        self._soon_until = self._orphans_at + SOON_FOR
        self._loop = LoopingCall(self._tick)
        self._loop.clock = clock

    def start(self) -> None:
        """Begin to poll."""
        self._loop.start(INTERVAL)

    def stop(self) -> None:
        """Poll no more, and take nothing back any more."""
        self._stopped = True
        if self._loop.running:
            self._loop.stop()

    def on_event(self) -> None:
        """A worker has started, stopped, or says something new: poll now, or again after the poll under way."""
        self._poll_again = True
        if not self._polling:
            self._polling = True
            Deferred.fromCoroutine(self._poll_while_wanted())

    def _tick(self) -> None:
        if not self._polling:
            self.on_event()

    async def _poll_while_wanted(self) -> None:
        try:
            while self._poll_again and not self._stopped:
                self._poll_again = False
                await self._poll()
        finally:
            self._polling = False

    async def _poll(self) -> None:
        """One poll. Never fails."""
        try:
            if not self._store.ready:
                self._break("the store is away")
                return
            began = self._clock.seconds()
            poll = await self._store.poll_workers()
            if not self._stopped:
                self._look(poll, began, self._clock.seconds() - began <= ANSWERED_WITHIN)
        except Unavailable as e:
            self._break(str(e))
        except Exception:
            self._log.failure("the workers cannot be polled")
            self._break("a defect")

    def _break(self, why: str) -> None:
        """What was counted so far may be the fault of the database, or of this server."""
        if self._epoch is not None:
            self._log.debug("all workers are counted from 0 again: {why}", why=why)
        self._epoch = None
        self._watched.clear()
        self._search_soon()

    def _look(self, poll: WorkerPoll, began: float, prompt: bool) -> None:
        is_new = poll.epoch != self._epoch
        if is_new:
            self._break("the database was restarted")
            self._epoch = poll.epoch
        before, self._watched = self._watched, {}
        for status in poll.workers:
            name = status.info.name
            self._watched[name] = self._follow(before.get(name), status, began, prompt)
        deaths = {name: why for name, watched in self._watched.items() if (why := self._death(watched))}
        stopped = dict.fromkeys(before.keys() - self._watched.keys(), "stopped")
        lived = {status.info.name for status in self.alive}
        living = [w for name, w in self._watched.items() if w.status.state in _LIVING and name not in deaths]
        self.alive = [self._as_it_seems(watched) for watched in living]
        self._pause(next((status.info.name for status in self.alive if not status.asserted), None))
        was_blocked = bool(self._blocked)
        self._tell(deaths, stopped)
        if self._news or not lived <= {status.info.name for status in self.alive}:
            self._search_soon()
        self._take_back_from({name: self._watched[name].status.beat for name in deaths})
        self._dispatcher.serve(self.alive, self.waits_for is not None)
        if is_new:
            # turns that came before this poll may have seen others than it did
            self._dispatcher.gap()
        self._look_for_given_back(was_blocked)

    def _pause(self, waits_for: str | None) -> None:
        """While one of the living has not said what it holds, nobody gets anything: what seems to wait may run there.
        Turns see to it; this spares them, and tells people."""
        if waits_for is not None and self.waits_for is None:
            text = (
                "the database has gone on from an older state (a failover, or a restored archive): tasks are assigned"
                " again when all workers have said what they hold; worker {name} has not yet"
            )
            self._log.warn(text, name=waits_for)
        elif waits_for is None and self.waits_for is not None:
            self._log.info("all workers have said what they hold: tasks are assigned again")
        self.waits_for = waits_for

    def _as_it_seems(self, watched: _Watched) -> WorkerStatus:
        """A worker that has been silent for a while counts as blocked, and so does one whose connection was seen open
        and is closed, until its next beat."""
        status = watched.status
        if self._lease is None or status.stalled is not None:
            return status
        if watched.seen_connected and not status.connected:
            return replace(status, stalled=CUT_OFF)
        return replace(status, stalled=QUIET) if watched.silent >= QUIET_POLLS else status

    def _look_for_given_back(self, was_blocked: bool) -> None:
        """Have turns taken while somebody is blocked, and once more after that."""
        now = self._clock.seconds()
        due = now >= self._blocked_look + BLOCKED_LOOK - EARLY
        if self._lease is not None and (due if self._blocked else was_blocked):
            self._blocked_look = now
            self._dispatcher.gap()

    def _follow(self, before: _Watched | None, status: WorkerStatus, began: float, prompt: bool) -> _Watched:
        """Count one poll of a worker."""
        watched = self._follow_beats(before, status, began, prompt)
        if status.asserted or before is None:
            watched.behind, watched.behind_due = 0, began + APART
        else:
            watched.behind, watched.behind_due = before.behind, before.behind_due
            if prompt and began >= watched.behind_due - EARLY:
                watched.behind += 1
                watched.behind_due = max(watched.behind_due, began) + APART
        return watched

    def _follow_beats(self, watched: _Watched | None, status: WorkerStatus, began: float, prompt: bool) -> _Watched:
        if watched is None or watched.status.beat != status.beat:
            seen = watched is not None and watched.seen_connected
            return _Watched(status, began + APART, seen_connected=seen or status.connected)
        watched.status = status
        counted = prompt and began >= watched.due - EARLY
        if counted:
            watched.silent += 1
            watched.due = max(watched.due, began) + APART
        if status.connected:
            watched.seen_connected, watched.lost = True, 0
        elif watched.seen_connected and counted:
            watched.lost += 1
        return watched

    def _death(self, watched: _Watched) -> str:
        """Why this worker is dead; empty if it is not."""
        status = watched.status
        if self._lease is None or status.state is WorkerState.FENCED:
            return ""
        if status.state is WorkerState.GONE:
            return f"killed while it was blocked: {status.stalled}" if status.stalled else "killed"
        if watched.lost >= POLLS_AFTER_LOSS:
            return "its database connection is gone"
        if watched.silent >= self._lease:
            return f"silent for {self._lease} s"
        # all others wait for it, so its tasks are given up rather than everybody's
        return f"it has not said for {self._lease} s what it holds" if watched.behind >= self._lease else ""

    def _tell(self, deaths: dict[str, str], stopped: dict[str, str]) -> None:
        """Log who has died, whose reactor is blocked now, and whose is no longer."""
        for name in deaths.keys() - self._told:
            self._log.warn("worker {name} is dead: {why}", name=name, why=deaths[name])
            self._news[name] = deaths[name]
        self._told = set(deaths)
        if self._lease is not None:
            self._news |= stopped
        blocked = {status.info.name: status.stalled for status in self.alive if status.stalled}
        for name, text in blocked.items():
            if self._blocked.get(name) != text:
                self._log.warn("worker {name} is blocked: {what}", name=name, what=text)
        for name in self._blocked:
            if name not in blocked and any(status.info.name == name for status in self.alive):
                self._log.info("worker {name} is not blocked any more", name=name)
        self._blocked = blocked

    def _take_back_from(self, dead: dict[str, int]) -> None:
        """Take back what the dead hold: at once, and later what is left of those that died earlier. Polls go on
        meanwhile, since a lock on the tasks may take long."""
        now = self._clock.seconds()
        if self._lease is None or self._taking or not (self._news or now >= self._orphans_at):
            return
        self._taking = True
        self._orphans_at = now + (ORPHANS_SOON if now < self._soon_until else ORPHANS_EVERY)
        why = "; ".join(f"worker {name}: {why}" for name, why in self._news.items()) or ORPHANED
        self._news.clear()
        Deferred.fromCoroutine(self._take_back_now(dead, why))

    async def _take_back_now(self, dead: dict[str, int], why: str) -> None:
        """Never fails."""
        try:
            self._take_back.taken(await self._store.take_back(dead), why)
            if dead:
                # what their owners had cancelled and retried waits now, and is not among these tasks
                self._dispatcher.gap()
        except Unavailable as e:
            self._log.debug("tasks are taken back later: {why}", why=str(e))
            # it may have been committed
            self._dispatcher.gap()
            self._give_time()
        except Exception:
            self._log.failure("tasks cannot be taken back")
            self._give_time()
        finally:
            self._taking = False

    def _give_time(self) -> None:
        """The database takes no changes, so perhaps it takes no beats either: everybody gets half a lease to beat."""
        for watched in self._watched.values():
            watched.silent, watched.lost = min(watched.silent, (self._lease or 0) // 2), 0
        self._search_soon()

    def _search_soon(self) -> None:
        """For a while there may be orphans."""
        now = self._clock.seconds()
        self._soon_until, self._orphans_at = now + SOON_FOR, min(self._orphans_at, now + ORPHANS_SOON)
