"""Where usernames, passwords, codes, invitations and API tokens come from: never from the command line, where every
user of the machine can read them and the shell remembers them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress

from taskd.cli.context import Context
from taskd.cli.errors import EndOfInput, UsageError
from taskd.client.errors import ClientError
from taskd.client.sessions import GivenToken
from taskd.model.errors import BadRequest
from taskd.model.limits import MAX_PASSWORD_BYTES, MIN_PASSWORD_BYTES
from taskd.model.users import check_new_password

MAX_SECRET_BYTES = 4096
"""The most bytes of a file that are read as a secret."""


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
        return await _line(ctx, UsageError("password_missing"))
    return await ask_new_password(ctx) if new else await ctx.prompt("password", hidden=True)


async def get_new_password(ctx: Context) -> str:
    """The password that replaces the present one: the next line of the input, else ask for it twice. Raises UsageError,
    and ClientError if it is not allowed."""
    if ctx.source.tty:
        return await ask_new_password(ctx, "new_password")
    password = await _line(ctx, UsageError("new_password_missing"))
    check_password(password)
    return password


def check_password(password: str) -> None:
    """Raises ClientError if a new password is not allowed."""
    try:
        check_new_password(password)
    except BadRequest as e:
        size = len(password.encode(errors="surrogatepass"))
        if MIN_PASSWORD_BYTES <= size <= MAX_PASSWORD_BYTES:
            raise ClientError("refused_password", why=e.message) from None
        raise ClientError("bad_password") from None


async def ask_new_password(ctx: Context, question: str = "password") -> str:
    """Ask twice. Raises ClientError if the password is not allowed, or the two differ."""
    password = await ctx.prompt(question, hidden=True)
    check_password(password)
    if await ctx.prompt("password_again", hidden=True) != password:
        raise ClientError("passwords_differ")
    return password


async def get_code(ctx: Context) -> str:
    """The one-time code: the first line of the input, else ask for it. Raises UsageError."""
    # It is shown while the user types it from paper: this command uses it up
    return await get_line(ctx, "code", UsageError("code_missing"))


async def get_totp_code(ctx: Context) -> str:
    """The code of the second factor: the next line of the input, else ask for it. Raises UsageError."""
    # It is shown while the user types it: it works once, and only now
    return (await get_line(ctx, "totp_code", UsageError("totp_code_missing"))).strip()


async def get_invitation(ctx: Context, options: Namespace) -> str | None:
    """The invitation of ``--invitation-file`` or TASKD_INVITATION; with ``--invitation``, ask for it or take the next
    line of the input. None if none is given. Raises ClientError."""
    if options.invitation_file is not None:
        return secret_file(options.invitation_file)
    if given := ctx.env.get("TASKD_INVITATION"):
        return given
    if not options.invitation:
        return None
    return await ask_invitation(ctx) if ctx.source.tty else await _line(ctx, UsageError("invitation_missing"))


async def ask_invitation(ctx: Context) -> str:
    """Ask for it without echo: other people may still register with it. Raises ClientError if nothing is entered."""
    invitation = (await ctx.prompt("invitation", hidden=True)).strip()
    if not invitation:
        raise ClientError("no_invitation")
    return invitation


def given_token(server: str, file: str | None, env: Mapping[str, str]) -> GivenToken | None:
    """The API token of ``--token-file``, else of TASKD_TOKEN; None without one. Raises ClientError."""
    if file is not None:
        return GivenToken(server, secret_file(file), "--token-file")
    token = env.get("TASKD_TOKEN", "").strip()
    return GivenToken(server, token, "TASKD_TOKEN") if token else None


def refuse_token(ctx: Context) -> None:
    """Raises UsageError if an API token is given to a command that is for a login with the password."""
    if ctx.given is not None:
        raise UsageError("token_given", source=ctx.given.source)


def secret_file(path: str) -> str:
    """The first line of a file. Raises ClientError."""
    error = ClientError("secret_empty", path=path)
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_SECRET_BYTES)
    except (OSError, ValueError) as e:
        raise ClientError("secret_unreadable", path=path, why=getattr(e, "strerror", None) or e) from None
    try:
        secret = raw.partition(b"\n")[0].decode().strip()
    except UnicodeDecodeError:
        raise error from None
    if not secret:
        raise error
    return secret


async def get_line(ctx: Context, question: str, missing: UsageError) -> str:
    """The answer to a question at the terminal, else the next line of the input. Raises ``missing`` without one."""
    return await ctx.prompt(question) if ctx.source.tty else await _line(ctx, missing)


async def _line(ctx: Context, missing: UsageError) -> str:
    """The next line of an input that is no terminal. Raises ``missing`` if there is none."""
    with suppress(EndOfInput):
        if line := await ctx.source.line():
            return line
    raise missing
