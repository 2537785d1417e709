"""Requests that the server may put off: logins, registrations and everything else that checks a password.

Such a request costs the server a fraction of a second, so many at once form a line. The server answers those in it
when it is their turn, which may take minutes. It tells the others when they may come again; a client that waits so
long and then asks again is let in.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from taskd.client.connection import REPLY_SECONDS, Connection
from taskd.client.errors import ClientError, Refused
from taskd.client.messages import Received

WAIT_SECONDS = 300.0
"""How long one request waits in all."""

SPREAD = 0.1
"""By which part a pause is longer at most, so that not everybody comes back at the same moment."""

LEAST_PAUSE = 1.0
"""The shortest pause, whatever the server says."""

SLOW_SECONDS = 5.0
"""After so long without a reply, the listener is told."""


class AdmissionListener(Protocol):
    """Is told while a request waits."""

    def put_off(self, error: ClientError, seconds: float) -> None:
        """The request waits for ``seconds`` more because of this error. Comes at the start and then every second."""

    def slow(self) -> None:
        """The server has not answered for SLOW_SECONDS."""

    def resumed(self) -> None:
        """The pause is over, or the command was interrupted."""


class Admission:
    """Sends requests, and sends one again that was put off, for ``most`` seconds in all. A reply may take as long, and
    at least REPLY_SECONDS.

    ``connect`` opens a connection. The next one is opened only when the server has closed the one before.
    """

    def __init__(
        self,
        clock: IReactorTime,
        connect: Callable[[], Awaitable[Connection]],
        listener: AdmissionListener,
        most: float = WAIT_SECONDS,
    ) -> None:
        self._clock = clock
        self._connect = connect
        self._listener = listener
        self._left = most
        self._reply_timeout = max(most, REPLY_SECONDS)
        self._connection: Connection | None = None

    async def connection(self) -> Connection:
        """The open connection, or a new one. Raises ClientError."""
        if self._connection is None or self._connection.lost is not None:
            self._connection = await self._connect()
        return self._connection

    async def request(self, action: str, **fields: Any) -> Received:
        """The reply to a request. Raises Refused, also if the wait would be too long, or another ClientError."""
        while True:
            connection = await self.connection()
            slow = self._clock.callLater(SLOW_SECONDS, self._listener.slow)
            try:
                return await connection.request(action, self._reply_timeout, **fields)
            except Refused as e:
                if e.code != "rate_limited" or not e.retry_after:
                    raise
                refusal = e
            finally:
                if slow.active():
                    slow.cancel()
            await self._pause(refusal)

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()

    async def _pause(self, e: Refused) -> None:
        """Wait as long as the server has said. Raises the error if that is too long."""
        pause = max(e.retry_after, LEAST_PAUSE)
        if pause > self._left:
            raise e
        self._left -= pause
        end = self._clock.seconds() + pause * random.uniform(1, 1 + SPREAD)
        try:
            while (left := end - self._clock.seconds()) > 0:
                self._listener.put_off(e, left)
                await deferLater(self._clock, min(left, 1.0))
        finally:
            self._listener.resumed()
