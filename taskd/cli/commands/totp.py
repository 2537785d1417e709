"""``totp``: the second factor of the user who is logged in."""

from __future__ import annotations

from argparse import Namespace
from contextlib import closing

from msgspec import Struct

from taskd.cli.commands.passwords import send_password
from taskd.cli.context import Context
from taskd.cli.credentials import get_password, get_totp_code, refuse_token
from taskd.cli.errors import OK
from taskd.client.admission import Admission
from taskd.client.errors import Refused
from taskd.client.messages import Received
from taskd.model.visible import visible


class BegunTotp(Struct):
    """The reply to ``totp_begin``."""

    secret: str
    uri: str


class ConfirmedTotp(Struct):
    """The reply to ``totp_confirm``."""

    recovery_codes: list[str]


async def totp(ctx: Context, options: Namespace) -> int:
    """Turn the second factor on or off, or say whether it is on."""
    if options.verb == "status":
        reply = await ctx.connector.ask("whoami")
        ctx.report(reply, "totp_is_on" if reply.body.totp else "totp_is_off")
        return OK
    refuse_token(ctx)
    ctx.connector.session()  # a user who is not logged in must see that before typing
    password = await get_password(ctx)
    with closing(ctx.admission(ctx.connector.logged_in, options.wait_turn)) as admission:
        if options.verb == "on":
            await _turn_on(ctx, admission, password)
        else:
            code = await get_totp_code(ctx)
            reply = await send_password(admission, "totp_off", "wrong_password", password=password, code=code)
            ctx.report(reply, "totp_off")
    return OK


async def _turn_on(ctx: Context, admission: Admission, password: str) -> None:
    reply = await send_password(admission, "totp_begin", "wrong_password", password=password)
    begun = ctx.read(reply.line, BegunTotp)
    ctx.show(reply, lambda: [visible(begun.secret), visible(begun.uri)])
    if not ctx.json:
        ctx.note("totp_begun")
    reply = await _confirm(ctx, admission)
    confirmed = ctx.read(reply.line, ConfirmedTotp)
    ctx.show(reply, lambda: map(visible, confirmed.recovery_codes))
    if not ctx.json:
        ctx.note("totp_on")


async def _confirm(ctx: Context, admission: Admission) -> Received:
    """The reply to the first right code. At a terminal the user may try again: the secret stays the same."""
    while True:
        try:
            return await admission.request("totp_confirm", code=await get_totp_code(ctx))
        except Refused as e:
            if e.code != "wrong_code" or not ctx.source.tty:
                raise
            ctx.out.note(ctx.reporter.explain(e))
