"""``taskclient``: from the command line to an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from taskd.cli.errors import USAGE, exit_status
from taskd.cli.std_streams import run_program
from taskd.cli.texts.catalogue import Texts, language
from taskd.client.errors import ClientError

# Twisted takes a quarter of a second to import, so the functions below import what needs it as late as possible


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status, whatever happens."""
    return run_program(_main, argv, Texts(language(os.environ)))


def _main(argv: Sequence[str], texts: Texts) -> int:
    from taskd.cli.options import parser

    command_line = parser(texts)
    try:
        options = command_line.parse_args(argv)
    except SystemExit as e:  # argparse has printed its error or its help
        return int(e.code or 0)
    if options.command is None and (options.json or not (_is_tty(sys.stdin) and _is_tty(sys.stdout))):
        command_line.print_usage(sys.stderr)
        return USAGE
    from taskd.client.address import DEFAULT_SERVER, is_plain, normalized

    try:
        address = normalized(options.server or os.environ.get("TASKD_SERVER") or DEFAULT_SERVER)
        if is_plain(address):
            _without_tls()
        from taskd.cli.run import run

        return run(options, texts, address)
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


def _is_tty(stream: Any) -> bool:
    return stream is not None and not stream.closed and stream.isatty()
