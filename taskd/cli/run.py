"""Running one command: its context, the function for its name, and the report of its error."""

from __future__ import annotations

import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable

from twisted.logger import globalLogBeginner

from taskd.cli.commands import accounts, passwords, sessions, tasks, users
from taskd.cli.commands.add import add
from taskd.cli.commands.kinds import kinds
from taskd.cli.commands.log import log
from taskd.cli.commands.overview import overview
from taskd.cli.commands.quota import quota
from taskd.cli.commands.totp import totp
from taskd.cli.commands.wait import wait
from taskd.cli.commands.watch import watch
from taskd.cli.context import Context
from taskd.cli.credentials import given_token
from taskd.cli.errors import ERROR, EndOfInput, UsageError, exit_status
from taskd.cli.logins import begin_session
from taskd.cli.menu import Menu
from taskd.cli.process import CommandProcess
from taskd.cli.texts.catalogue import Texts
from taskd.cli.ui.rendering import Renderer
from taskd.cli.ui.terminal import Input, Output, can_move, colour_wanted
from taskd.client.address import endpoint, is_plain
from taskd.client.errors import ClientError
from taskd.client.sessions import SessionFile, state_folder

COMMANDS: dict[str, Callable[[Context, Namespace], Awaitable[int]]] = {
    "register": accounts.register,
    "login": accounts.login,
    "logout": accounts.logout,
    "whoami": accounts.whoami,
    "passwd": passwords.passwd,
    "delete-account": passwords.delete_account,
    "totp": totp,
    "sessions": sessions.sessions,
    "token": sessions.token,
    "add": add,
    "list": tasks.list_tasks,
    "show": tasks.show,
    "watch": watch,
    "wait": wait,
    "log": log,
    "explain": tasks.explain,
    "cancel": tasks.cancel,
    "retry": tasks.retry,
    "kinds": kinds,
    "overview": overview,
    "quota": quota,
    "weight": accounts.weight,
    "users": users.users,
    "invite": users.invite,
    "invitations": users.invitations,
    "audit": users.audit,
}
"""Each returns the exit status, or raises ClientError, EndOfInput or OutputClosed."""

WITHOUT_SESSION = ("register", "login", "logout", "passwd")
"""Commands that need no session, or end it."""


def run(options: Namespace, texts: Texts, address: str) -> int:
    """Run the command under the reactor; returns its exit status. Raises BadAddress and UsageError, and ClientError for
    a wrong option."""
    from twisted.internet import reactor

    # Twisted would log to standard error, with tracebacks that do not help the user
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)
    env = os.environ
    if options.cafile and is_plain(address):
        raise UsageError("cafile_without_tls", server=address)
    out = Output(sys.stdout, sys.stderr)
    ctx = Context(
        clock=reactor,
        endpoint=endpoint(reactor, address, options.cafile or env.get("TASKD_CAFILE") or None),
        server=address,
        server_given=options.server is not None,
        cafile_given=options.cafile,
        env=env,
        texts=texts,
        out=out,
        source=Input(reactor, sys.stdin),
        renderer=Renderer(
            texts,
            shutil.get_terminal_size().columns if out.tty else None,
            colour_wanted(env, out.tty),
        ),
        sessions=SessionFile(state_folder(env), address),
        json=options.json,
        given=given_token(address, options.token_file, env),
        measure=shutil.get_terminal_size if can_move(env, out.tty) else None,
    )
    # These may print nothing for hours, and would not notice that their reader has closed the pipe
    pipe = out.pipe if options.command in ("watch", "wait", "log") else None
    return CommandProcess(reactor, texts, ctx.reporter).run(perform(ctx, options), pipe)


async def perform(ctx: Context, options: Namespace) -> int:
    """Run the command, or without one the menu, and report its error. Returns the exit status.

    Raises OutputClosed, and ClientError if the report itself cannot be written.
    """
    try:
        if options.command is None:
            return await Menu(ctx).run()
        if options.command not in WITHOUT_SESSION:
            await begin_session(ctx)
        return await COMMANDS[options.command](ctx, options)
    except EndOfInput:
        ctx.reporter.report(ClientError("no_input"))
        return ERROR
    except ClientError as e:
        ctx.reporter.report(e)
        return exit_status(e)
