"""``log``: what a task has said, and with ``-f`` what it says until it has ended."""

from __future__ import annotations

from argparse import Namespace
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct
from twisted.internet.defer import Deferred

from taskd.cli.context import Context
from taskd.cli.retrying import Reconnector
from taskd.cli.ui.rendering import Moment, moment, visible
from taskd.client.connection import LineClient, Received, read
from taskd.client.errors import OK
from taskd.protocol.limits import MAX_LOG_LINES


class Line(Struct):
    """One line of a log: number ``line``, from 1 on, of an attempt."""

    attempt: int
    line: int
    at: Moment
    text: str


class _Lines(Struct):
    """A reply to ``get_log``, or a ``log`` event of who follows it."""

    lines: list[Raw]
    cursor: str | None = None
    more: bool = False
    cut: bool = False


class _End(Struct):
    state: str | None = None


_decode_lines = msgspec.json.Decoder(_Lines).decode
_decode_line = msgspec.json.Decoder(Line).decode
_decode_end = msgspec.json.Decoder(_End).decode


async def log(ctx: Context, options: Namespace) -> int:
    """Print a log, and with ``--follow`` go on until its task has ended."""
    return await Reader(ctx, options).run()


class Printer:
    """Prints lines and says what is missing between them.

    ``attempt`` is the only one to print, if given; ``last`` is how many of the lines that come before
    :meth:`release` it prints.
    """

    def __init__(self, ctx: Context, times: bool, attempt: int | None, last: int | None) -> None:
        self._ctx = ctx
        self._times = times
        self._only = attempt
        self._kept: deque[tuple[Line, Raw]] | None = None if last is None else deque(maxlen=last)
        self._shown: Line | None = None
        self._ready: list[Any] = []
        """Texts, or with JSON raw objects, that are written together."""

    def take(self, raws: Sequence[Raw]) -> None:
        """The next lines of the log."""
        for raw in raws:
            line = read(bytes(raw), _decode_line, self._ctx.server)
            if self._only not in (None, line.attempt):
                continue
            if self._kept is None:
                self._add(line, raw)
            else:
                self._kept.append((line, raw))
        self._write()

    def release(self) -> None:
        """Print what was kept back, and from now on everything at once."""
        kept, self._kept = self._kept or (), None
        for line, raw in kept:
            self._add(line, raw)
        self._write()

    @property
    def silent(self) -> bool:
        """Whether nothing has been printed."""
        return self._shown is None

    def _add(self, line: Line, raw: Raw) -> None:
        ctx, before, self._shown = self._ctx, self._shown, line
        if ctx.json:
            self._ready.append(raw)
            return
        # A task that is retried counts its attempts from one again
        goes_on = before is not None and before.attempt == line.attempt and before.line < line.line
        if self._only is None and not goes_on and (before is not None or line.attempt > 1):
            self._ready.append(ctx.texts("log_attempt", n=line.attempt))
        missing = 0 if before is None else line.line - (before.line if goes_on else 0) - 1
        if missing:
            self._write()
            ctx.out.note(ctx.texts("log_missing", n=missing))
        text = visible(line.text.expandtabs())
        self._ready.append(f"{moment(line.at)}  {text}" if self._times else text)

    def _write(self) -> None:
        ready, self._ready = self._ready, []
        if self._ctx.json:
            self._ctx.out.raw(map(bytes, ready))
        elif ready:
            self._ctx.out.lines(ready)


def print_page(ctx: Context, task_id: int, reply: Received) -> None:
    """Print what one reply to ``get_log`` has. Raises ConnectionTrouble."""
    printer = Printer(ctx, times=False, attempt=None, last=None)
    printer.take(read(reply.line, _decode_lines, ctx.server).lines)
    if printer.silent:
        ctx.out.note(ctx.texts("log_empty", id=task_id))


class Reader:
    """Reads one log, page by page and then live, and where it was if the connection is lost."""

    def __init__(self, ctx: Context, options: Namespace) -> None:
        self._ctx = ctx
        self._task_id: int = options.task_id
        self._follow: bool = options.follow
        wanted: int | None = options.lines
        # The server counts all the lines from the end, and no more than fit into one reply
        self._tail = wanted if wanted is not None and wanted <= MAX_LOG_LINES and options.attempt is None else None
        self._whole = wanted is None
        self._printer = Printer(ctx, options.times, options.attempt, wanted)
        self._persistence = Reconnector(ctx)
        self._cursor: str | None = None
        self._ended: Deferred[None] = Deferred()

    async def run(self) -> int:
        """Raises ClientError where the log cannot be read, or no longer be followed."""
        if not self._follow:
            client, (answer,) = await self._ctx.logged_in(self._request())
            try:
                await self._read_all(client, answer)
            finally:
                client.close()
        else:
            await self._persistence.run(self._attempt)
        if self._printer.silent and not self._ctx.json:
            self._ctx.out.note(self._ctx.texts("log_empty", id=self._task_id))
        return OK

    async def _attempt(self) -> int:
        ended: Deferred[None] = Deferred()
        self._ended = ended
        client, (answer,) = await self._ctx.logged_in(self._request(), on_event=self._event)
        try:
            await self._read_all(client, answer)
            self._persistence.connected()
            self._take(await self._ask(client, follow=True))
            client.check_often()
            client.gone().addErrback(lambda failure: None if ended.called else ended.errback(failure))
            await ended
        finally:
            client.close()
        return OK

    async def _read_all(self, client: LineClient, answer: Deferred[Received]) -> None:
        """Everything that there is now."""
        while self._take(await answer):
            answer = self._ask(client)
        self._printer.release()

    def _take(self, reply: Received) -> bool:
        """Whether there is more behind it."""
        page = read(reply.line, _decode_lines, self._ctx.server)
        if page.cut and self._cursor is None and self._whole:
            self._ctx.out.note(self._ctx.texts("log_cut"))
        self._printer.take(page.lines)
        self._cursor = page.cursor or self._cursor
        return page.more

    def _event(self, client: LineClient, received: Received) -> None:
        event = received.body.event
        if event == "log":
            self._take(received)
        elif event == "log_end":
            self._end(read(received.line, _decode_end, self._ctx.server).state)

    def _end(self, state: str | None) -> None:
        ctx = self._ctx
        if state is not None and ctx.out.tty and not ctx.json:
            ctx.out.note(ctx.texts("log_end", id=self._task_id, state=visible(ctx.texts.state(state))))
        if not self._ended.called:
            self._ended.callback(None)

    def _request(self) -> tuple[str, dict[str, Any]]:
        return "get_log", self._fields()

    def _ask(self, client: LineClient, follow: bool = False) -> Deferred[Received]:
        return client.request("get_log", **self._fields(follow))

    def _fields(self, follow: bool = False) -> dict[str, Any]:
        fields: dict[str, Any] = {"task_id": self._task_id, "limit": MAX_LOG_LINES}
        if self._cursor is not None:
            fields["cursor"] = self._cursor
        elif self._tail is not None:
            fields |= {"tail": True, "limit": self._tail}
        if follow:
            fields["follow"] = True
        return fields
