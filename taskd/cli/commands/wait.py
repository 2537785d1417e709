"""``wait`` and ``add --wait``: waiting until tasks have ended, across lost connections."""

from __future__ import annotations

import itertools
import math
from argparse import Namespace
from collections import deque
from collections.abc import Iterable
from contextlib import closing
from typing import Any

from twisted.internet.defer import Deferred

from taskd.cli.context import Context
from taskd.cli.errors import OK, TASK_FAILED, TIMED_OUT
from taskd.cli.ui.changes import ChangePrinter
from taskd.cli.ui.progress import REMEMBERED
from taskd.client.connection import Connection, ignore
from taskd.client.messages import Received
from taskd.client.retry import Reconnector
from taskd.model.states import TERMINAL, State
from taskd.protocol.limits import MAX_BATCH, MAX_WAIT_SECONDS

ANSWER_SECONDS = 10.0
"""How long the server gets to answer a ``wait`` whose time is up. A later answer would change nothing."""


async def wait(ctx: Context, options: Namespace) -> int:
    """Wait for tasks; without ``--json`` show their changes meanwhile."""
    return await Waiter(ctx, options.wait_timeout, live=not ctx.json).run(options.task_ids)


class Waiter:
    """Waits until tasks have ended, and with ``live`` shows their changes meanwhile. ``timeout`` is in seconds.

    Events are only shown; the reply to ``wait`` decides. Events that come before the tasks' numbers are known are
    held until then.
    """

    def __init__(self, ctx: Context, timeout: float | None, live: bool = True) -> None:
        self._ctx = ctx
        self._live = live
        self._deadline = math.inf if timeout is None else ctx.clock.seconds() + timeout
        self._changes = ChangePrinter(ctx)
        self._reconnector = Reconnector(ctx.clock, ctx.reporter, self._deadline)
        self._ids: frozenset[int] | None = None
        self._open: dict[int, None] = {}
        self._held: deque[tuple[Connection, Received]] = deque(maxlen=REMEMBERED)
        self._ends: set[str] = set()
        self._connection: Connection | None = None

    async def run(self, ids: Iterable[int], connection: Connection | None = None) -> int:
        """The exit status when all tasks have ended or the time is up. ``connection`` watches already."""
        self._open = dict.fromkeys(ids)
        self._ids = frozenset(self._open)
        self._connection = connection
        while self._held:
            self.event(*self._held.popleft())
        with closing(self._changes.progress):
            await self._reconnector.run(self._attempt)
        return self._status()

    def event(self, connection: Connection, received: Received) -> None:
        """The EventListener of the connection."""
        event = received.body.event
        if event == "gap":
            connection.request("watch", limit=1).addErrback(ignore)
        elif event not in ("task", "progress", "log"):
            return
        elif self._ids is None:
            self._held.append((connection, received))
        else:
            tasks = [self._ctx.view(received.body.task)] if event == "task" else []
            if (tasks[0].id if tasks else received.body.task_id) not in self._ids:
                return
            if self._ctx.json:
                self._ctx.out.raw(received.line)
            self._changes.show(tasks)
            if event == "progress":
                self._changes.show_progress(received)

    async def _attempt(self) -> None:
        connection, answer = await self._begin()
        with closing(connection):
            self._reconnector.connected()
            connection.keep_alive()
            while True:
                reply = await answer
                late = not reply.body.done and self._seconds_left() <= 0
                if self._ctx.json and (reply.body.done or late):
                    self._ctx.out.raw(reply.line)
                ended = [task for task in map(self._ctx.view, reply.body.tasks) if task.state in TERMINAL]
                self._changes.show(ended)
                for task in ended:
                    self._open.pop(task.id, None)
                    self._ends.add(task.state)
                if late or not self._open:
                    return
                answer = connection.request("wait", **self._fields())

    async def _begin(self) -> tuple[Connection, Deferred[Received]]:
        connection, self._connection = self._connection, None
        if connection is not None:
            return connection, connection.request("wait", **self._fields())
        requests = [("wait", self._fields())]
        if self._live:
            requests.insert(0, ("watch", {"limit": 1}))
        self._changes.progress.reset()
        connection, (*watch, answer) = await self._ctx.connector.send(*requests, on_event=self.event)
        for ignored in watch:
            ignored.addErrback(ignore)
        return connection, answer

    def _fields(self) -> dict[str, Any]:
        seconds = max(0.0, min(self._seconds_left(), MAX_WAIT_SECONDS))
        ids = list(itertools.islice(self._open, MAX_BATCH))
        return {"task_ids": ids, "timeout": seconds, "reply_timeout": seconds + ANSWER_SECONDS}

    def _seconds_left(self) -> float:
        return self._deadline - self._ctx.clock.seconds()

    def _status(self) -> int:
        if self._open and not self._ctx.json:
            ids = ", ".join(map(str, itertools.islice(self._open, 10)))
            more = ", ..." if len(self._open) > 10 else ""
            self._ctx.note("timed_out", n=len(self._open), ids=ids + more)
        if State.FAILED in self._ends:
            return TASK_FAILED
        return TIMED_OUT if self._open or State.CANCELLED in self._ends else OK
