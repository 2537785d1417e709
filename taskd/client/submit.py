"""``add``: one task from the command line, or one for each line of the input."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from taskd.client.connection import LineClient, Received
from taskd.client.context import Context
from taskd.client.errors import OK, ClientError, ConnectionTrouble, EndOfInput, UsageError
from taskd.client.live import Follower
from taskd.errors import BadRequest, TooLarge
from taskd.model import check_kind, check_task_text
from taskd.wire.limits import MAX_BATCH, MAX_LINE_BYTES

IN_FLIGHT = 4
"""Batches under way at once: enough to keep the server busy, few enough to know what was created."""

_ENVELOPE_BYTES = 100
"""More than ``{"action":"new_tasks","id":...,"tasks":[]}`` takes."""


async def add(ctx: Context, options: Namespace) -> int:
    """Submit, and with ``--wait`` follow what becomes of it."""
    fields = task_fields(options)
    if options.timeout is not None and not options.wait:
        raise UsageError("timeout_needs_wait")
    words: list[str] = options.text
    from_input = options.stdin or words == ["-"]
    if options.stdin and words not in ([], ["-"]):
        raise UsageError("text_and_stdin")
    if not from_input and not words:
        raise UsageError("no_text")
    follower = Follower(ctx, options.timeout) if options.wait else None
    if from_input:
        return await _add_lines(ctx, fields, follower)
    return await _add_one(ctx, {"task": _checked(" ".join(words), ""), **fields}, follower)


async def _add_one(ctx: Context, task: dict[str, Any], follower: Follower | None) -> int:
    client, answers = await _connect(ctx, follower, ("new_task", task))
    try:
        reply = await _confirmed(ctx, answers[-1])
        task_id = reply.body.task_id
        ctx.show(reply, ctx.texts("created", id=task_id))
        return await follower.follow([task_id], client) if follower is not None else OK
    finally:
        client.close()


async def _add_lines(ctx: Context, fields: dict[str, Any], follower: Follower | None) -> int:
    client, _ = await _connect(ctx, follower)
    created = _Created(ctx)
    try:
        try:
            await _send_lines(ctx, client, fields, created)
        except Exception:  # an interruption too: what has been created stays
            if created.ids and not ctx.json:
                ctx.out.note(ctx.texts("created_before", n=len(created.ids)))
            raise
        if not created.ids:
            if not ctx.json:
                ctx.out.note(ctx.texts("created_none"))
            return OK
        if not ctx.json:
            first, last = min(created.ids), max(created.ids)
            key = "created" if len(created.ids) == 1 else "created_many"
            ctx.out.line(ctx.texts(key, id=first, n=len(created.ids), first=first, last=last))
        return await follower.follow(created.ids, client) if follower is not None else OK
    finally:
        client.close()


class _Created:
    """What has been confirmed so far. Replies are counted and printed when they come, however long the input takes.

    The first failure ends the reading at once; what was under way then is still waited for and counted.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._under_way = 0
        self._fewer: Deferred[None] | None = None
        self._reading: Deferred[list[str]] | None = None
        self._failure: BaseException | None = None
        self.ids: list[int] = []

    async def read(self) -> list[str]:
        """More lines of the input. Raises EndOfInput, or a failure."""
        self._check()
        self._reading = Deferred.fromCoroutine(self._ctx.source.lines())
        try:
            return await self._reading
        except CancelledError:
            self._check()
            raise
        finally:
            self._reading = None

    async def sent(self, answer: Deferred[Received]) -> None:
        """Wait until another batch may be sent. Raises a failure."""
        self._under_way += 1
        Deferred.fromCoroutine(self._count(answer)).addErrback(self.fail).addBoth(self._one_less)
        await self._at_most(IN_FLIGHT - 1)

    async def settle(self) -> None:
        """Wait for every answer, also behind an error, so that the count is right. Raises a failure."""
        await self._at_most(0)

    def fail(self, failure: Failure) -> None:
        """Something went wrong meanwhile."""
        if self._failure is None:
            self._failure = failure.value
        if self._reading is not None:
            self._reading.cancel()

    def _one_less(self, _: None) -> None:
        self._under_way -= 1
        fewer, self._fewer = self._fewer, None
        if fewer is not None:
            fewer.callback(None)

    async def _at_most(self, count: int) -> None:
        while self._under_way > count:
            self._fewer = Deferred()
            await self._fewer
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _count(self, answer: Deferred[Received]) -> None:
        reply = await _confirmed(self._ctx, answer)
        self.ids += reply.body.task_ids
        if self._ctx.json:
            self._ctx.out.raw((reply.line,))


async def _send_lines(ctx: Context, client: LineClient, fields: dict[str, Any], created: _Created) -> None:
    client.gone().addErrback(created.fail)
    number = 0
    try:
        while True:
            try:
                lines = await created.read()
            except EndOfInput:
                return
            tasks = []
            for line in lines:
                number += 1
                if line.strip():
                    where = ctx.texts("line", n=number)
                    tasks.append(msgspec.json.encode({"task": _checked(line, where), **fields}))
            for batch in batches(tasks):
                await created.sent(client.request("new_tasks", tasks=[msgspec.Raw(task) for task in batch]))
    finally:
        await created.settle()


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


async def _connect(
    ctx: Context, follower: Follower | None, *requests: tuple[str, dict[str, Any]]
) -> tuple[LineClient, list[Deferred[Received]]]:
    if follower is None:
        return await ctx.logged_in(*requests)
    # Watching begins before the task exists, so that none of its changes is missed
    return await ctx.logged_in(("watch", {"limit": 1}), *requests, on_event=follower.event)


async def _confirmed(ctx: Context, answer: Deferred[Received]) -> Received:
    try:
        return await answer
    except ConnectionTrouble as e:
        if e.key in ("lost", "no_answer"):
            raise ConnectionTrouble("lost_unconfirmed", server=ctx.server, command=ctx.command("list")) from None
        raise


def task_fields(options: Namespace) -> dict[str, Any]:
    """The fields of a task that options give; the rest is the server's to choose. Raises ClientError."""
    fields: dict[str, Any] = {}
    payload = _payload(options.payload)
    for given in options.field:
        name, equals, value = given.partition("=")
        if not equals or not name:
            raise UsageError("bad_field", given=given)
        payload[name] = _value(value)
    if payload:
        fields["payload"] = payload
    if options.kind is not None:
        try:
            fields["kind"] = check_kind(options.kind)
        except BadRequest:
            raise UsageError("bad_kind") from None
    for name in ("queue", "max_attempts"):
        if getattr(options, name) is not None:
            fields[name] = getattr(options, name)
    return fields


def _payload(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = msgspec.json.decode(text.encode())
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UsageError("bad_payload", example="'{\"seconds\": 2}'")
    return value


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text.encode())
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return text


def _checked(text: str, where: str) -> str:
    try:
        text.encode()
        return check_task_text(text)
    except (BadRequest, TooLarge, UnicodeEncodeError):
        raise ClientError("bad_task", where=where) from None
