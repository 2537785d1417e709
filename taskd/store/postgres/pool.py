"""A pool of connections that come back by themselves.

It knows nothing of PostgreSQL: a connection is anything that opens, closes and tells when it dies while idle.
It is used for one piece of work at a time, and never again once it is suspect.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.model.errors import Unavailable
from taskd.store.retrying import MAX_DELAY, closed, delay

R = TypeVar("R")


class OutcomeUnknown(Exception):
    """The connection died under the work. Whether the work was done is unknown."""


class IPooled(Protocol):
    """What the pool asks of a connection."""

    def open(self, on_lost: Callable[[BaseException], None]) -> Awaitable[None]:
        """Connect, in bounded time. ``on_lost`` tells of a death at any later time but close()."""

    def close(self) -> None:
        """Let go at once; whatever is under way, open() included, fails."""


C = TypeVar("C", bound=IPooled)


class Pool(Generic[C]):
    """Keeps ``size`` connections open and lends them out.

    ``make`` makes an unopened connection; ``is_dead`` tells from an exception of the work whether the
    connection can serve no more. A caller waits up to ``wait`` seconds for a connection. ``jitter`` gives numbers
    from 0 to 1.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        make: Callable[[], C],
        is_dead: Callable[[BaseException], bool],
        *,
        name: str,
        size: int = 6,
        wait: float = 5.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._make = make
        self._is_dead = is_dead
        self._name = name
        self._size = size
        self._wait = wait
        self._jitter = jitter
        self._live: set[C] = set()
        # opened, but nothing was done on them yet: one that dies so is no reason to hurry
        self._unproven: set[C] = set()
        self._idle: list[C] = []
        self._waiting: deque[Deferred[C]] = deque()
        self._opening: C | None = None
        self._retry: IDelayedCall | None = None
        self._failures = 0
        self._trouble = False
        self._running = False
        self._stopped = False

    @property
    def live(self) -> int:
        """How many connections are open."""
        return len(self._live)

    def start(self) -> None:
        """Begin to connect. After stop() it does nothing."""
        self._running = not self._stopped
        self._fill()

    def stop(self) -> None:
        """Close everything; work under way is lost and callers that wait get Unavailable."""
        self._running, self._stopped = False, True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        connections = [*self._live, *([self._opening] if self._opening else [])]
        self._live.clear()
        self._unproven.clear()
        self._idle.clear()
        for connection in connections:
            connection.close()
        while self._waiting:
            self._waiting.popleft().errback(closed())

    async def run(self, work: Callable[[C], Awaitable[R]]) -> R:
        """Do ``work`` on a connection. Raises Lost, Unavailable, or what the work raises."""
        connection = await self._acquire()
        try:
            result = await work(connection)
        except (CancelledError, GeneratorExit) as e:
            # whoever stops waiting leaves a connection that still has an answer coming: no fault of the database
            self._unproven.discard(connection)
            self._discard(connection, e)
            raise
        except Exception as e:
            if self._is_dead(e):
                self._discard(connection, e)
                raise OutcomeUnknown(reason(e)) from e
            self._proved(connection)
            raise
        self._proved(connection)
        return result

    # -- lending

    def _acquire(self) -> Deferred[C]:
        done: Deferred[C] = Deferred(self._forget)
        if self._idle:
            # the one used last: its caches are warm
            done.callback(self._idle.pop())
        elif self._stopped:
            done.errback(closed())
        elif not self._running:
            done.errback(self._unavailable("cannot be reached yet"))
        else:
            self._waiting.append(done)
            timer = self._clock.callLater(self._wait, self._give_up, done)
            done.addBoth(_cancel_timer, timer)
        return done

    def _give_up(self, done: Deferred[C]) -> None:
        self._forget(done)
        done.errback(self._unavailable("has no connection free" if self._live else "cannot be reached now"))

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable(f"{self._name} {why}; try again", retry_after=MAX_DELAY)

    def _forget(self, done: Deferred[C]) -> None:
        if done in self._waiting:
            self._waiting.remove(done)

    def _proved(self, connection: C) -> None:
        self._unproven.discard(connection)
        self._failures = 0
        self._release(connection)

    def _release(self, connection: C) -> None:
        if connection not in self._live:
            return
        if self._waiting:
            self._waiting.popleft().callback(connection)
        else:
            self._idle.append(connection)

    # -- connecting

    def _fill(self) -> None:
        # One at a time: a database that is coming up is not helped by a crowd.
        wanted = self._running and len(self._live) < self._size
        if wanted and self._opening is None and self._retry is None:
            connection = self._opening = self._make()
            opened = Deferred.fromCoroutine(self._open(connection))
            opened.addErrback(lambda f: self.log.failure("opening a connection", f))

    async def _open(self, connection: C) -> None:
        try:
            await connection.open(lambda e: self._discard(connection, e))
        except Exception as e:
            connection.close()
            self._opening = None
            if self._running:
                self._open_failed(e)
            return
        self._opening = None
        if not self._running:
            connection.close()
            return
        self._live.add(connection)
        self._unproven.add(connection)
        if self._trouble and len(self._live) == self._size:
            self._trouble = False
            self.log.info("{name}: all {size} connections are open again", name=self._name, size=self._size)
        self._release(connection)
        self._fill()

    def _open_failed(self, e: Exception) -> None:
        self._tell("{name}: cannot connect, trying on: {reason}", e)
        self._back_off()

    def _discard(self, connection: C, e: BaseException) -> None:
        if connection not in self._live:
            return
        self._live.remove(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if isinstance(e, Exception) and not isinstance(e, CancelledError):
            self._tell("{name}: connection lost, connecting again: {reason}", e)
        connection.close()
        if connection in self._unproven:
            self._unproven.remove(connection)
            self._back_off()
        else:
            self._fill()

    def _back_off(self) -> None:
        if self._retry is None:
            self._retry = self._clock.callLater(delay(self._failures, self._jitter), self._try_again)
            self._failures += 1

    def _try_again(self) -> None:
        self._retry = None
        self._fill()

    def _tell(self, text: str, e: BaseException) -> None:
        # one line an incident, not one a connection
        if not self._trouble:
            self._trouble = True
            self.log.warn(text, name=self._name, reason=reason(e))


def _cancel_timer(result: C | Failure, timer: IDelayedCall) -> C | Failure:
    if timer.active():
        timer.cancel()
    return result


def reason(e: BaseException) -> str:
    """The first line of what an exception says, for the log."""
    return (str(e).strip() or type(e).__name__).splitlines()[0]
