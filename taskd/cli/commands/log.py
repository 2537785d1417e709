"""``log``: the lines that a task has logged, and with ``-f`` those that it still logs."""

from __future__ import annotations

from argparse import Namespace
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from msgspec import Raw, Struct
from twisted.internet.defer import Deferred

from taskd.cli.context import Context
from taskd.cli.errors import OK
from taskd.cli.ui.rendering import moment
from taskd.client.connection import Connection
from taskd.client.messages import Received
from taskd.client.retry import Reconnector
from taskd.model.visible import visible
from taskd.protocol.limits import MAX_LOG_LINES
from taskd.protocol.views import Moment


class Line(Struct):
    """One line of a log. ``line`` is its number within the attempt, from 1."""

    attempt: int
    line: int
    at: Moment
    text: str


class _Page(Struct):
    """A reply to ``get_log``, or a ``log`` event."""

    lines: list[Raw]
    cursor: str | None = None
    more: bool = False
    cut: bool = False


async def log(ctx: Context, options: Namespace) -> int:
    """Print a log, and with ``--follow`` go on until its task has ended."""
    return await LogReader(ctx, options).run()


class LogPrinter:
    """Prints lines, and notes where lines are missing.

    With ``attempt`` it prints only the lines of that attempt. With ``last`` it keeps lines back until
    :meth:`release`, and then prints only the last so many of them.
    """

    def __init__(self, ctx: Context, times: bool = False, attempt: int | None = None, last: int | None = None) -> None:
        self._ctx = ctx
        self._times = times
        self._only = attempt
        self.keeping = last is not None
        self._kept: deque[tuple[Line, Raw]] = deque(maxlen=last)
        self.printed: Line | None = None
        """The last line that was printed. With JSON it is not needed, and not known."""

    def take(self, raws: Sequence[Raw]) -> None:
        """The next lines of the log."""
        for raw in raws:
            line = self._ctx.read(raw, Line)
            if self._only in (None, line.attempt):
                self._kept.append((line, raw))
        if not self.keeping:
            self.release()

    def release(self) -> None:
        """Print the lines that were kept back. Later lines are printed at once."""
        ctx, kept = self._ctx, self._kept
        self._kept, self.keeping = deque(), False
        if ctx.json:
            ctx.out.raw(*(raw for _, raw in kept))
            return
        ready: list[str] = []
        for line, _ in kept:
            before, self.printed = self.printed, line
            # The attempts of a retried task are numbered from 1 again
            same_attempt = before is not None and before.attempt == line.attempt and before.line < line.line
            if self._only is None and not same_attempt and (before is not None or line.attempt > 1):
                ready.append(ctx.texts("log_attempt", n=line.attempt))
            missing = 0 if before is None else line.line - (before.line if same_attempt else 0) - 1
            if missing:
                ctx.out.lines(ready)
                ready = []
                ctx.note("log_missing", n=missing)
            text = visible(line.text.expandtabs())
            ready.append(f"{moment(line.at)}  {text}" if self._times else text)
        ctx.out.lines(ready)


def print_page(ctx: Context, task_id: int, reply: Received) -> None:
    """Print one reply to ``get_log``. Raises ConnectionFailed."""
    printer = LogPrinter(ctx)
    printer.take(ctx.read(reply.line, _Page).lines)
    if printer.printed is None:
        ctx.note("log_empty", id=task_id)


class LogReader:
    """Reads one log, page by page and then live. After a lost connection it continues where it was."""

    def __init__(self, ctx: Context, options: Namespace) -> None:
        self._ctx = ctx
        self._task_id: int = options.task_id
        self._follow: bool = options.follow
        wanted: int | None = options.lines
        # The server can count from the end for us, but only over all attempts and up to one page
        self._tail = wanted if wanted is not None and wanted <= MAX_LOG_LINES and options.attempt is None else None
        self._printer = LogPrinter(ctx, options.times, options.attempt, wanted)
        self._reconnector = Reconnector(ctx.clock, ctx.reporter)
        self._cursor: str | None = None
        self._ended: Deferred[None] | None = None

    async def run(self) -> int:
        """Raises ClientError if the log cannot be read, or not followed to its end."""
        await self._reconnector.run(self._attempt)
        if self._printer.printed is None and not self._ctx.json:
            self._ctx.note("log_empty", id=self._task_id)
        return OK

    async def _attempt(self) -> None:
        request = ("get_log", self._fields())
        connection, (answer,) = await self._ctx.connector.send(request, on_event=self._event)
        with closing(connection):
            while self._take(await answer):
                answer = connection.request("get_log", **self._fields())
            self._printer.release()
            if self._follow:
                self._reconnector.connected()
                self._take(await connection.request("get_log", **self._fields(), follow=True))
                connection.keep_alive()
                self._ended = connection.wait_until_lost()
                await self._ended

    def _take(self, reply: Received) -> bool:
        """Print one page; returns whether more pages exist."""
        page = self._ctx.read(reply.line, _Page)
        if page.cut and self._cursor is None and not self._printer.keeping:
            self._ctx.note("log_cut")
        self._printer.take(page.lines)
        self._cursor = page.cursor or self._cursor
        return page.more

    def _event(self, connection: Connection, received: Received) -> None:
        event = received.body.event
        if event == "log":
            self._take(received)
        elif event == "log_end":
            ctx, state = self._ctx, received.body.state
            if state is not None and ctx.out.tty and not ctx.json:
                ctx.note("log_end", id=self._task_id, state=ctx.texts.state(state))
            if self._ended is not None:
                self._ended.callback(None)

    def _fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"task_id": self._task_id, "limit": MAX_LOG_LINES}
        if self._cursor is not None:
            fields["cursor"] = self._cursor
        elif self._tail is not None:
            fields |= {"tail": True, "limit": self._tail}
        return fields
