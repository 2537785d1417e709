"""``watch``: every change of the user's tasks, across lost connections."""

from __future__ import annotations

from argparse import Namespace
from contextlib import closing

from msgspec import Struct

from taskd.cli.context import Context
from taskd.cli.errors import OK
from taskd.cli.ui.changes import ChangePrinter
from taskd.client.connection import Connection
from taskd.client.messages import Received
from taskd.client.retry import Reconnector
from taskd.protocol.limits import MAX_PAGE

WATCH_COLUMNS = ("id", "status", "state", "age", "text")


async def watch(ctx: Context, options: Namespace) -> int:
    """Show changes until Ctrl-C."""
    return await Watcher(ctx, options.limit).run()


class ReturnedEvent(Struct):
    """Workers that were stopping have given a task back so often."""

    task_id: int
    returns: int


class Watcher:
    """Shows the newest tasks, then every change, until it is interrupted."""

    def __init__(self, ctx: Context, limit: int) -> None:
        self._ctx = ctx
        self._limit = limit
        self._changes = ChangePrinter(ctx)
        self._reconnector = Reconnector(ctx.clock, ctx.reporter)
        self._first = True

    async def run(self) -> int:
        """Raises ClientError if the first connection fails, or if the server refuses."""
        with closing(self._changes.progress):
            await self._reconnector.run(self._attempt)
        return OK

    async def _attempt(self) -> None:
        # More tasks than the first snapshot has may have changed while there was no connection
        limit = self._limit if self._first else MAX_PAGE
        connection, (answer,) = await self._ctx.connector.send(("watch", {"limit": limit}), on_event=self._event)
        with closing(connection):
            self._snapshot(await answer)
            self._reconnector.connected()
            connection.keep_alive()
            await connection.wait_until_lost()

    def _event(self, connection: Connection, received: Received) -> None:
        if self._ctx.json:
            self._ctx.out.raw(received.line)
        if received.body.event == "task":
            self._changes.show([self._ctx.view(received.body.task)])
        elif received.body.event == "progress":
            self._changes.show_progress(received)
        elif received.body.event == "returned":
            self._returned(received)
        elif received.body.event == "gap":
            answer = connection.request("watch", limit=MAX_PAGE)
            answer.addCallback(self._snapshot).addErrback(connection.abort_on)

    def _returned(self, received: Received) -> None:
        if not self._ctx.json:
            event = self._ctx.read(received.line, ReturnedEvent)
            self._ctx.note("returned", id=event.task_id, times=self._ctx.renderer.times(event.returns))

    def _snapshot(self, reply: Received) -> None:
        ctx, tasks = self._ctx, [self._ctx.view(raw) for raw in reply.body.tasks]
        if ctx.json:
            ctx.out.raw(reply.line)
        elif self._first:
            for task in reversed(tasks):
                self._changes.is_new(task)
            if tasks:
                ctx.out.lines(ctx.renderer.table(WATCH_COLUMNS).lines(ctx.renderer.rows(tasks, ctx.now())))
            if ctx.out.tty:
                ctx.note("watching")
        else:
            self._changes.progress.reset()
            self._changes.show(reversed(self._changes.missed(tasks)))
        self._changes.show_running(tasks)
        self._first = False
