"""Requests of this server with the same idempotency key, one after the other.

If two of them were stored at the same time, the database would refuse the whole batch because of the second, and
everybody's tasks in it would have to be stored again.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from twisted.internet.defer import Deferred

from taskd.model.errors import Unavailable
from taskd.ports.tasks import Keyed

Key = tuple[int, str]
"""A user's id and an idempotency key."""


class Turn:
    """``with turn:`` is the time in which one request looks up and stores its ``keys``; no other request of this server
    does that with one of them. ``known`` has those whose task is known: what the request learns it adds there, and
    requests that wait for it read it there."""

    def __init__(self, turns: KeyTurns, number: int, known: dict[Key, Keyed], keys: Sequence[Key]) -> None:
        self.number = number
        self.known = known
        self.keys = keys
        self.unavailable: Unavailable | None = None
        self._turns = turns
        self._waiting: list[Deferred[None]] = []

    def ended(self) -> Deferred[None]:
        """Fires when it has ended."""
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        return done

    def __enter__(self) -> Turn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Unavailable):
            self.unavailable = error
        self._turns.forget(self)
        for done in self._waiting:
            done.callback(None)


class KeyTurns:
    """A request takes all its keys at once, when nobody has any of them. While it waits it has none, so no two requests
    wait for each other."""

    def __init__(self) -> None:
        self._holders: dict[Key, Turn] = {}
        self._begun = 0

    async def take(self, keys: Sequence[Key]) -> Turn:
        """Wait for requests that have some of these keys. The turn has the keys that are still unknown after that.

        Raises Unavailable if the store was away for a request that began after this one: that one has tried for both.
        """
        wanted, known, begun_before = set(keys), dict[Key, Keyed](), self._begun
        waited = True
        while waited:
            waited = False  # else a key that was free when it was looked at may have been taken since
            for key in keys:
                while key not in known and (other := self._holders.get(key)) is not None:
                    waited = True
                    await other.ended()
                    # views intersect by the smaller one: each of many may wait for one request with many keys
                    known.update((found, other.known[found]) for found in wanted & other.known.keys())
                    if other.unavailable is not None and other.number > begun_before:
                        raise _same(other.unavailable)
        self._begun += 1
        turn = Turn(self, self._begun, known, [key for key in keys if key not in known])
        for key in turn.keys:
            self._holders[key] = turn
        return turn

    def forget(self, turn: Turn) -> None:
        """This turn has ended."""
        for key in turn.keys:
            del self._holders[key]


def _same(error: Unavailable) -> Unavailable:
    # an exception that is raised in many places gathers the tracebacks of all of them
    return Unavailable(error.message, field=error.field, retry_after=error.retry_after)
