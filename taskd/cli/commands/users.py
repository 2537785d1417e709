"""``users``, ``invite``, ``invitations`` and ``audit``: what admins do with the accounts of others."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from msgspec import Raw, Struct

from taskd.cli.commands.sessions import show_secret
from taskd.cli.context import Context
from taskd.cli.durations import duration
from taskd.cli.errors import OK
from taskd.cli.fields import checked
from taskd.cli.paging import most_of, print_pages
from taskd.cli.ui.listing import Listing, day
from taskd.cli.ui.rendering import age, moment
from taskd.client.errors import ClientError
from taskd.model.users import normalize_username
from taskd.protocol.views import Moment


class ShownUser(Struct):
    """A user as admins see it. ``has_code``: the user has not yet set a password with the one-time code."""

    username: str
    role: str
    created_at: Moment
    disabled: bool = False
    weight: float = 1.0
    used_at: Moment | None = None
    has_code: bool = False


class MadeCode(Struct):
    """The reply to ``reset_password``. ``expires_in`` is in seconds."""

    username: str
    code: str
    expires_in: float


class MadeInvitation(Struct):
    """The reply to ``invite``. ``expires_in`` is in seconds."""

    invitation: str
    expires_in: float
    uses: int = 1


class ChangedUser(Struct):
    """The reply to ``set_role``, ``set_disabled`` and ``reset_totp``: the user as it is now."""

    username: str
    role: str


class ShownInvitation(Struct):
    """An invitation that is valid."""

    id: int
    uses_left: int
    created_by: str
    created_at: Moment
    expires_at: Moment


class AuditRow(Struct):
    """Who did what to which account."""

    at: Moment
    action: str
    outcome: str = ""
    actor: str = ""
    subject: str = ""
    address: str | None = None
    number: int = 1
    details: str | None = None


async def users(ctx: Context, options: Namespace) -> int:
    """List the users, or change one of them."""
    if options.verb is not None:
        checked(normalize_username, options.username, ClientError("bad_username"))
        return await _change(ctx, options)
    names = ("role", "account", "weight", "created", "last_used", "username")
    table = Listing(
        ctx.texts,
        ctx.renderer.columns,
        names,
        right=("weight",),
        expendable=("created", "weight", "last_used", "account"),
    )

    def lines(raws: Sequence[Raw]) -> list[str]:
        return table.lines(_user(ctx, ctx.read(raw, ShownUser)) for raw in raws)

    return await print_pages(ctx, "users", "users", {}, most_of(options), lines)


async def _change(ctx: Context, options: Namespace) -> int:
    ask, verb, username = ctx.connector.ask, options.verb, options.username
    if verb == "reset-password":
        reply = await ask("reset_password", username=username)
        made = ctx.read(reply.line, MadeCode)
        command = ctx.command("passwd", "--code", made.username)
        fields = {"username": made.username, "time": duration(round(made.expires_in)), "command": command}
        show_secret(ctx, reply, made.code, "code_made", **fields)
    elif verb == "reset-totp":
        reply = await ask("reset_totp", username=username)
        ctx.report(reply, "totp_reset", username=ctx.read(reply.line, ChangedUser).username)
    elif verb == "end-sessions":
        reply = await ask("end_user_sessions", username=username)
        ctx.report(reply, "sessions_ended", n=reply.body.ended)
    elif verb == "set-role":
        reply = await ask("set_role", username=username, role=options.role)
        user = ctx.read(reply.line, ChangedUser)
        ctx.report(reply, "role_set", username=user.username, role=user.role)
    else:
        reply = await ask("set_disabled", username=username, disabled=verb == "disable")
        ctx.report(reply, f"user_{verb}d", username=ctx.read(reply.line, ChangedUser).username)
    return OK


def _user(ctx: Context, user: ShownUser) -> dict[str, str]:
    account = "disabled" if user.disabled else "code" if user.has_code else "active"
    return {
        "role": user.role,
        "account": ctx.texts(f"account.{account}"),
        "weight": f"{user.weight:g}",
        "created": day(user.created_at),
        "last_used": "-" if user.used_at is None else age(user.used_at, ctx.now()),
        "username": user.username,
    }


async def invite(ctx: Context, options: Namespace) -> int:
    """Make an invitation to register."""
    fields = {name: value for name in ("uses", "days") if (value := getattr(options, name)) is not None}
    reply = await ctx.connector.ask("invite", **fields)
    made = ctx.read(reply.line, MadeInvitation)
    command = ctx.command("register", "--invitation")
    show_secret(
        ctx, reply, made.invitation, "invited", n=made.uses, time=duration(round(made.expires_in)), command=command
    )
    return OK


async def invitations(ctx: Context, options: Namespace) -> int:
    """List the invitations that are valid, or withdraw one."""
    if options.end is not None:
        reply = await ctx.connector.ask("end_invitation", invitation_id=options.end)
        ctx.report(reply, "invitation_ended", id=options.end)
        return OK
    reply = await ctx.connector.ask("invitations")
    if ctx.json:
        ctx.out.raw(*reply.body.invitations)
    elif reply.body.invitations:
        names = ("id", "uses_left", "created", "expires", "created_by")
        table = Listing(
            ctx.texts, ctx.renderer.columns, names, right=("id", "uses_left"), expendable=("created", "uses_left")
        )
        shown = (ctx.read(raw, ShownInvitation) for raw in reply.body.invitations)
        ctx.out.lines(table.lines(map(_invitation, shown)))
    else:
        ctx.say("no_invitations")
    return OK


def _invitation(each: ShownInvitation) -> dict[str, str]:
    return {
        "id": str(each.id),
        "uses_left": str(each.uses_left),
        "created": day(each.created_at),
        "expires": day(each.expires_at),
        "created_by": each.created_by,
    }


async def audit(ctx: Context, options: Namespace) -> int:
    """Show the audit, the newest rows first."""
    filters: dict[str, Any] = {}
    if options.user is not None:
        checked(normalize_username, options.user, ClientError("bad_username"))
        filters["username"] = options.user
    if options.action is not None:
        filters["action_name"] = options.action
    table = Listing(
        ctx.texts,
        ctx.renderer.columns,
        ("at", "action", "outcome", "number", "actor", "subject", "address", "details"),
        right=("number",),
        expendable=("number", "address", "outcome", "at"),
        least=7,
    )

    def lines(raws: Sequence[Raw]) -> list[str]:
        return table.lines(_row(ctx.read(raw, AuditRow)) for raw in raws)

    return await print_pages(ctx, "audit", "audit", filters, most_of(options), lines)


def _row(row: AuditRow) -> dict[str, str]:
    return {
        "at": moment(row.at),
        "action": row.action,
        "outcome": row.outcome,
        "number": str(row.number),
        "actor": row.actor or "-",
        "subject": row.subject or "-",
        "address": row.address or "-",
        "details": row.details or "",
    }
