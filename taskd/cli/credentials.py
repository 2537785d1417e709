"""Usernames and passwords: from the command line, the environment, the input or the terminal."""

from __future__ import annotations

from taskd.cli.context import Context
from taskd.cli.errors import EndOfInput, UsageError
from taskd.client.errors import ClientError
from taskd.model.errors import BadRequest, TooLarge
from taskd.model.users import check_new_password, normalize_username


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
        try:
            line = await ctx.source.line()
        except EndOfInput:
            line = ""
        if not line:
            raise UsageError("password_missing")
        return line
    return await ask_new_password(ctx) if new else await ctx.prompt("password", hidden=True)


async def ask_new_password(ctx: Context) -> str:
    """Ask twice. Raises ClientError if the password is not allowed, or the two differ."""
    password = await ctx.prompt("password", hidden=True)
    check_password(password)
    if await ctx.prompt("password_again", hidden=True) != password:
        raise ClientError("passwords_differ")
    return password


def check_username(username: str) -> None:
    """Refuse what the server would refuse, but in the user's language. Raises ClientError."""
    try:
        normalize_username(username)
    except BadRequest:
        raise ClientError("bad_username") from None


def check_password(password: str) -> None:
    """Refuse what the server would refuse, but in the user's language. Raises ClientError."""
    try:
        check_new_password(password)
    except (BadRequest, TooLarge):
        raise ClientError("bad_password") from None
