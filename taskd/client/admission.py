"""Requests that the server may put off: logins, registrations and everything else that checks a password.

Such a request costs the server a fraction of a second, so it lets only so many through, and says to the others when
they may come again. A client that waits and then asks again is let in; one that gives up has to be called again.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from taskd.client.connection import Connection
from taskd.client.errors import ClientError, Refused
from taskd.client.messages import Received

WAIT_SECONDS = 300.0
"""How long one request waits in all."""

SPREAD = 0.1
"""By which part a pause is longer at most, so that not everybody comes back at the same moment."""

LEAST_PAUSE = 1.0
"""The shortest pause, whatever the server says."""


class AdmissionListener(Protocol):
    """Is told while a request waits."""

    def put_off(self, error: ClientError, seconds: float) -> None:
        """The request waits for ``seconds`` more because of this error. Comes at the start and then every second."""

    def resumed(self) -> None:
        """The pause is over, or the command was interrupted."""


class Admission:
    """Sends requests, and sends one again that was put off, for ``most`` seconds in all.

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
        self._connection: Connection | None = None

    async def connection(self) -> Connection:
        """The open connection, or a new one. Raises ClientError."""
        if self._connection is None or self._connection.lost is not None:
            self._connection = await self._connect()
        return self._connection

    async def request(self, action: str, **fields: Any) -> Received:
        """The reply to a request. Raises Refused, also if the wait would be too long, or another ClientError."""
        while True:
            try:
                return await (await self.connection()).request(action, **fields)
            except Refused as e:
                if e.code != "rate_limited" or not e.retry_after:
                    raise
                await self._pause(e)

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
