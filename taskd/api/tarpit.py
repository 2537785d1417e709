"""Refusals that are answered late.

A refusal that came at once would cost a guesser nothing. A late one holds its connection, because a connection has one
login at a time.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from taskd.api.crowds import Crowds
from taskd.model.errors import Draining, RateLimited

HOLD_SECONDS = 5.0

MAX_HELD = 10_000
"""More than a full line of logins refuses to 200 addresses with 64 connections each. To hold a connection costs less
than to cut it: whoever is cut connects and tries again at once. ``bench.connections flood`` shows it."""

ANSWERED = 100
ANSWERED_SECONDS = 0.05
"""At most so many refusals are answered in so many seconds. Those of a flood end in waves, as it began, and another try
follows each at once: without a pause, the other clients would wait for the whole wave."""


class CutOff(RateLimited):
    """So many refusals are held already that this one gets no answer: the transport closes its connection."""


class _Held:
    """A refusal that waits for its time."""

    def __init__(self, error: RateLimited, network: str, owner: Hashable) -> None:
        self.error = error
        self.network = network
        self.owner = owner
        self.done: Deferred[None] = Deferred()
        self.timer: IDelayedCall | None = None


class Tarpit:
    """Holds at most ``most`` refusals. If there are more, the source with most of them is cut off first, so that one
    attacker does not have the connections of others closed."""

    def __init__(self, clock: IReactorTime, seconds: float = HOLD_SECONDS, most: int = MAX_HELD) -> None:
        self._clock = clock
        self._seconds = seconds
        self._most = most
        self._held: dict[str, OrderedDict[_Held, None]] = {}
        self._owned: dict[Hashable, _Held] = {}
        self._crowds: Crowds[str] = Crowds()
        self._due: deque[_Held] = deque()
        self._answered = 0
        self._until = float("-inf")
        self._next: IDelayedCall | None = None

    def __len__(self) -> int:
        return self._crowds.total

    async def refuse(self, error: RateLimited, network: str, owner: Hashable) -> None:
        """Raise this error after ``retry_after``, at most ``seconds``, and later if many end at once. Raises CutOff if
        there is no place, or no longer, and Draining if the owner is gone. An owner, a connection, waits here at most
        once."""
        seconds = min(error.retry_after or 0.0, self._seconds)
        if seconds <= 0:
            raise error
        if self._crowds.total >= self._most:
            largest = self._crowds.largest()
            if self._crowds.count(largest) <= self._crowds.count(network) + 1:
                raise _cut_off(error)
            longest = next(iter(self._held[largest]))
            self._end(longest, _cut_off(longest.error))
        held = _Held(error, network, owner)
        self._held.setdefault(network, OrderedDict())[held] = None
        self._owned[owner] = held
        self._crowds.add(network)
        held.timer = self._clock.callLater(seconds, self._is_due, held)
        await held.done

    def leave(self, owner: Hashable) -> None:
        """This owner is gone."""
        if owner in self._owned:
            self._end(self._owned[owner], Draining("this connection is closed; connect again"))

    def stop(self) -> None:
        """Raise all errors now."""
        self._due.clear()
        if self._next is not None:
            self._next.cancel()
            self._next = None
        for held in [each for some in self._held.values() for each in some]:
            self._end(held, held.error)

    def _is_due(self, held: _Held) -> None:
        self._due.append(held)
        if self._next is None:
            self._answer_due()

    def _answer_due(self) -> None:
        self._next = None
        now = self._clock.seconds()
        if now >= self._until:
            self._until, self._answered = now + ANSWERED_SECONDS, 0
        while self._due and self._answered < ANSWERED:
            held = self._due.popleft()
            # its owner may be gone, or it was cut off
            if not held.done.called:
                self._answered += 1
                self._end(held, held.error)
        if self._due:
            self._next = self._clock.callLater(ANSWERED_SECONDS, self._answer_due)

    def _end(self, held: _Held, error: Exception) -> None:
        some = self._held[held.network]
        del some[held]
        if not some:
            del self._held[held.network]
        if self._owned.get(held.owner) is held:
            del self._owned[held.owner]
        self._crowds.remove(held.network)
        if held.timer is not None and held.timer.active():
            held.timer.cancel()
        held.done.errback(error)


def _cut_off(error: RateLimited) -> CutOff:
    return CutOff(error.message, retry_after=error.retry_after)
