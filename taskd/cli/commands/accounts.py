"""``register``, ``login``, ``logout`` and ``whoami``."""

from __future__ import annotations

from argparse import Namespace
from contextlib import closing, suppress

from taskd.cli.context import Context
from taskd.cli.credentials import check_password, check_username, get_password, get_username
from taskd.cli.errors import OK
from taskd.cli.ui.text import visible
from taskd.client.errors import ClientError, ConnectionFailed, NotLoggedIn
from taskd.client.messages import Message, Received
from taskd.client.sessions import Session


async def register(ctx: Context, options: Namespace) -> int:
    """Create an account."""
    username = await get_username(ctx, options.username)
    check_username(username)
    password = await get_password(ctx, new=True)
    check_password(password)
    connection = await ctx.connector.connect()
    with closing(connection):
        reply = await connection.request("register", username=username, password=password)
    name = reply.body.username or username
    ctx.show(reply, ctx.texts("registered", username=name, command=ctx.command("login", name)))
    return OK


async def login(ctx: Context, options: Namespace) -> int:
    """Log in and store the session."""
    username = await get_username(ctx, options.username)
    password = await get_password(ctx)
    connection = await ctx.connector.connect()
    with closing(connection):
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
    ctx.show(reply, ctx.texts("logged_in", username=name))
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
    ctx.show(reply, ctx.texts("logged_out"))
    return OK


async def whoami(ctx: Context, options: Namespace) -> int:
    """Print the name of the user who is logged in."""
    reply = await ctx.connector.ask("whoami")
    ctx.show(reply, visible(reply.body.username))
    return OK
