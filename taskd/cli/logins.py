"""Logins, with a password or as the user of the machine, over a UNIX socket."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import Any

from taskd.cli.context import Context
from taskd.cli.credentials import get_totp_code
from taskd.client.address import is_unix
from taskd.client.admission import Admission
from taskd.client.errors import ClientError, ConnectionFailed, Refused
from taskd.client.messages import Received
from taskd.client.sessions import Session

_NOT_HERE = ("forbidden", "bad_request")
"""Codes of servers that allow no local login to this user, and of those that do not know what it is."""


async def begin_session(ctx: Context) -> None:
    """Log in as the user of the machine if that can be and nobody is logged in. What keeps the server from it is one
    line for the user, and then the command says that nobody is logged in. Raises ClientError."""
    if not is_unix(ctx.server) or ctx.given is not None or ctx.sessions.load() is not None:
        return
    with closing(ctx.admission(ctx.connector.connect)) as admission:
        reply = await local_login(ctx, admission)
        if reply is not None:
            await keep_session(ctx, admission, reply)


async def send_login(ctx: Context, admission: Admission, **fields: Any) -> Received:
    """The reply to a login. Ask for the code of the second factor if the server wants one. Raises ClientError."""
    try:
        return await admission.request("login", **fields)
    except Refused as e:
        if e.code != "totp_required":
            raise
    return await admission.request("login", **fields, code=await get_totp_code(ctx))


async def local_login(ctx: Context, admission: Admission) -> Received | None:
    """The reply to the login. If the server refuses it, print a line that says why, and return None. Raises
    ClientError."""
    try:
        return await send_login(ctx, admission, local=True)
    except Refused as e:
        if e.code not in _NOT_HERE:
            raise
        if e.code == "bad_request":
            ctx.note("local_unknown")
        else:
            ctx.note("local_refused", why=ctx.reporter.explain(e))
        return None


async def keep_session(ctx: Context, admission: Admission, reply: Received, username: str = "") -> str:
    """Store the session that a login has begun. Returns the name of the user. Raises ClientError."""
    name = reply.body.username or username
    if not reply.body.token:
        raise ConnectionFailed("not_taskd", transient=False, server=ctx.server)
    try:
        ctx.sessions.save(Session(ctx.server, name, reply.body.token))
    except ClientError:
        with suppress(ClientError):
            await admission.request("logout")  # nobody else has the token of this session
        raise
    return name
