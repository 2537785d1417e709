"""The commands that ask and print the answer. The live ones are in :mod:`taskd.cli.commands.live`."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec
from msgspec import Struct

from taskd.cli.commands.add import add
from taskd.cli.commands.kinds import kinds
from taskd.cli.commands.live import wait, watch
from taskd.cli.commands.log import log
from taskd.cli.context import Context, check_password, check_username
from taskd.cli.ui.rendering import Moment, moment, visible
from taskd.client.connection import Message, Received, read
from taskd.client.errors import OK, ClientError, ConnectionTrouble, NotLoggedIn, Refused
from taskd.client.sessions import Session
from taskd.protocol.limits import DEFAULT_PAGE, MAX_PAGE

LIST_COLUMNS = ("id", "status", "state", "kind", "age", "text")


async def register(ctx: Context, options: Namespace) -> int:
    """Create an account."""
    username = await ctx.username(options.username)
    check_username(username)
    password = await ctx.password(twice=True)
    check_password(password)
    client = await ctx.connect()
    try:
        reply = await client.request("register", username=username, password=password)
    finally:
        client.close()
    name = reply.body.username or username
    ctx.show(reply, ctx.texts("registered", username=visible(name), command=visible(ctx.command("login", name))))
    return OK


async def login(ctx: Context, options: Namespace) -> int:
    """Log in and keep the session."""
    username = await ctx.username(options.username)
    password = await ctx.password()
    client = await ctx.connect()
    try:
        reply = await client.request("login", username=username, password=password)
        name = reply.body.username or username
        if not reply.body.token:
            raise ConnectionTrouble("not_taskd", transient=False, server=ctx.server)
        try:
            ctx.sessions.save(Session(ctx.server, name, reply.body.token))
        except ClientError:
            with contextlib.suppress(ClientError):
                await client.request("logout")  # nobody could use this session any more
            raise
    finally:
        client.close()
    ctx.show(reply, ctx.texts("logged_in", username=visible(name)))
    return OK


async def logout(ctx: Context, options: Namespace) -> int:
    """Forget the session, here in any case, and at the server if it still knows it."""
    try:
        reply = await ctx.ask("logout")
    except NotLoggedIn as e:
        if e.key == "not_logged_in":
            raise
        reply = Received(b'{"ok":true,"status":"success"}', Message(ok=True, status="success"))
    finally:
        ctx.sessions.remove()
    ctx.show(reply, ctx.texts("logged_out"))
    return OK


async def whoami(ctx: Context, options: Namespace) -> int:
    """Who is logged in."""
    reply = await ctx.ask("whoami")
    ctx.show(reply, visible(reply.body.username))
    return OK


async def list_tasks(ctx: Context, options: Namespace) -> int:
    """Print tasks, newest first, as many pages as it takes."""
    filters: dict[str, Any] = {
        name: value for name in ("status", "state", "kind") if (value := getattr(options, name)) is not None
    }
    left: int | None = None if options.all else options.limit or DEFAULT_PAGE
    table = ctx.renderer.table(LIST_COLUMNS)
    client, (answer,) = await ctx.logged_in(("get_tasks", {**filters, "limit": min(left or MAX_PAGE, MAX_PAGE)}))
    try:
        page = (await answer).body
        shown = 0
        while True:
            if page.tasks:
                if ctx.json:
                    ctx.out.raw(map(bytes, page.tasks))
                else:
                    ctx.out.lines(table.rows([ctx.view(raw) for raw in page.tasks], ctx.now()))
            shown += len(page.tasks)
            if page.cursor is None or (left is not None and shown >= left):
                break
            limit = MAX_PAGE if left is None else min(left - shown, MAX_PAGE)
            page = (await client.request("get_tasks", **filters, limit=limit, cursor=page.cursor)).body
    finally:
        client.close()
    if not ctx.json:
        if not shown:
            ctx.out.line(ctx.texts("no_tasks"))
        elif page.cursor is not None:
            ctx.out.note(ctx.texts("more"))
    return OK


async def show(ctx: Context, options: Namespace) -> int:
    """Everything about one task."""
    reply = await ctx.ask("get_task", task_id=options.task_id)
    ctx.show(reply, *([] if ctx.json else ctx.renderer.details(ctx.view(reply.body.task))))
    return OK


class Explanation(Struct):
    """What is read of the answer to ``explain``; what does not apply is missing or null."""

    code: str = ""
    message: str = ""
    kind: str | None = None
    queue: str | None = None
    attempt: int | None = None
    max_attempts: int | None = None
    run_at: Moment | None = None
    since: Moment | None = None
    error: str | None = None


_decode_explanation = msgspec.json.Decoder(Explanation).decode


async def explain(ctx: Context, options: Namespace) -> int:
    """Why a task is where it is."""
    reply = await ctx.ask("explain", task_id=options.task_id)
    ctx.show(reply, *([] if ctx.json else [reason(ctx, options.task_id, reply)]))
    return OK


def reason(ctx: Context, task_id: int, reply: Received) -> str:
    """The answer to ``explain`` in the user's language. Raises ConnectionTrouble."""
    why = read(reply.line, _decode_explanation, ctx.server)
    fields = {
        "kind": why.kind,
        "queue": why.queue,
        "attempt": why.attempt and ctx.renderer.attempt(why.attempt, why.max_attempts),
        "run_at": why.run_at and moment(why.run_at),
        "since": why.since and moment(why.since),
        "error": why.error and why.error.rstrip("."),
        "show": ctx.command("show", str(task_id)),
        "retry": ctx.command("retry", str(task_id)),
    }
    known = {name: visible(value) for name, value in fields.items() if value}
    return ctx.texts.reason(why.code, visible(why.message), **known)


async def cancel(ctx: Context, options: Namespace) -> int:
    """Cancel each task; one that cannot be cancelled does not keep the others from it."""
    return await _each(ctx, options.task_ids, "cancel_task", "cancelled")


async def retry(ctx: Context, options: Namespace) -> int:
    """Have each task tried again; one that cannot be does not keep the others from it."""
    return await _each(ctx, options.task_ids, "retry_task", "retried")


async def _each(ctx: Context, task_ids: Iterable[int], action: str, done: str) -> int:
    ids = list(dict.fromkeys(task_ids))
    client, answers = await ctx.logged_in(*((action, {"task_id": task_id}) for task_id in ids))
    status = OK
    try:
        for task_id, answer in zip(ids, answers, strict=True):
            try:
                ctx.show(await answer, ctx.texts(done, id=task_id))
            except Refused as e:
                ctx.report(e)
                status = e.exit
    finally:
        client.close()
    return status


COMMANDS: dict[str, Callable[[Context, Namespace], Awaitable[int]]] = {
    "register": register,
    "login": login,
    "logout": logout,
    "whoami": whoami,
    "add": add,
    "list": list_tasks,
    "show": show,
    "watch": watch,
    "wait": wait,
    "log": log,
    "explain": explain,
    "cancel": cancel,
    "retry": retry,
    "kinds": kinds,
}
"""Each returns the exit status, or raises ClientError, EndOfInput or OutputClosed."""
