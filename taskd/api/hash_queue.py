"""Whose password is hashed next.

A hash takes about a quarter of a second of computing, so a line forms as soon as many log in at once. It is fair by the
source of a login (:func:`taskd.model.addresses.network_of`): sources take turns, and each has a line of its own. So
however many logins one source sends, it delays another one by a single hash a round. Logins from known devices have a
lane of their own, which gets every second hash while both lanes wait, and all of them while the other is empty. What
nobody waits for has a third lane, which is served one at a time while the others are empty.
Source of the turns: Nagle, "On packet switches with infinite storage", RFC 970, 1985, and for who leaves a full line
McKenney, "Stochastic fairness queueing", 1990: the last one of the longest line.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from taskd.api.crowds import Crowds
from taskd.model.errors import Draining, RateLimited

RunHash = Callable[..., Awaitable[Any]]
"""Runs a blocking function in another thread; its result comes later."""

MAX_WAITING = 10_000
"""Logins that wait in a lane."""

MAX_WAITING_EACH = 1_000
"""Those of one source."""

MAX_LEISURE = 16
"""Calls that nobody waits for and that wait for a free thread. Each holds a password."""

MAX_THREADS = 4
"""The most threads that are taken without being asked for: the reactor and the workers need the other cores."""

FIRST_GUESS = 0.25
"""Seconds that a hash takes, until one has been measured."""

_REFUSED_AT_A_TIME = 100
"""Calls of ``admit`` that may refuse in one turn of the reactor."""


def default_threads() -> int:
    """As many threads as this process may use cores, at most MAX_THREADS."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cores = os.cpu_count() or 1
    return min(cores, MAX_THREADS)


class HashPool:
    """Threads for bcrypt, which releases the GIL. At most as many calls as threads are in the pool; the others wait
    outside, so that :meth:`stop` waits only for the hashes under way."""

    def __init__(self, reactor: IReactorFromThreads, threads: int = 2) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(1, threads, "bcrypt")
        self._free = DeferredSemaphore(threads)

    def start(self) -> None:
        """Start the threads."""
        self._pool.start()

    def stop(self) -> None:
        """End the threads after the hashes under way; waiting calls are never run."""
        self._pool.stop()

    def __call__(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        return self._free.run(deferToThreadPool, self._reactor, self._pool, function, *args)


def _admit() -> None:
    """Nothing is against it."""


@dataclass(frozen=True)
class Place:
    """Where somebody waits. ``owner`` is the connection, so that its calls leave the line when it is closed. ``admit``
    is called just before the hash begins; if it raises, the caller gets this error instead of a hash. ``is_hash`` is
    False for what takes no time."""

    network: str
    known: bool = False
    owner: Hashable = None
    admit: Callable[[], None] = _admit
    is_hash: bool = True


LEISURE = Place("", known=True)
"""The place of calls that nobody waits for."""


class _Job:
    """A function that waits for a thread, or runs."""

    def __init__(self, place: Place, function: Callable[..., Any], args: tuple[Any, ...], leave: Any) -> None:
        self.place = place
        self.function = function
        self.args = args
        self.done: Deferred[Any] = Deferred(lambda _: leave(self))


class _Lane:
    """The lines of all sources, which take turns."""

    def __init__(self, most: int, most_each: int) -> None:
        self._most = most
        self._most_each = most_each
        self._lines: OrderedDict[str, OrderedDict[_Job, None]] = OrderedDict()
        self._crowds: Crowds[str] = Crowds()

    def __len__(self) -> int:
        return self._crowds.total

    def put(self, job: _Job) -> _Job | None:
        """Let a job wait. Returns the one for which no place is left: this one, or the last one of the longest line, if
        that is longer than the line of this one becomes."""
        network = job.place.network
        own = self._crowds.count(network)
        gone = None
        if own >= self._most_each:
            return job
        if self._crowds.total >= self._most:
            longest = self._crowds.largest()
            if self._crowds.count(longest) <= own + 1:
                return job
            gone = next(reversed(self._lines[longest]))
            self.remove(gone)
        self._lines.setdefault(network, OrderedDict())[job] = None
        self._crowds.add(network)
        return gone

    def next(self) -> _Job:
        """Take out the job whose turn it is. Its source goes to the end."""
        network, line = self._lines.popitem(last=False)
        job, _ = line.popitem(last=False)
        if line:
            self._lines[network] = line
        self._crowds.remove(network)
        return job

    def remove(self, job: _Job) -> bool:
        """Take out this job. False if it does not wait."""
        line = self._lines.get(job.place.network)
        if line is None or job not in line:
            return False
        del line[job]
        if not line:
            del self._lines[job.place.network]
        self._crowds.remove(job.place.network)
        return True

    def ahead(self, network: str) -> int:
        """Jobs that would run, at the most, before one more of this source."""
        rounds = self._crowds.count(network) + 1
        return min(self._crowds.total, rounds * len(self._crowds))

    def clear(self) -> list[_Job]:
        """Take out all."""
        jobs = [job for line in self._lines.values() for job in line]
        self._lines.clear()
        self._crowds = Crowds()
        return jobs


class HashQueue:
    """Lets at most ``threads`` calls at a time through to ``run_hash``; the others wait their turn.

    Everything but :meth:`leave` and :meth:`stop` takes constant time, whatever waits.
    """

    def __init__(
        self,
        clock: IReactorTime,
        run_hash: RunHash,
        threads: int,
        most: int = MAX_WAITING,
        most_each: int = MAX_WAITING_EACH,
    ) -> None:
        self._clock = clock
        self._run_hash = run_hash
        self._threads = threads
        self._free = threads
        self._strangers = _Lane(most, most_each)
        self._known = _Lane(most, most_each)
        self._leisure = _Lane(MAX_LEISURE, MAX_LEISURE)
        self._at_leisure = False
        """Whether a call of this lane is under way."""
        self._last = self._strangers
        """The lane that had the latest turn."""
        self._owned: dict[Hashable, set[_Job]] = {}
        self._starting = False
        self._next_start: IDelayedCall | None = None
        self._stopped = False
        self._hash_seconds = FIRST_GUESS
        self._measured = False

    @property
    def waiting(self) -> int:
        """Calls that somebody waits for and that have not begun."""
        return len(self._strangers) + len(self._known)

    @property
    def hash_seconds(self) -> float:
        """How long a hash takes, as measured lately."""
        return self._hash_seconds

    def run(self, place: Place, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Call the function in a thread when it is its turn. The Deferred fires with what it returns or raises. It
        fails with what ``place.admit`` raises; with RateLimited if there is no place in the line, or no longer; and
        with Draining when the owner is gone or the queue stops. To cancel it is to leave the line.

        A call whose place is LEISURE begins in a later turn of the reactor, when no other waits. If others wait now, it
        fails with RateLimited."""
        job = _Job(place, function, args, self._leave)
        if self._stopped:
            job.done.errback(_stopping())
            return job.done
        if place is LEISURE:
            if self.waiting or self._leisure.put(job) is job:
                job.done.errback(self._no_place(place))
            else:
                self._start_later()
            return job.done
        lane = self._lane(place)
        gone = lane.put(job)
        if gone is not job and place.owner is not None:
            self._owned.setdefault(place.owner, set()).add(job)
        if gone is not None:
            self._disown(gone)
            gone.done.errback(self._no_place(gone.place))
        self._start()
        return job.done

    def leave(self, owner: Hashable) -> None:
        """This owner is gone: its waiting calls leave the line. A hash that has begun goes on."""
        for job in self._owned.pop(owner, ()):
            if self._lane(job.place).remove(job):
                job.done.errback(Draining("this connection is closed; connect again"))

    def stop(self) -> None:
        """All that wait fail with Draining, and all that come."""
        self._stopped = True
        if self._next_start is not None:
            self._next_start.cancel()
            self._next_start = None
        self._owned.clear()
        for job in self._known.clear() + self._strangers.clear() + self._leisure.clear():
            job.done.errback(_stopping())

    def wait_seconds(self, network: str, known: bool = False) -> float:
        """How long, at the most, one more login of this source would wait in the line as it is now."""
        lane = self._known if known else self._strangers
        other = self._strangers if known else self._known
        # while both lanes wait, each gets every second hash
        hashes = lane.ahead(network) + min(lane.ahead(network), len(other))
        return (hashes / self._threads + 1) * self._hash_seconds

    def _no_place(self, place: Place) -> RateLimited:
        seconds = max(1, math.ceil(self.wait_seconds(place.network, place.known)))
        return RateLimited(f"too many logins wait; try again in {seconds} seconds", retry_after=seconds)

    def _lane(self, place: Place) -> _Lane:
        if place is LEISURE:
            return self._leisure
        return self._known if place.known else self._strangers

    def _leave(self, job: _Job) -> None:
        if self._lane(job.place).remove(job):
            self._disown(job)

    def _disown(self, job: _Job) -> None:
        jobs = self._owned.get(job.place.owner)
        if jobs is not None:
            jobs.discard(job)
            if not jobs:
                del self._owned[job.place.owner]

    def _start(self) -> None:
        """Give the free threads to those whose turn it is."""
        if self._starting:
            return  # a caller that was refused has come again at once
        self._starting = True
        refused = 0
        try:
            while self._free and self.waiting and refused < _REFUSED_AT_A_TIME:
                first, second = self._known, self._strangers
                if self._last is self._known:
                    first, second = second, first
                lane = first if first else second
                job = lane.next()
                self._disown(job)
                try:
                    job.place.admit()
                except Exception:
                    refused += 1
                    job.done.errback(Failure())
                    continue
                self._last = lane
                self._begin(job)
        finally:
            self._starting = False
        if self._free and self.waiting:
            self._start_later()

    def _start_later(self) -> None:
        if self._next_start is None:
            self._next_start = self._clock.callLater(0, self._start_again)

    def _start_again(self) -> None:
        self._next_start = None
        self._start()
        if self._free and self._leisure and not (self.waiting or self._at_leisure):
            self._at_leisure = True
            self._begin(self._leisure.next())

    def _begin(self, job: _Job) -> None:
        self._free -= 1
        began = self._clock.seconds()
        Deferred.fromCoroutine(self._call(job)).addBoth(self._ended, job, began)

    async def _call(self, job: _Job) -> Any:
        return await self._run_hash(job.function, *job.args)

    def _ended(self, result: Any, job: _Job, began: float) -> None:
        self._free += 1
        if not isinstance(result, Failure) and job.place.is_hash:
            self._measure(self._clock.seconds() - began)
        # before the next one begins, because what has become of this one may be the reason to refuse that
        if not job.done.called:  # as it is when the caller has cancelled it meanwhile
            job.done.callback(result)
        if job.place is LEISURE:
            self._at_leisure = False
        self._start()
        if self._leisure and not self._stopped:
            self._start_later()

    def _measure(self, seconds: float) -> None:
        self._hash_seconds += (seconds - self._hash_seconds) * (0.1 if self._measured else 1.0)
        self._measured = True


def _stopping() -> Draining:
    return Draining("this server is stopping; connect again", retry_after=1)
