"""``add``: a task from the command line, or one for each line of the input."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, DeferredList, DeferredSemaphore
from twisted.python.failure import Failure

from taskd.cli.commands.kinds import served_kinds
from taskd.cli.commands.wait import Waiter
from taskd.cli.context import Context
from taskd.cli.errors import OK, EndOfInput, UsageError
from taskd.cli.fields import checked_key, possible_kind, task_fields, task_text
from taskd.client.connection import Connection, ignore
from taskd.client.errors import ClientError
from taskd.client.retry import Resender
from taskd.model.tasks import PROGRAM_PREFIX
from taskd.protocol.limits import MAX_BATCH, MAX_LINE_BYTES

IN_FLIGHT = 4
"""Batches sent but not confirmed: enough to keep the server busy, and few enough to know what was created."""

_ENVELOPE_BYTES = 100
"""More than ``{"action":"new_tasks","id":...,"tasks":[]}`` takes."""


async def add(ctx: Context, options: Namespace) -> int:
    """Create the tasks; with ``--wait`` show their changes until they have ended."""
    fields = task_fields(options)
    if options.wait_timeout is not None and not options.wait:
        raise UsageError("wait_timeout_needs_wait")
    words: list[str] = options.text
    from_input = options.stdin or words == ["-"]
    if options.stdin and words not in ([], ["-"]):
        raise UsageError("text_and_stdin")
    if not from_input and not words:
        if options.kind is None:
            raise UsageError("no_text")
        words = [options.kind]
    key = ctx.new_key() if options.key is None else checked_key(options.key, from_input)
    if not from_input:
        fields = {"task": task_text(" ".join(words)), "key": key, **fields}
    kind = None if from_input or options.kind is not None else possible_kind(words)
    waiter = Waiter(ctx, options.wait_timeout) if options.wait else None
    resender = _resender(ctx, waiter)
    with closing(resender):
        if kind is not None and (kind.startswith(PROGRAM_PREFIX) or kind in await served_kinds(ctx, resender)):
            fields["kind"] = kind
        if from_input:
            ids = await _add_lines(ctx, resender, key, fields)
        else:
            ids = await _add_one(ctx, resender, key, fields)
        return await waiter.run(ids, resender.connection) if ids and waiter is not None else OK


def _resender(ctx: Context, waiter: Waiter | None) -> Resender:
    # Keep this session to the end: another user may log in meanwhile, and must not get what is sent again
    session = ctx.connector.session()

    async def connect() -> Connection:
        connection, login = await ctx.connector.log_in(session, None if waiter is None else waiter.event)
        login.addErrback(ignore)
        if waiter is not None:
            # Watch before the task exists, so that no change of it is missed
            connection.request("watch", limit=1).addErrback(ignore)
        return connection

    return Resender(ctx.clock, connect, ctx.reporter)


async def _add_one(ctx: Context, resender: Resender, key: str, task: dict[str, Any]) -> list[int]:
    try:
        reply, resent = await resender.send("new_task", key, **task)
    except CancelledError:
        ctx.note("interrupted_unconfirmed", key=key)
        raise
    task_id = reply.body.task_id
    if reply.body.duplicate and not resent:
        ctx.report(reply, "known", id=task_id)
    elif "kind" in task:
        ctx.report(reply, "created_kind", id=task_id, kind=task["kind"])
    else:
        ctx.report(reply, "created", id=task_id)
    return [task_id]


async def _add_lines(ctx: Context, resender: Resender, key: str, fields: dict[str, Any]) -> list[int]:
    # A user who is not logged in must see that before typing
    await resender.send("ping", None)
    submitter = LineSubmitter(ctx, resender, key, fields)
    try:
        await submitter.run()
    except BaseException:  # the tasks that were created stay
        if submitter.begun:
            ctx.note("created_before", n=len(submitter.ids), key=key)
        raise
    ids, known = submitter.ids, submitter.known
    if not ctx.json:
        if not ids:
            ctx.note("created_none")
        _print_group(ctx, "created", set(ids) - known)
        _print_group(ctx, "known", known)
    return ids


def _print_group(ctx: Context, key: str, ids: set[int]) -> None:
    if ids:
        first, last = min(ids), max(ids)
        ctx.say(f"{key}_many" if len(ids) > 1 else key, id=first, n=len(ids), first=first, last=last)


class LineSubmitter:
    """Creates a task for each line. It counts and prints each reply when it comes, however long the input takes.

    The first failure stops the reading at once; batches that are in flight then are still confirmed and counted.
    """

    def __init__(self, ctx: Context, resender: Resender, key: str, fields: dict[str, Any]) -> None:
        self._ctx = ctx
        self._resender = resender
        self._key = key
        self._fields = fields
        self._number = 0
        self._slots = DeferredSemaphore(IN_FLIGHT)
        self._in_flight: set[Deferred[None]] = set()
        self._reading: Deferred[list[str]] | None = None
        self._failure: BaseException | None = None
        self.begun = False
        self.ids: list[int] = []
        self.known: set[int] = set()
        """Those of ``ids`` that an earlier command with the same key has created."""

    async def run(self) -> None:
        """Return when every line is confirmed. Raises the first failure."""
        try:
            try:
                await self._send_all()
            except ClientError as e:
                self._fail(Failure(e))
            await DeferredList(tuple(self._in_flight))
            self._raise_failure()
        finally:
            # Nothing is left here unless the command was interrupted
            for sending in tuple(self._in_flight):
                sending.cancel()

    async def _send_all(self) -> None:
        while True:
            try:
                lines = await self._read()
            except EndOfInput:
                return
            for batch in batches(self._tasks(lines)):
                await self._slots.acquire()
                self._raise_failure()
                self.begun = True
                sending = Deferred.fromCoroutine(self._send(batch))
                self._in_flight.add(sending)
                sending.addErrback(self._fail).addBoth(self._confirmed, sending)

    async def _read(self) -> list[str]:
        self._raise_failure()
        self._reading = Deferred.fromCoroutine(self._ctx.source.lines())
        try:
            return await self._reading
        except CancelledError:
            self._raise_failure()
            raise
        finally:
            self._reading = None

    def _tasks(self, lines: Iterable[str]) -> list[bytes]:
        tasks = []
        for line in lines:
            self._number += 1
            if line.strip():
                text = task_text(line, self._ctx.texts("line", n=self._number))
                task = {"task": text, "key": f"{self._key}:{self._number}", **self._fields}
                tasks.append(msgspec.json.encode(task))
        return tasks

    async def _send(self, tasks: list[bytes]) -> None:
        reply, resent = await self._resender.send("new_tasks", self._key, tasks=[msgspec.Raw(task) for task in tasks])
        self.ids += reply.body.task_ids
        if not resent:
            self.known.update(reply.body.duplicates)
        if self._ctx.json:
            self._ctx.out.raw(reply.line)

    def _fail(self, failure: Failure) -> None:
        if self._failure is None:
            self._failure = failure.value
        if self._reading is not None:
            self._reading.cancel()

    def _confirmed(self, _: None, sending: Deferred[None]) -> None:
        self._in_flight.discard(sending)
        self._slots.release()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def batches(tasks: list[bytes]) -> Iterator[list[bytes]]:
    """Encoded tasks in groups that fit into one request. Raises ClientError for a task that never fits."""
    batch: list[bytes] = []
    size = _ENVELOPE_BYTES
    for task in tasks:
        if _ENVELOPE_BYTES + len(task) > MAX_LINE_BYTES:
            raise ClientError("line_too_large", code="too_large", limit=MAX_LINE_BYTES)
        if batch and (len(batch) == MAX_BATCH or size + len(task) + 1 > MAX_LINE_BYTES):
            yield batch
            batch, size = [], _ENVELOPE_BYTES
        batch.append(task)
        size += len(task) + 1
    if batch:
        yield batch
