"""When a client tries again: the pauses between attempts, a loop for one that lost its connection, and requests that
create tasks, sent until they are confirmed.

Each task carries a key, so a request whose reply was lost can be sent again: the server then answers with the task
that the first request created.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from taskd.client.connection import REPLY_SECONDS, Connection
from taskd.client.errors import ClientError, Unconfirmed
from taskd.client.messages import Received

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0

GIVE_UP_SECONDS = 60.0
"""How long to keep trying after the first failure. A confirmation starts it afresh."""

LEAST_REPLY_SECONDS = 10.0
"""The least time that the server gets for a reply, however little of GIVE_UP_SECONDS is left."""


class RetryListener(Protocol):
    """Is called when the client begins to wait for the server, and when the server works again."""

    def waiting(self, error: ClientError) -> None:
        """The first pause begins, because of this error."""

    def reconnected(self) -> None:
        """An attempt has succeeded. Comes only after :meth:`waiting`."""


class Backoff:
    """Exponential backoff with jitter, so that many clients do not come back at the same moment.

    Each pause is a random part of a limit that doubles: between half of it and all of it ("equal jitter", Brooker,
    Exponential Backoff And Jitter, AWS 2015).
    """

    def __init__(self, clock: IReactorTime, listener: RetryListener) -> None:
        self._clock = clock
        self._listener = listener
        self._limit = FIRST_PAUSE
        self._waiting = False

    def next_pause(self) -> float:
        """The length of the next pause, in seconds."""
        limit, self._limit = self._limit, min(self._limit * 2, LONGEST_PAUSE)
        return random.uniform(limit / 2, limit)

    async def wait(self, error: ClientError, most: float) -> None:
        """Pause for at least ``error.retry_after`` and at most ``most`` seconds."""
        if not self._waiting:
            self._waiting = True
            self._listener.waiting(error)
        await deferLater(self._clock, min(max(self.next_pause(), error.retry_after), most))

    def reset(self) -> None:
        """An attempt has succeeded: the next pause is a short one."""
        self._limit = FIRST_PAUSE
        if self._waiting:
            self._waiting = False
            self._listener.reconnected()


class Reconnector:
    """Repeats an attempt when its connection is lost. ``deadline`` is in seconds of the clock.

    The first connection must work: until :meth:`connected` is called, :meth:`run` raises every error.
    """

    def __init__(self, clock: IReactorTime, listener: RetryListener, deadline: float = math.inf) -> None:
        self._clock = clock
        self._deadline = deadline
        self._backoff = Backoff(clock, listener)
        self._was_connected = False

    def connected(self) -> None:
        """The attempt has reached the server."""
        self._was_connected = True
        self._backoff.reset()

    async def run(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """Return when an attempt has succeeded, or after the deadline. Raises ClientError if it is not transient."""
        while True:
            try:
                return await attempt()
            except ClientError as e:
                if not (self._was_connected and e.transient):
                    raise
                left = self._deadline - self._clock.seconds()
                if left <= 0:
                    return
                await self._backoff.wait(e, left)


class Confirmation(NamedTuple):
    """The reply that confirms a request. If ``resent``, a duplicate in it may come from an earlier attempt of ours."""

    reply: Received
    resent: bool


class Resender:
    """Sends requests again after a failure. Concurrent requests share one attempt to reconnect.

    ``connect`` opens a connection and sends the login; ``connection`` is one that is open already. The first
    connection must work, because nothing has been sent before it.
    """

    def __init__(
        self,
        clock: IReactorTime,
        connect: Callable[[], Awaitable[Connection]],
        listener: RetryListener,
        connection: Connection | None = None,
    ) -> None:
        self._clock = clock
        self._connect = connect
        self._listener = listener
        self._backoff = Backoff(clock, listener)
        self._sending = DeferredLock()
        self._error: Exception | None = None
        self._failing_since: float | None = None
        self._throttled = False
        self.connection = connection
        """The newest connection, which may be lost."""

    async def send(self, action: str, key: str | None, /, **fields: Any) -> Confirmation:
        """Send a request until it is confirmed. ``key`` is None for a request that creates nothing.

        Raises Unconfirmed with the key if the tasks may exist or not, another ClientError if none was created.
        """
        uncertain = False
        try:
            while True:
                async with self._sending:  # one reconnects for all; then they send in their order
                    connection = await self._connected()
                    answer = connection.request(action, self._reply_timeout(), **fields)
                try:
                    reply = await answer
                except ClientError as e:
                    uncertain = uncertain or not e.nothing_done
                    await self._prepare_retry(e, connection)
                else:
                    self._failing_since = None
                    self._backoff.reset()
                    return Confirmation(reply, uncertain)
        except ClientError as e:
            # A conflict proves that no attempt has created a task under this key
            if key is None or not uncertain or e.code == "conflict":
                raise
            raise Unconfirmed(e, key) from None

    def close(self) -> None:
        """End the connection."""
        if self.connection is not None:
            self.connection.close()

    async def _prepare_retry(self, e: ClientError, connection: Connection) -> None:
        """Return when the request may be sent again. Raises the error if that would not help."""
        if not e.transient:
            raise e
        if e.code == "rate_limited" and connection.lost is None:
            left = self._seconds_left(e)
            if not self._throttled:
                self._throttled = True
                self._listener.waiting(e)
            await deferLater(self._clock, e.retry_after or min(self._backoff.next_pause(), left))
        elif connection is self.connection and self._error is None:
            # It is lost, or it leads to a server that cannot do it now
            self._error = e
            connection.close_when_answered()

    async def _connected(self) -> Connection:
        if self.connection is not None and self._error is None:
            if self.connection.lost is None:
                return self.connection
            self._error = self.connection.lost
        while True:
            if self._error is not None:
                if not isinstance(self._error, ClientError) or not self._error.transient:
                    raise self._error
                await self._backoff.wait(self._error, self._seconds_left(self._error))
            try:
                self.connection = await self._connect()
            except ClientError as e:
                if self.connection is None:
                    raise
                self._error = e
            else:
                self._error = None
                return self.connection

    def _seconds_left(self, error: ClientError) -> float:
        """How long to keep trying, counted from the first failure. Raises the error if that is not enough."""
        now = self._clock.seconds()
        if self._failing_since is None:
            self._failing_since = now
        left = self._failing_since + GIVE_UP_SECONDS - now
        if left <= 0 or error.retry_after > left:
            raise error
        return left

    def _reply_timeout(self) -> float:
        if self._failing_since is None:
            return REPLY_SECONDS
        return max(self._failing_since + GIVE_UP_SECONDS - self._clock.seconds(), LEAST_REPLY_SECONDS)
