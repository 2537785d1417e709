"""``taskclient``: from the command line to an exit status."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskd.cli.std_streams import accept_any_letter, flush, note
from taskd.cli.texts.catalogue import Texts, language
from taskd.client.errors import BROKEN_PIPE, ERROR, INTERRUPTED, USAGE, ClientError, EndOfInput

if TYPE_CHECKING:
    from taskd.cli.context import Context
    from taskd.cli.ui.terminal import Output

# Twisted takes a quarter of a second to import: whatever needs it is imported when it is certain to be needed


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status, whatever happens."""
    texts = Texts(language(os.environ))
    accept_any_letter()
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
    except SystemExit as e:  # argparse has said why, or printed its help
        return e.code if isinstance(e.code, int) else ERROR
    if options.command is None and (options.json or not (_is_tty(sys.stdin) and _is_tty(sys.stdout))):
        command_line.print_usage(sys.stderr)
        return USAGE
    return _connected(options, texts)


def _connected(options: Namespace, texts: Texts) -> int:
    from taskd.client.address import DEFAULT_SERVER, is_plain, normalized

    server = options.server or os.environ.get("TASKD_SERVER") or DEFAULT_SERVER
    try:
        address = normalized(server)
        if is_plain(address):
            _without_tls()
        return _run(options, texts, address)
    except ClientError as e:
        from taskd.cli.context import report
        from taskd.cli.ui.terminal import Output

        report(e, Output(sys.stdout, sys.stderr), texts, options.json)
        return e.exit


def _without_tls() -> None:
    """Spare a plain connection the import of OpenSSL and cryptography, a quarter of the start.

    Twisted takes a missing pyOpenSSL for an installation without TLS.
    """
    if "OpenSSL" not in sys.modules and "twisted.internet.tcp" not in sys.modules:
        sys.modules["OpenSSL"] = None  # type: ignore[assignment]


def _run(options: Namespace, texts: Texts, address: str) -> int:
    from twisted.internet import reactor
    from twisted.logger import globalLogBeginner

    from taskd.cli.runner import Runner
    from taskd.cli.ui.terminal import Output

    # What Twisted would log, down to tracebacks on standard error, is no help to a user of the client
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)
    out = Output(sys.stdout, sys.stderr)
    ctx = _context(reactor, options, texts, address, os.environ, out)
    # These may have nothing to print for hours, and nobody else would notice that their reader has gone
    watched = out.pipe if options.command in ("watch", "wait", "log") else None
    return Runner(reactor, texts).run(lambda: perform(ctx, options), watched)


async def perform(ctx: Context, options: Namespace) -> int:
    """Run the command, or the menu without one, and report what goes wrong. Returns the exit status.

    Raises OutputClosed, and ClientError where the report itself cannot be written.
    """
    from taskd.cli.commands.basic import COMMANDS
    from taskd.cli.menu import Menu

    try:
        if options.command is None:
            return await Menu(ctx).run()
        return await COMMANDS[options.command](ctx, options)
    except EndOfInput:
        ctx.report(ClientError("no_input"))
        return ERROR
    except ClientError as e:
        ctx.report(e)
        return e.exit


def _context(
    reactor: Any, options: Namespace, texts: Texts, address: str, env: Mapping[str, str], out: Output
) -> Context:
    import shutil

    from taskd.cli.context import Context
    from taskd.cli.ui.rendering import Renderer
    from taskd.cli.ui.terminal import Input, Screen, can_move, colour_wanted
    from taskd.client.address import endpoint
    from taskd.client.sessions import SessionFile, state_folder

    size = shutil.get_terminal_size()
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
        renderer=Renderer(texts, size.columns if out.tty else None, colour),
        sessions=SessionFile(state_folder(env), address),
        json=options.json,
        screen=(lambda: Screen(*shutil.get_terminal_size(), colour)) if can_move(env, out.tty) else None,
    )


def _is_tty(stream: Any) -> bool:
    return stream is not None and not stream.closed and stream.isatty()
