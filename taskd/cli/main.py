"""``taskclient``: from the command line to an exit status."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskd.cli.errors import EndOfInput
from taskd.cli.exit_status import BROKEN_PIPE, ERROR, INTERRUPTED, USAGE, exit_status
from taskd.cli.std_streams import escape_unencodable, flush, note
from taskd.cli.texts.catalogue import Texts, language
from taskd.client.errors import ClientError

if TYPE_CHECKING:
    from taskd.cli.context import Context

# Twisted takes a quarter of a second to import, so the functions below import what needs it as late as possible


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status, whatever happens."""
    texts = Texts(language(os.environ))
    escape_unencodable()
    try:
        return _main(sys.argv[1:] if argv is None else argv, texts)
    except KeyboardInterrupt:
        note("\n" + texts("interrupted"))
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
    finally:
        flush()


def _main(argv: Sequence[str], texts: Texts) -> int:
    from taskd.cli.options import parser

    command_line = parser(texts)
    try:
        options = command_line.parse_args(argv)
    except SystemExit as e:  # argparse has printed its error or its help
        return e.code if isinstance(e.code, int) else ERROR
    if options.command is None and (options.json or not (_is_tty(sys.stdin) and _is_tty(sys.stdout))):
        command_line.print_usage(sys.stderr)
        return USAGE
    return _run(options, texts)


def _run(options: Namespace, texts: Texts) -> int:
    from taskd.client.address import DEFAULT_SERVER, is_plain, normalized

    try:
        address = normalized(options.server or os.environ.get("TASKD_SERVER") or DEFAULT_SERVER)
        if is_plain(address):
            _without_tls()
        return _run_in_reactor(options, texts, address)
    except ClientError as e:
        from taskd.cli.reporting import Reporter
        from taskd.cli.ui.terminal import Output

        Reporter(Output(sys.stdout, sys.stderr), texts, options.json).report(e)
        return exit_status(e)


def _without_tls() -> None:
    """Avoid the import of OpenSSL and cryptography for a plain connection: they take a quarter of the start.

    Twisted treats a missing pyOpenSSL as an installation without TLS.
    """
    if "OpenSSL" not in sys.modules and "twisted.internet.tcp" not in sys.modules:
        sys.modules["OpenSSL"] = None  # type: ignore[assignment]


def _run_in_reactor(options: Namespace, texts: Texts, address: str) -> int:
    from twisted.internet import reactor
    from twisted.logger import globalLogBeginner

    from taskd.cli.process import CommandProcess

    # Twisted would log to standard error, with tracebacks that do not help the user
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)
    ctx = _context(reactor, options, texts, address, os.environ)
    # These may print nothing for hours, and would not notice that their reader has closed the pipe
    pipe = ctx.out.pipe if options.command in ("watch", "wait", "log") else None
    return CommandProcess(reactor, texts, ctx.reporter).run(perform(ctx, options), pipe)


async def perform(ctx: Context, options: Namespace) -> int:
    """Run the command, or without one the menu, and report its error. Returns the exit status.

    Raises OutputClosed, and ClientError if the report itself cannot be written.
    """
    from taskd.cli.commands.table import COMMANDS
    from taskd.cli.menu import Menu

    try:
        if options.command is None:
            return await Menu(ctx).run()
        return await COMMANDS[options.command](ctx, options)
    except EndOfInput:
        ctx.reporter.report(ClientError("no_input"))
        return ERROR
    except ClientError as e:
        ctx.reporter.report(e)
        return exit_status(e)


def _context(reactor: Any, options: Namespace, texts: Texts, address: str, env: Mapping[str, str]) -> Context:
    import shutil
    from functools import partial

    from taskd.cli.context import Context
    from taskd.cli.ui.rendering import Renderer
    from taskd.cli.ui.terminal import Input, Output, can_move, colour_wanted, measure
    from taskd.client.address import endpoint
    from taskd.client.sessions import SessionFile, state_folder

    out = Output(sys.stdout, sys.stderr)
    colour = colour_wanted(env, out.tty)
    return Context(
        clock=reactor,
        endpoint=endpoint(reactor, address),
        server=address,
        server_given=options.server is not None,
        env=env,
        texts=texts,
        out=out,
        source=Input(reactor, sys.stdin),
        renderer=Renderer(texts, shutil.get_terminal_size().columns if out.tty else None, colour),
        sessions=SessionFile(state_folder(env), address),
        json=options.json,
        screen=partial(measure, colour) if can_move(env, out.tty) else None,
    )


def _is_tty(stream: Any) -> bool:
    return stream is not None and not stream.closed and stream.isatty()
