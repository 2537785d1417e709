"""``add``: one task from the command line, or one for each line of the input."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from taskd.cli.commands.kinds import ShownKind, read_kinds
from taskd.cli.commands.live import Follower
from taskd.cli.context import Context
from taskd.cli.fields import check_own_key, kind_perhaps, line_key, task_fields, task_text
from taskd.cli.resend import Resender
from taskd.client.connection import LineClient
from taskd.client.errors import OK, ClientError, EndOfInput, Refused, UsageError
from taskd.model.tasks import PROGRAM_PREFIX
from taskd.protocol.limits import MAX_BATCH, MAX_LINE_BYTES

IN_FLIGHT = 4
"""Batches under way at once: enough to keep the server busy, few enough to know what was created."""

_ENVELOPE_BYTES = 100
"""More than ``{"action":"new_tasks","id":...,"tasks":[]}`` takes."""


async def add(ctx: Context, options: Namespace) -> int:
    """Submit, and with ``--wait`` follow what becomes of it."""
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
    if options.key is not None:
        check_own_key(options.key, common=from_input)
    key: str = ctx.new_key() if options.key is None else options.key
    if not from_input:
        fields = {"task": task_text(" ".join(words)), "key": key, **fields}
    perhaps = None if from_input or options.kind is not None else kind_perhaps(words)
    follower = Follower(ctx, options.wait_timeout) if options.wait else None
    delivery = _delivery(ctx, follower)
    try:
        if perhaps is not None and await is_kind(ctx, delivery, perhaps):
            fields["kind"] = perhaps
        ids = await (_add_lines if from_input else _add_one)(ctx, delivery, key, fields)
        return await follower.follow(ids, delivery.client) if ids and follower is not None else OK
    finally:
        delivery.close()


def _delivery(ctx: Context, follower: Follower | None) -> Resender:
    # The same session to the end: with one of another user's, all that is sent again would be theirs
    session = ctx.session()

    async def connect() -> LineClient:
        client, login = await ctx.log_in(session, None if follower is None else follower.event)
        login.addErrback(_ignore)
        if follower is not None:
            # Watching begins before the task exists, so that none of its changes is missed
            client.request("watch", limit=1).addErrback(_ignore)
        return client

    return Resender(ctx, connect)


async def is_kind(ctx: Context, delivery: Resender, word: str) -> bool:
    """Whether a word that may be a task's text names a kind: a program's, or one that workers serve now."""
    if word.startswith(PROGRAM_PREFIX):
        return True
    return any(kind.kind == word for kind in await served_kinds(ctx, delivery))


async def served_kinds(ctx: Context, delivery: Resender) -> list[ShownKind]:
    """What workers serve now; nothing where the server is too old to know."""
    try:
        reply, _ = await delivery.send("kinds", None)
    except Refused as e:
        if e.code != "unknown_action":
            raise
        return []
    return read_kinds(reply, ctx.server)


def _ignore(failure: Failure) -> None:
    """What comes behind on the same connection fails for the same reason."""


async def _add_one(ctx: Context, delivery: Resender, key: str, task: dict[str, Any]) -> list[int]:
    try:
        reply, resent = await delivery.send("new_task", key, **task)
    except CancelledError:
        ctx.out.note(ctx.texts("interrupted_unconfirmed", key=key))
        raise
    task_id = reply.body.task_id
    created = resent or not reply.body.duplicate
    if created and "kind" in task:
        ctx.show(reply, ctx.texts("created_kind", id=task_id, kind=task["kind"]))
    else:
        ctx.show(reply, ctx.texts("created" if created else "known", id=task_id))
    return [task_id]


async def _add_lines(ctx: Context, delivery: Resender, key: str, fields: dict[str, Any]) -> list[int]:
    # Who is not logged in shall hear it before typing
    await delivery.send("ping", None)
    lines = _Lines(ctx, delivery, key, fields)
    try:
        await lines.run()
    except BaseException:  # what has been created stays
        if lines.begun:
            ctx.out.note(ctx.texts("created_before", n=len(lines.ids), key=key))
        raise
    if not ctx.json:
        _sum_up(ctx, lines.ids, lines.known)
    return lines.ids


def _sum_up(ctx: Context, ids: list[int], known: set[int]) -> None:
    if not ids:
        ctx.out.note(ctx.texts("created_none"))
    for key, some in (("created", [n for n in ids if n not in known]), ("known", sorted(known))):
        if some:
            first, last = min(some), max(some)
            key += "_many" if len(some) > 1 else ""
            ctx.out.line(ctx.texts(key, id=first, n=len(some), first=first, last=last))


class _Lines:
    """Creates a task for each line. Replies are counted and printed when they come, however long the input takes.

    The first failure ends the reading at once; what was under way then is still waited for and counted.
    """

    def __init__(self, ctx: Context, delivery: Resender, key: str, fields: dict[str, Any]) -> None:
        self._ctx = ctx
        self._delivery = delivery
        self._key = key
        self._fields = fields
        self._number = 0
        self._under_way: set[Deferred[None]] = set()
        self._fewer: Deferred[None] | None = None
        self._reading: Deferred[list[str]] | None = None
        self._failure: BaseException | None = None
        self.begun = False
        self.ids: list[int] = []
        self.known: set[int] = set()
        """Those of them that an earlier command with the same key has created."""

    async def run(self) -> None:
        """To the end of the input, and of what is under way then. Raises a failure."""
        try:
            try:
                await self._send_all()
            except ClientError as e:
                self._fail(Failure(e))
            await self._at_most(0)
        finally:
            # An interruption ends it all at once
            for sending in tuple(self._under_way):
                sending.cancel()

    async def _send_all(self) -> None:
        while True:
            try:
                lines = await self._read()
            except EndOfInput:
                return
            for batch in batches(self._tasks(lines)):
                self.begun = True
                sending = Deferred.fromCoroutine(self._send(batch))
                self._under_way.add(sending)
                sending.addErrback(self._fail).addBoth(self._one_less, sending)
                await self._at_most(IN_FLIGHT - 1)

    async def _read(self) -> list[str]:
        self._check()
        self._reading = Deferred.fromCoroutine(self._ctx.source.lines())
        try:
            return await self._reading
        except CancelledError:
            self._check()
            raise
        finally:
            self._reading = None

    def _tasks(self, lines: Iterable[str]) -> list[bytes]:
        tasks = []
        for line in lines:
            self._number += 1
            if line.strip():
                text = task_text(line, self._ctx.texts("line", n=self._number))
                tasks.append(
                    msgspec.json.encode({"task": text, "key": line_key(self._key, self._number), **self._fields})
                )
        return tasks

    async def _send(self, tasks: list[bytes]) -> None:
        reply, resent = await self._delivery.send("new_tasks", self._key, tasks=[msgspec.Raw(task) for task in tasks])
        self.ids += reply.body.task_ids
        if not resent:
            self.known.update(reply.body.duplicates)
        if self._ctx.json:
            self._ctx.out.raw((reply.line,))

    def _fail(self, failure: Failure) -> None:
        if self._failure is None:
            self._failure = failure.value
        if self._reading is not None:
            self._reading.cancel()

    def _one_less(self, _: None, sending: Deferred[None]) -> None:
        self._under_way.discard(sending)
        fewer, self._fewer = self._fewer, None
        if fewer is not None:
            fewer.callback(None)

    async def _at_most(self, count: int) -> None:
        while len(self._under_way) > count:
            self._fewer = Deferred()
            await self._fewer
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure


def batches(tasks: list[bytes]) -> Iterator[list[bytes]]:
    """Encoded tasks in groups that fit into one request. Raises ClientError for one that never fits."""
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
