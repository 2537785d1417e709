"""``passwd`` and ``delete-account``."""

from __future__ import annotations

from argparse import Namespace
from contextlib import closing

from taskd.cli.context import Context
from taskd.cli.credentials import get_code, get_line, get_new_password, get_password, get_username, refuse_token
from taskd.cli.errors import OK, UsageError
from taskd.cli.fields import checked
from taskd.client.admission import Admission
from taskd.client.errors import ClientError, Refused
from taskd.client.messages import Received
from taskd.model.errors import BadRequest
from taskd.model.users import normalize_username


async def passwd(ctx: Context, options: Namespace) -> int:
    """Change the password, or with ``--code`` set it without knowing the present one."""
    if options.code:
        return await _set_with_code(ctx, options)
    refuse_token(ctx)
    if options.username is not None:
        raise UsageError("username_needs_code")
    ctx.connector.session()  # a user who is not logged in must see that before typing
    old, new = await get_password(ctx), await get_new_password(ctx)
    with closing(ctx.admission(ctx.connector.logged_in, options.wait_turn)) as admission:
        reply = await change_password(admission, old, new)
    ctx.report(reply, "password_changed")
    return OK


async def change_password(admission: Admission, old: str, new: str) -> Received:
    """The reply to the change of the password. Raises ClientError."""
    return await send_password(admission, "change_password", "wrong_password", password=old, new_password=new)


async def _set_with_code(ctx: Context, options: Namespace) -> int:
    username = await get_username(ctx, options.username)
    checked(normalize_username, username, ClientError("bad_username"))
    code, new = await get_code(ctx), await get_new_password(ctx)
    with closing(ctx.admission(ctx.connector.connect, options.wait_turn)) as admission:
        fields = {"username": username, "code": code.strip(), "new_password": new}
        reply = await send_password(admission, "set_password", "wrong_code", **fields)
    ctx.report(reply, "password_set", command=ctx.command("login", username))
    return OK


async def delete_account(ctx: Context, options: Namespace) -> int:
    """Delete the account after its password and its name have been typed."""
    refuse_token(ctx)
    username = ctx.connector.session().username
    ctx.note("deleting", username=username, server=ctx.server)
    password = await get_password(ctx)
    typed = await get_line(ctx, "type_username", UsageError("confirmation_missing"))
    if _key(typed) != _key(username):
        raise ClientError("not_confirmed")
    with closing(ctx.admission(ctx.connector.logged_in, options.wait_turn)) as admission:
        reply = await send_password(admission, "delete_account", "wrong_password", password=password)
    ctx.sessions.remove()
    ctx.report(reply, "account_deleted", username=username)
    return OK


async def send_password(admission: Admission, action: str, wrong: str, /, **fields: str) -> Received:
    """The reply. If the credentials are refused, ``wrong`` is the code of the text that says which one it is."""
    try:
        return await admission.request(action, **fields)
    except Refused as e:
        if e.fields["status"] == "wrong_credentials":
            e.fields["status"] = wrong
        raise


def _key(username: str) -> str:
    """What is equal for all spellings of a username."""
    try:
        return normalize_username(username.strip())[1]
    except BadRequest:
        return username
