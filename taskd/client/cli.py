"""``taskclient``: from the command line to an exit status."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskd.client.errors import (
    BROKEN_PIPE,
    ERROR,
    INTERRUPTED,
    TERMINATED,
    USAGE,
    ClientError,
    EndOfInput,
    OutputClosed,
)
from taskd.client.texts import Texts, language

if TYPE_CHECKING:
    from taskd.client.context import Context

# Twisted takes a quarter of a second to import: whatever needs it is imported when it is certain to be needed


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status, whatever happens."""
    texts = Texts(language(os.environ))
    try:
        return _main(sys.argv[1:] if argv is None else argv, texts)
    except KeyboardInterrupt:
        _note("\n" + texts("interrupted"))
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
    finally:
        _flush()


def _main(argv: Sequence[str], texts: Texts) -> int:
    from taskd.client.options import parser

    command_line = parser(texts)
    try:
        options = command_line.parse_args(argv)
    except SystemExit as e:  # argparse has said why, or printed its help
        return e.code if isinstance(e.code, int) else ERROR
    if options.command is None and not (_is_tty(sys.stdin) and _is_tty(sys.stdout)):
        command_line.print_usage(sys.stderr)
        return USAGE
    return _connected(options, texts)


def _connected(options: Namespace, texts: Texts) -> int:
    from taskd.client.address import DEFAULT_SERVER, normalized

    server = options.server or os.environ.get("TASKD_SERVER") or DEFAULT_SERVER
    try:
        address = normalized(server)
        if not address.startswith(("tls:", "ssl:", "wrapTLS:")):
            _without_tls()
        return _run(options, texts, address)
    except ClientError as e:
        from taskd.client.context import explain

        _note(f"taskclient: {explain(e, texts)}")
        return e.exit


def _without_tls() -> None:
    """Spare a plain connection the import of OpenSSL and cryptography, a third of the start.

    Twisted takes a missing pyOpenSSL for an installation without TLS.
    """
    if "OpenSSL" not in sys.modules and "twisted.internet.tcp" not in sys.modules:
        sys.modules["OpenSSL"] = None  # type: ignore[assignment]


def _run(options: Namespace, texts: Texts, address: str) -> int:
    from twisted.internet import reactor
    from twisted.logger import globalLogBeginner

    # What Twisted would log, down to tracebacks on standard error, is no help to a user of the client
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)
    ctx = _context(reactor, options, texts, address, os.environ)
    return Runner(reactor, texts).run(lambda: perform(ctx, options))


async def perform(ctx: Context, options: Namespace) -> int:
    """Run the command, or the menu without one, and report what goes wrong. Returns the exit status.

    Raises OutputClosed, and ClientError where the report itself cannot be written.
    """
    from taskd.client.commands import COMMANDS
    from taskd.client.menu import Menu

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


def _context(reactor: Any, options: Namespace, texts: Texts, address: str, env: Mapping[str, str]) -> Context:
    import shutil

    from taskd.client.address import endpoint
    from taskd.client.context import Context
    from taskd.client.rendering import Renderer
    from taskd.client.sessions import SessionFile, state_folder
    from taskd.client.terminal import Input, Output, colour_wanted

    out = Output(sys.stdout, sys.stderr)
    columns = shutil.get_terminal_size().columns if out.tty else None
    return Context(
        clock=reactor,
        endpoint=endpoint(reactor, address),
        server=address,
        server_given=options.server is not None,
        env=env,
        texts=texts,
        out=out,
        source=Input(reactor, sys.stdin),
        renderer=Renderer(texts, columns, colour_wanted(env, out.tty)),
        sessions=SessionFile(state_folder(env), address),
        json=options.json,
    )


class Runner:
    """Runs one coroutine under the reactor. Ctrl-C and SIGTERM cancel it, and it restores the terminal."""

    def __init__(self, reactor: Any, texts: Texts) -> None:
        self._reactor = reactor
        self._texts = texts
        self._status = ERROR
        self._signal = 0

    def run(self, perform: Callable[[], Coroutine[Any, Any, int]]) -> int:
        """The exit status; on a signal 128 and its number."""
        self._reactor.callWhenRunning(self._start, perform)
        self._reactor.run(installSignalHandlers=False)
        return self._status

    def _start(self, perform: Callable[[], Coroutine[Any, Any, int]]) -> None:
        from twisted.internet.defer import Deferred

        task = Deferred.fromCoroutine(perform())

        def stop(number: int, frame: Any) -> None:
            self._signal = number
            self._reactor.callFromThread(task.cancel)

        task.addCallbacks(self._done, self._failed)
        task.addBoth(self._stop)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)

    def _done(self, status: int) -> None:
        self._status = status

    def _failed(self, failure: Any) -> None:
        if self._signal == signal.SIGINT:
            _note("\n" + self._texts("interrupted"))
            self._status = INTERRUPTED
        elif self._signal:
            self._status = TERMINATED
        elif failure.check(OutputClosed):
            self._status = BROKEN_PIPE
        elif failure.check(ClientError):  # the error could not be reported where it should be
            from taskd.client.context import explain

            _note(f"taskclient: {explain(failure.value, self._texts)}")
            self._status = failure.value.exit
        else:
            why = f"{failure.type.__name__}: {failure.value}"
            _note(f"taskclient: {self._texts('unexpected', why=' '.join(why.split()))}")

    def _stop(self, _: Any) -> None:
        if self._reactor.threadpool is not None:
            # A look-up of a name that hangs cannot be interrupted, and stop() would wait for its thread
            _flush()
            os._exit(self._status)
        self._reactor.stop()


def _is_tty(stream: Any) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def _note(line: str) -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)


def _flush() -> None:
    """Flush now, where it can be silent: at exit the interpreter would complain about a closed pipe."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        from taskd.client.terminal import discard_output

        discard_output()
