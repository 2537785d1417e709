"""``sessions`` and ``token``: where the user is logged in, and the API tokens of their programs."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from msgspec import Raw, Struct

from taskd.cli.context import Context
from taskd.cli.errors import OK
from taskd.cli.ui.listing import Listing, day
from taskd.cli.ui.rendering import age
from taskd.client.messages import Received
from taskd.model.visible import visible
from taskd.protocol.views import Moment


class ShownSession(Struct):
    """A session or an API token as the server describes it. Only a token has a ``name``."""

    id: int
    created_at: Moment
    used_at: Moment
    expires_at: Moment
    current: bool = False
    name: str | None = None
    ending: str | None = None
    scopes: list[str] | None = None
    address: str | None = None


class MadeToken(Struct):
    """The reply to ``new_token``."""

    token: str
    expires_at: Moment


async def sessions(ctx: Context, options: Namespace) -> int:
    """List the user's sessions and API tokens, or end some of them."""
    if options.end is not None:
        return await _end_one(ctx, options.end, "session_ended")
    if options.end_all:
        reply = await _end(ctx, "end_sessions")
        ctx.report(reply, "sessions_ended", n=reply.body.ended)
        return OK
    reply = await ctx.connector.ask("sessions")
    if ctx.json:
        ctx.out.raw(*reply.body.sessions)
    else:
        ctx.out.lines(session_lines(ctx, reply.body.sessions))
    return OK


async def token(ctx: Context, options: Namespace) -> int:
    """Make, list or end API tokens."""
    if options.verb == "new":
        return await _make_token(ctx, options)
    if options.verb == "end":
        return await _end_one(ctx, options.token_id, "token_ended")
    reply = await ctx.connector.ask("sessions")
    tokens = [
        (raw, session) for raw in reply.body.sessions if (session := ctx.read(raw, ShownSession)).name is not None
    ]
    if ctx.json:
        ctx.out.raw(*(raw for raw, _ in tokens))
    elif tokens:
        ctx.out.lines(_token_lines(ctx, [session for _, session in tokens]))
    else:
        ctx.say("no_tokens")
    return OK


async def _make_token(ctx: Context, options: Namespace) -> int:
    fields: dict[str, Any] = {"name": options.name}
    if options.days is not None:
        fields["days"] = options.days
    if options.scope:
        fields["scopes"] = options.scope
    reply = await ctx.connector.ask("new_token", **fields)
    made = ctx.read(reply.line, MadeToken)
    show_secret(ctx, reply, made.token, "token_made", name=options.name, until=day(made.expires_at))
    return OK


def show_secret(ctx: Context, reply: Received, secret: str, key: str, /, **fields: Any) -> None:
    """Print a secret that the server tells only once: alone on standard output, so that a program can take it from
    there. The text of that name goes to standard error."""
    ctx.show(reply, lambda: [visible(secret)])
    if not ctx.json:
        ctx.note(key, **fields)


def session_lines(ctx: Context, raws: Sequence[Raw]) -> list[str]:
    """Sessions and API tokens as a table. Raises ConnectionFailed."""
    names = ("id", "created", "last_used", "expires", "address", "session")
    table = _table(ctx, names, ("created", "address", "last_used", "expires"))
    return table.lines(
        {**_times(ctx, session), "address": session.address or "-", "session": _what(ctx, session)}
        for session in (ctx.read(raw, ShownSession) for raw in raws)
    )


def _token_lines(ctx: Context, tokens: Sequence[ShownSession]) -> list[str]:
    names = ("id", "created", "last_used", "expires", "ending", "scopes", "name")
    table = _table(ctx, names, ("created", "ending", "last_used", "scopes", "expires"))
    return table.lines(
        {
            **_times(ctx, each),
            "ending": each.ending or "-",
            "scopes": ctx.texts("all_scopes") if each.scopes is None else ", ".join(each.scopes),
            "name": each.name or "-",
        }
        for each in tokens
    )


def _table(ctx: Context, names: Sequence[str], expendable: Sequence[str]) -> Listing:
    return Listing(ctx.texts, ctx.renderer.columns, names, right=("id",), expendable=expendable)


def _times(ctx: Context, session: ShownSession) -> dict[str, str]:
    return {
        "id": str(session.id),
        "created": day(session.created_at),
        "last_used": age(session.used_at, ctx.now()),
        "expires": day(session.expires_at),
    }


def _what(ctx: Context, session: ShownSession) -> str:
    if session.name is not None:
        return ctx.texts("session_token", name=session.name)
    return ctx.texts("session_current" if session.current else "session_other")


async def _end_one(ctx: Context, session_id: int, done: str) -> int:
    ctx.report(await _end(ctx, "end_session", session_id=session_id), done, id=session_id)
    return OK


async def _end(ctx: Context, action: str, **fields: Any) -> Received:
    with closing(await ctx.connector.logged_in()) as connection:
        return await connection.request(action, **fields)
