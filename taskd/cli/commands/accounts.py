"""``register``, ``login``, ``logout``, ``whoami`` and ``weight``."""

from __future__ import annotations

from argparse import Namespace
from contextlib import closing

from taskd.cli.context import Context
from taskd.cli.credentials import (
    ask_invitation,
    check_password,
    get_invitation,
    get_password,
    get_username,
    refuse_token,
)
from taskd.cli.errors import OK
from taskd.cli.fields import checked
from taskd.cli.logins import keep_session, local_login, send_login
from taskd.client.address import is_unix
from taskd.client.admission import Admission
from taskd.client.errors import ClientError, NotLoggedIn, Refused
from taskd.client.messages import Message, Received
from taskd.model.users import normalize_username
from taskd.model.visible import visible


async def register(ctx: Context, options: Namespace) -> int:
    """Create an account."""
    username = await get_username(ctx, options.username)
    checked(normalize_username, username, ClientError("bad_username"))
    password = await get_password(ctx, new=True)
    check_password(password)
    invitation = await get_invitation(ctx, options)
    with closing(ctx.admission(ctx.connector.connect, options.wait_turn)) as admission:
        reply = await send_registration(ctx, admission, username, password, invitation)
    name = reply.body.username or username
    ctx.report(reply, "registered", username=name, command=ctx.command("login", name))
    return OK


async def send_registration(
    ctx: Context, admission: Admission, username: str, password: str, invitation: str | None = None
) -> Received:
    """The reply to a registration. Ask for an invitation if the server wants one. Raises ClientError."""
    fields = {"username": username, "password": password}
    if invitation is None:
        try:
            return await admission.request("register", **fields)
        except Refused as e:
            if not ctx.source.tty or (e.code, e.fields["field"]) != ("forbidden", "invitation"):
                raise
        invitation = await ask_invitation(ctx)
    return await admission.request("register", **fields, invitation=invitation)


async def login(ctx: Context, options: Namespace) -> int:
    """Log in and store the session."""
    refuse_token(ctx)
    reply, username = None, options.username
    with closing(ctx.admission(ctx.connector.connect, options.wait_turn)) as admission:
        if username is None and is_unix(ctx.server):
            reply = await local_login(ctx, admission)
        if reply is None:
            username = await get_username(ctx, username)
            password = await get_password(ctx)
            reply = await send_login(ctx, admission, username=username, password=password)
        name = await keep_session(ctx, admission, reply, username or "")
    ctx.report(reply, "logged_in", username=name)
    return OK


async def logout(ctx: Context, options: Namespace) -> int:
    """Delete the stored session in any case, and at the server if it still knows it."""
    refuse_token(ctx)  # or else this would end the token of a program
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
