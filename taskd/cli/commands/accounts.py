"""``register``, ``login``, ``logout``, ``whoami`` and ``weight``, and where usernames and passwords come from."""

from __future__ import annotations

from argparse import Namespace
from contextlib import closing, suppress

from taskd.cli.context import Context
from taskd.cli.errors import OK, EndOfInput, UsageError
from taskd.cli.fields import checked
from taskd.client.errors import ClientError, ConnectionFailed, NotLoggedIn
from taskd.client.messages import Message, Received
from taskd.client.sessions import Session
from taskd.model.users import check_new_password, normalize_username
from taskd.model.visible import visible


async def register(ctx: Context, options: Namespace) -> int:
    """Create an account."""
    username = await get_username(ctx, options.username)
    checked(normalize_username, username, ClientError("bad_username"))
    password = await get_password(ctx, new=True)
    checked(check_new_password, password, ClientError("bad_password"))
    with closing(await ctx.connector.connect()) as connection:
        reply = await connection.request("register", username=username, password=password)
    name = reply.body.username or username
    ctx.report(reply, "registered", username=name, command=ctx.command("login", name))
    return OK


async def login(ctx: Context, options: Namespace) -> int:
    """Log in and store the session."""
    username = await get_username(ctx, options.username)
    password = await get_password(ctx)
    with closing(await ctx.connector.connect()) as connection:
        reply = await connection.request("login", username=username, password=password)
        name = reply.body.username or username
        if not reply.body.token:
            raise ConnectionFailed("not_taskd", transient=False, server=ctx.server)
        try:
            ctx.sessions.save(Session(ctx.server, name, reply.body.token))
        except ClientError:
            with suppress(ClientError):
                await connection.request("logout")  # nobody else has the token of this session
            raise
    ctx.report(reply, "logged_in", username=name)
    return OK


async def logout(ctx: Context, options: Namespace) -> int:
    """Delete the stored session in any case, and at the server if it still knows it."""
    try:
        reply = await ctx.connector.ask("logout")
    except NotLoggedIn as e:
        if e.key == "not_logged_in":
            raise
        reply = Received(b'{"ok":true,"status":"success"}', Message())
    finally:
        ctx.sessions.remove()
    ctx.report(reply, "logged_out")
    return OK


async def whoami(ctx: Context, options: Namespace) -> int:
    """Print the name of the user who is logged in."""
    reply = await ctx.connector.ask("whoami")
    ctx.show(reply, lambda: [visible(reply.body.username)])
    return OK


async def weight(ctx: Context, options: Namespace) -> int:
    """Set a user's share of the slots, as an admin."""
    checked(normalize_username, options.username, ClientError("bad_username"))
    reply = await ctx.connector.ask("set_weight", username=options.username, weight=options.weight)
    ctx.report(reply, "weighted", username=reply.body.username, weight=f"{reply.body.weight:g}")
    return OK


async def get_username(ctx: Context, given: str | None) -> str:
    """The username of the command line, else ask for it. Raises UsageError if the input is not a terminal."""
    if given is not None:
        return given
    if not ctx.source.tty:
        raise UsageError("username_missing")
    return await ctx.prompt("username")


async def get_password(ctx: Context, new: bool = False) -> str:
    """The password from TASKD_PASSWORD or the first line of the input, else ask for it without echo.

    A ``new`` one is asked for twice. Raises UsageError if the input is empty and no terminal.
    """
    if given := ctx.env.get("TASKD_PASSWORD"):
        return given
    if not ctx.source.tty:
        with suppress(EndOfInput):
            if line := await ctx.source.line():
                return line
        raise UsageError("password_missing")
    return await ask_new_password(ctx) if new else await ctx.prompt("password", hidden=True)


async def ask_new_password(ctx: Context) -> str:
    """Ask twice. Raises ClientError if the password is not allowed, or the two differ."""
    password = await ctx.prompt("password", hidden=True)
    checked(check_new_password, password, ClientError("bad_password"))
    if await ctx.prompt("password_again", hidden=True) != password:
        raise ClientError("passwords_differ")
    return password
