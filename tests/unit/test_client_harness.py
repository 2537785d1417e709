"""What the unit tests of the client share: a server in memory, a clock, a keyboard, captured output."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, IOPump, connect
from zope.interface import implementer

from taskd.cli.context import Context
from taskd.cli.credentials import given_token
from taskd.cli.errors import EndOfInput
from taskd.cli.options import parser
from taskd.cli.run import perform
from taskd.cli.texts.catalogue import Texts
from taskd.cli.ui.rendering import Renderer
from taskd.cli.ui.terminal import Input, Output
from taskd.client.errors import ClientError
from taskd.client.sessions import SessionFile, state_folder
from taskd.model.errors import TaskdError
from tests.unit.test_client_taskd import NOON, FakeConnection, FakeTaskd

SERVER = "127.0.0.1:5000"


@implementer(IStreamClientEndpoint)
class FakeNetwork:
    """Connects clients to servers in memory. If ``failing`` is set, connection attempts raise it."""

    def __init__(self, serve: Callable[[], LineReceiver]) -> None:
        self._serve = serve
        self._pumps: list[IOPump] = []
        self.failing: Exception | None = None
        self.attempts = 0
        self.peer: Any = IPv4Address("TCP", "127.0.0.1", 5000)
        """Where the clients have connected to."""

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        self.attempts += 1
        if self.failing is not None:
            return fail(self.failing)
        client = factory.buildProtocol(None)  # type: ignore[arg-type]
        server = self._serve()
        transports = FakeTransport(server, True), FakeTransport(client, False, peerAddress=self.peer)
        connected: Deferred[IProtocol] = Deferred()
        self._pumps.append(connect(server, transports[0], client, transports[1]))
        connected.callback(client)  # type: ignore[arg-type]
        return connected

    def flush(self) -> None:
        """Deliver all bytes in both directions."""
        while any(pump.pump() for pump in self._pumps):
            pass


class FakeSource(Input):
    """A keyboard or a pipe with these lines. While it is ``open``, the reader waits for :meth:`type` at their end."""

    def __init__(self, lines: Iterable[str], tty: bool) -> None:
        super().__init__(None, None)
        self.tty = tty
        self.open = False
        self.secret: list[str] = []
        self._lines = deque(lines)
        self._hidden = False
        self._typed: Deferred[None] | None = None

    def type(self, *lines: str) -> None:
        """The user types."""
        self._lines.extend(lines)
        typed, self._typed = self._typed, None
        if typed is not None:
            typed.callback(None)

    async def line(self) -> str:
        if not self._lines and self.open:
            self._typed = Deferred()
            await self._typed
        if not self._lines:
            raise EndOfInput
        line = self._lines.popleft()
        if self._hidden:
            self.secret.append(line)
        return line

    async def lines(self) -> list[str]:
        first = await self.line()
        rest, self._lines = self._lines, deque()
        return [first, *rest]

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        self._hidden = True
        try:
            yield
        finally:
            self._hidden = False


class Stream(io.StringIO):
    """Captured output that may claim to be a terminal."""

    def __init__(self, tty: bool = False) -> None:
        super().__init__()
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty


class Run:
    """One running command. ``status`` is None until it has ended; ``error`` is the exception that it raised."""

    def __init__(self, stage: Stage, stdout: Stream, stderr: Stream, source: FakeSource, ctx: Context) -> None:
        self._stage = stage
        self._stdout, self._stderr = stdout, stderr
        self.source = source
        self.ctx = ctx
        self.status: int | None = None
        self.error: BaseException | None = None

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.status is not None or self.error is not None

    @property
    def out(self) -> str:
        """Standard output so far."""
        return self._stdout.getvalue()

    @property
    def err(self) -> str:
        """Standard error so far."""
        return self._stderr.getvalue()

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Standard output as JSON, one object per line."""
        return [json.loads(line) for line in self.out.splitlines()]

    def type(self, *lines: str) -> None:
        """The user types, and the command reacts."""
        self.source.type(*lines)
        self._stage.settle()

    def cancel(self) -> None:
        """Ctrl-C."""
        self.task.cancel()
        self._stage.settle()

    task: Deferred[Any]


class Stage:
    """Runs commands against a fake taskd, with the state folder of the test."""

    def __init__(self, folder: Path, lang: str = "en", server: str = SERVER) -> None:
        self.lang = lang
        self.server = server
        self.clock = Clock()
        self.clock.advance(NOON.timestamp())
        self.taskd = FakeTaskd()
        self.network = FakeNetwork(lambda: FakeConnection(self.taskd))
        self.env = {"XDG_STATE_HOME": str(folder)}
        self.sessions = SessionFile(state_folder(self.env), server)
        self.screen: os.terminal_size | None = None
        """The new size of the terminals, if it has changed since they were opened."""
        self.new_key = (f"key{n}" for n in itertools.count(1)).__next__

    def logged_in(self) -> Stage:
        """Log ana in."""
        run = self.run("login", "ana", lines=["correct horse"], prepare=self.taskd.user)
        assert run.status == 0, run.err
        return self

    def run(
        self,
        *argv: str,
        lines: Iterable[str] = (),
        tty: bool = False,
        open: bool = False,
        columns: int | None = None,
        screen: os.terminal_size | None = None,
        colour: bool = False,
        prepare: Callable[[], object] = lambda: None,
    ) -> Run:
        """Start one command line, and run it until it ends or waits."""
        prepare()
        texts = Texts(self.lang)
        options = parser(texts).parse_args(argv)
        stdout, stderr, source = Stream(tty), Stream(tty), FakeSource(lines, tty)
        source.open = open
        ctx = Context(
            clock=self.clock,
            endpoint=self.network,
            server=self.server,
            server_given=options.server is not None,
            env=self.env,
            texts=texts,
            out=Output(stdout, stderr),
            source=source,
            renderer=Renderer(texts, columns, colour),
            sessions=self.sessions,
            given=given_token(self.server, options.token_file, self.env),
            json=options.json,
            measure=None if screen is None else lambda: self.screen or screen,
            new_key=self.new_key,
        )
        run = Run(self, stdout, stderr, source, ctx)

        def done(status: int) -> None:
            run.status = status

        def failed(failure: Failure) -> None:
            run.error = failure.value

        run.task = Deferred.fromCoroutine(perform(ctx, options))
        run.task.addCallbacks(done, failed)
        self.settle()
        return run

    def settle(self) -> None:
        """Run everything that needs no time."""
        self.network.flush()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)
        self.settle()

    def cut(self, connection: int = -1) -> None:
        """The server closes a connection."""
        self.taskd.connections[connection].transport.loseConnection()
        self.settle()


def test_the_fake_server_handles_nothing_before_the_login(tmp_path: Path) -> None:
    stage = Stage(tmp_path).logged_in()
    stage.taskd.silent.add("login")
    stage.run("whoami")
    assert stage.taskd.actions() == ["login", "whoami"]
    assert not issubclass(ClientError, TaskdError), "the client's errors are not the server's"
