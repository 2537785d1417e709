"""``add``: a task from the command line, or one for each line of the input."""

from __future__ import annotations

from argparse import Namespace
from contextlib import closing
from typing import Any

from twisted.internet.defer import CancelledError

from taskd.cli.commands.add_lines import LineSubmitter
from taskd.cli.commands.kinds import served_kinds
from taskd.cli.commands.wait import Waiter
from taskd.cli.context import Context
from taskd.cli.errors import OK, UsageError
from taskd.cli.fields import check_key_option, possible_kind, task_fields, task_text
from taskd.client.connection import Connection, ignore
from taskd.client.retry import Resender
from taskd.model.tasks import PROGRAM_PREFIX


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
    if options.key is not None:
        check_key_option(options.key, from_input)
    key: str = ctx.new_key() if options.key is None else options.key
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
    if not ctx.json:
        _print_summary(ctx, submitter.ids, submitter.known)
    return submitter.ids


def _print_summary(ctx: Context, ids: list[int], known: set[int]) -> None:
    if not ids:
        ctx.note("created_none")
    for key, group in (("created", [n for n in ids if n not in known]), ("known", sorted(known))):
        if group:
            first, last = min(group), max(group)
            key += "_many" if len(group) > 1 else ""
            ctx.say(key, id=first, n=len(group), first=first, last=last)
