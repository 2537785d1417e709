"""Sending what creates tasks until it is confirmed, over as many connections as it takes.

Each task carries a key, so that a request whose answer is lost can be sent again: the server then answers with the
task of the first time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from taskd.cli.context import Context, explain
from taskd.cli.retrying import Pauses
from taskd.client.connection import REPLY_SECONDS, LineClient, Received
from taskd.client.errors import ClientError, Unconfirmed

GIVE_UP_SECONDS = 60.0
"""How long after the first trouble it is tried, unless something is confirmed meanwhile."""

LEAST_PATIENCE = 10.0
"""What an attempt gets at least, however little of that time is left."""


class Delivered(NamedTuple):
    """A confirmation. When ``resent``, what it calls a duplicate may be from an earlier attempt of the same request."""

    reply: Received
    resent: bool


class Resender:
    """``connect`` makes a connection that is logged in, or is being so; ``client`` is one that is there already.

    Several requests may be under way; after trouble they share one attempt to connect. The first connection has to
    work, for until then nothing has been sent.
    """

    def __init__(
        self, ctx: Context, connect: Callable[[], Awaitable[LineClient]], client: LineClient | None = None
    ) -> None:
        self._ctx = ctx
        self._connect = connect
        self._connecting: Deferred[Any] | None = None
        self._waiting: list[Deferred[LineClient]] = []
        self._pauses = Pauses(ctx)
        self._trouble: Exception | None = None
        self._since: float | None = None
        self._told_to_wait = False
        self.client = client
        """The newest connection, lost perhaps."""

    async def send(self, action: str, key: str | None, /, **fields: Any) -> Delivered:
        """Send a request until it is confirmed. ``key`` is None for one that creates nothing, and so can be repeated.

        Raises Unconfirmed, naming the key, when nobody knows what became of the tasks; another ClientError when none
        of them was created.
        """
        uncertain = False
        try:
            while True:
                client = await self._connected()
                try:
                    reply = await client.request(action, self._patience(), **fields)
                except ClientError as e:
                    uncertain = uncertain or not e.undone
                    await self._overcome(e, client)
                else:
                    self._confirmed()
                    return Delivered(reply, uncertain)
        except ClientError as e:
            # Who is told of a conflict has no task under this key, whatever became of the earlier attempts
            if key is None or not uncertain or e.code == "conflict":
                raise
            raise Unconfirmed(e, key, explain(e, self._ctx.texts)) from None

    def close(self) -> None:
        """End the connection."""
        if self.client is not None:
            self.client.close()

    async def _overcome(self, e: ClientError, client: LineClient) -> None:
        """Make ready for another attempt. Raises the error when that would not help."""
        if not e.transient:
            raise e
        if e.code == "rate_limited" and client.lost is None:
            await self._be_slower(e)
        elif client is self.client and self._trouble is None:
            # It has been lost, or leads to a server that cannot do it now
            self._trouble = e
            client.finish()

    async def _be_slower(self, e: ClientError) -> None:
        left = self._left(e)
        if not self._told_to_wait:
            self._told_to_wait = True
            self._ctx.out.note(self._ctx.texts("retrying", why=explain(e, self._ctx.texts)))
        await self._ctx.sleep(e.retry_after or min(self._pauses.next(), left))

    def _connected(self) -> Deferred[LineClient]:
        """The connection, or a new one, which all who wait for it get in their order."""
        if self.client is not None and self.client.lost is None and self._trouble is None:
            return succeed(self.client)
        waiting: Deferred[LineClient] = Deferred(self._no_longer_waits)
        self._waiting.append(waiting)
        if self._connecting is None:
            self._connecting = Deferred.fromCoroutine(self._connect_again())
            self._connecting.addCallbacks(self._hand_out, self._hand_out)
        return waiting

    def _hand_out(self, result: LineClient | Failure) -> None:
        self._connecting = None
        all_waiting, self._waiting = self._waiting, []
        for waiting in all_waiting:
            if isinstance(result, Failure):
                waiting.errback(result)
            else:
                waiting.callback(result)

    def _no_longer_waits(self, waiting: Deferred[LineClient]) -> None:
        # A hand-out that is under way has taken the list
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            if not self._waiting and self._connecting is not None:
                self._connecting.cancel()

    async def _connect_again(self) -> LineClient:
        if self.client is not None and self._trouble is None:
            self._trouble = self.client.lost
        while True:
            if self._trouble is not None:
                await self._pause(self._trouble)
            try:
                self.client = await self._connect()
            except ClientError as e:
                if self.client is None:
                    raise
                self._trouble = e
            else:
                self._trouble = None
                return self.client

    async def _pause(self, why: Exception) -> None:
        if not isinstance(why, ClientError) or not why.transient:
            raise why
        await self._pauses.wait(why, self._left(why))

    def _left(self, why: ClientError) -> float:
        """How long it may still be tried, from the first trouble on. Raises the latest when that is not enough."""
        now = self._ctx.clock.seconds()
        if self._since is None:
            self._since = now
        left = self._since + GIVE_UP_SECONDS - now
        if left <= 0 or why.retry_after > left:
            raise why
        return left

    def _patience(self) -> float:
        if self._since is None:
            return REPLY_SECONDS
        return max(self._since + GIVE_UP_SECONDS - self._ctx.clock.seconds(), LEAST_PATIENCE)

    def _confirmed(self) -> None:
        self._since = None
        self._pauses.over()
