"""``watch``, ``wait`` and ``add --wait``: following changes, across lost connections."""

from __future__ import annotations

import itertools
import math
from argparse import Namespace
from collections import deque
from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from taskd.cli.context import Context, Request
from taskd.cli.retrying import Reconnector
from taskd.cli.ui.progress import REMEMBERED, display, read_said
from taskd.cli.ui.rendering import ShownTask
from taskd.client.connection import LineClient, Received
from taskd.client.errors import OK, TASK_FAILED, TIMED_OUT
from taskd.model.states import State
from taskd.protocol.limits import MAX_BATCH, MAX_PAGE, MAX_WAIT_SECONDS

WATCH_COLUMNS = ("id", "status", "state", "age", "text")
ANSWER_SECONDS = 10.0
"""What the server gets to answer a wait when its time is up; after that its answer would change nothing."""

ENDED = frozenset({State.COMPLETED.value, State.FAILED.value, State.CANCELLED.value})


class _Changes:
    """Prints changes of tasks, each version once: replies and events may tell of the same one."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._display = display(ctx)
        self._versions: dict[int, int] = {}
        self._newest = 0

    def note(self, task: ShownTask) -> bool:
        """Whether this version was not known yet; from now on it is."""
        known = self._versions.pop(task.id, 0)
        self._versions[task.id] = max(known, task.version)
        self._newest = max(self._newest, task.id)
        if len(self._versions) > REMEMBERED:
            del self._versions[next(iter(self._versions))]
        return task.version > known

    def missed(self, snapshot: Iterable[ShownTask]) -> list[ShownTask]:
        """What of a later snapshot tells of a change: older tasks that were never shown have only come into sight."""
        newest = self._newest
        return [task for task in snapshot if task.id in self._versions or task.id > newest]

    def show(self, tasks: Iterable[ShownTask]) -> None:
        """Print those that are new."""
        ctx, new = self._ctx, [task for task in tasks if self.note(task)]
        if new and not ctx.json:
            now = ctx.now()
            ctx.out.lines(ctx.renderer.change(task, now) for task in new)
            self.have_shown(new)

    def have_shown(self, tasks: Iterable[ShownTask]) -> None:
        """These have been printed, and some of them may run."""
        for task in tasks:
            self._display.changed(task)

    def said(self, received: Received) -> None:
        """Show a ``progress`` event."""
        if not self._ctx.json:
            self._display.said(read_said(received, self._ctx.server))

    def reconnected(self) -> None:
        """What seemed to run may have ended meanwhile."""
        self._display.forget()

    def close(self) -> None:
        """Nothing more will be shown."""
        self._display.close()


class Watcher:
    """Shows every change of the user's tasks until it is interrupted."""

    def __init__(self, ctx: Context, limit: int) -> None:
        self._ctx = ctx
        self._limit = limit
        self._changes = _Changes(ctx)
        self._persistence = Reconnector(ctx)
        self._first = True

    async def run(self) -> int:
        """Raises ClientError when the server cannot be reached at first, or refuses."""
        try:
            await self._persistence.run(self._attempt)
        finally:
            self._changes.close()
        return OK

    async def _attempt(self) -> int:
        # After a gap more may have changed than was shown at first
        limit = self._limit if self._first else MAX_PAGE
        client, (answer,) = await self._ctx.logged_in(("watch", {"limit": limit}), on_event=self._event)
        try:
            self._snapshot(await answer)
            self._persistence.connected()
            client.check_often()
            await client.gone()
        finally:
            client.close()
        return OK

    def _event(self, client: LineClient, received: Received) -> None:
        if self._ctx.json:
            self._ctx.out.raw((received.line,))
        if received.body.event == "task":
            self._changes.show([self._ctx.view(received.body.task)])
        elif received.body.event == "progress":
            self._changes.said(received)
        elif received.body.event == "gap":
            again = client.request("watch", limit=MAX_PAGE)
            again.addCallback(self._snapshot).addErrback(client.failed)

    def _snapshot(self, reply: Received) -> None:
        ctx, tasks = self._ctx, [self._ctx.view(raw) for raw in reply.body.tasks]
        if ctx.json:
            ctx.out.raw((reply.line,))
        elif self._first:
            for task in reversed(tasks):
                self._changes.note(task)
            if tasks:
                ctx.out.lines(ctx.renderer.table(WATCH_COLUMNS).rows(tasks, ctx.now()))
            if ctx.out.tty:
                ctx.out.note(ctx.texts("watching"))
            self._changes.have_shown(tasks)
        else:
            self._changes.reconnected()
            self._changes.show(reversed(self._changes.missed(tasks)))
            self._changes.have_shown(tasks)
        self._first = False


class Follower:
    """Waits for tasks to end, and with ``live`` shows their changes meanwhile. ``timeout`` is in seconds.

    Events are for showing only and may come before the tasks' numbers are known: those are held until then.
    What decides is the reply to ``wait``.
    """

    def __init__(self, ctx: Context, timeout: float | None, live: bool = True) -> None:
        self._ctx = ctx
        self._live = live
        self._deadline = math.inf if timeout is None else ctx.clock.seconds() + timeout
        self._changes = _Changes(ctx)
        self._persistence = Reconnector(ctx, self._deadline)
        self._ids: frozenset[int] | None = None
        self._open: dict[int, None] = {}
        self._held: deque[tuple[LineClient, Received]] = deque(maxlen=REMEMBERED)
        self._ends: set[str] = set()
        self._client: LineClient | None = None

    async def follow(self, ids: Iterable[int], client: LineClient | None = None) -> int:
        """The exit status once all have ended or time is up. ``client`` is a connection that watches."""
        self._open = dict.fromkeys(ids)
        self._ids = frozenset(self._open)
        self._client = client
        while self._held:
            self.event(*self._held.popleft())
        try:
            status = await self._persistence.run(self._attempt)
        finally:
            self._changes.close()
        return self._status() if status is None else status

    def event(self, client: LineClient, received: Received) -> None:
        """Hear of an event of the connection."""
        if received.body.event == "gap":
            client.request("watch", limit=1).addErrback(_ignore)
        elif received.body.event in ("task", "progress", "log"):
            if self._ids is None:
                self._held.append((client, received))
                return
            task = self._ctx.view(received.body.task) if received.body.event == "task" else None
            if (received.body.task_id if task is None else task.id) not in self._ids:
                return
            if self._ctx.json:
                self._ctx.out.raw((received.line,))
            if task is not None:
                self._changes.show([task])
            elif received.body.event == "progress":
                self._changes.said(received)

    async def _attempt(self) -> int:
        client, waiting = await self._begin()
        try:
            self._persistence.connected()
            client.check_often()
            while True:
                reply = await waiting
                late = not reply.body.done and self._left() <= 0
                if self._ctx.json and (reply.body.done or late):
                    self._ctx.out.raw((reply.line,))
                self._settle([self._ctx.view(raw) for raw in reply.body.tasks])
                if late or not self._open:
                    return self._status()
                waiting = client.request("wait", **self._wait())
        finally:
            client.close()

    async def _begin(self) -> tuple[LineClient, Deferred[Received]]:
        client, self._client = self._client, None
        if client is not None:
            return client, client.request("wait", **self._wait())
        requests: list[Request] = [("watch", {"limit": 1})] if self._live else []
        self._changes.reconnected()
        client, (*watch, waiting) = await self._ctx.logged_in(*requests, ("wait", self._wait()), on_event=self.event)
        for answer in watch:
            answer.addErrback(_ignore)
        return client, waiting

    def _wait(self) -> dict[str, Any]:
        seconds = max(0.0, min(self._left(), MAX_WAIT_SECONDS))
        ids = list(itertools.islice(self._open, MAX_BATCH))
        return {"task_ids": ids, "timeout": seconds, "patience": seconds + ANSWER_SECONDS}

    def _left(self) -> float:
        return self._deadline - self._ctx.clock.seconds()

    def _settle(self, tasks: list[ShownTask]) -> None:
        ended = [task for task in tasks if task.state in ENDED]
        self._changes.show(ended)
        for task in ended:
            self._open.pop(task.id, None)
            self._ends.add(task.state)

    def _status(self) -> int:
        if self._open and not self._ctx.json:
            ids = ", ".join(map(str, itertools.islice(self._open, 10)))
            more = ", ..." if len(self._open) > 10 else ""
            self._ctx.out.note(self._ctx.texts("timed_out", n=len(self._open), ids=ids + more))
        if State.FAILED.value in self._ends:
            return TASK_FAILED
        return TIMED_OUT if self._open or State.CANCELLED.value in self._ends else OK


def _ignore(failure: Failure) -> None:
    """The answer to a repeated or accompanying ``watch`` decides nothing."""


async def watch(ctx: Context, options: Namespace) -> int:
    """Show changes until Ctrl-C."""
    return await Watcher(ctx, options.limit).run()


async def wait(ctx: Context, options: Namespace) -> int:
    """Wait for tasks; for people, with their changes meanwhile."""
    return await Follower(ctx, options.timeout, live=not ctx.json).follow(options.task_ids)
