"""What every command works with: the server, the session, the terminal and the language."""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, TypeVar

from msgspec import Raw
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint

from taskd.cli.reporting import Reporter
from taskd.cli.texts.catalogue import Texts
from taskd.cli.ui.countdown import Countdown
from taskd.cli.ui.rendering import Renderer
from taskd.cli.ui.terminal import Input, Output
from taskd.client.admission import WAIT_SECONDS, Admission
from taskd.client.connection import Connection, read
from taskd.client.connector import Connector
from taskd.client.messages import Received
from taskd.client.sessions import GivenToken, SessionFile
from taskd.protocol.views import TaskView

_T = TypeVar("_T")


class ReceivedTask(TaskView):
    """A task that can be decoded: msgspec decodes nothing but null into the ``Raw | None`` of TaskView."""

    result: Raw = Raw(b"null")


@dataclass
class Context:
    """``server`` is the normalized address; ``server_given``: the command line named it, so hints must repeat it.
    ``given`` is an API token to log in with instead of the stored session."""

    clock: IReactorTime
    endpoint: IStreamClientEndpoint
    server: str
    server_given: bool
    env: Mapping[str, str]
    texts: Texts
    out: Output
    source: Input
    renderer: Renderer
    sessions: SessionFile
    json: bool = False
    given: GivenToken | None = None
    cafile_given: str | None = None
    """The command line named this file or folder of authorities, so hints must repeat it."""
    measure: Callable[[], os.terminal_size] | None = None
    """Returns the current size of a terminal that can keep lines at its foot; None for any other output."""
    new_key: Callable[[], str] = lambda: uuid.uuid4().hex
    connector: Connector = field(init=False)
    reporter: Reporter = field(init=False)

    def __post_init__(self) -> None:
        plaintext = self.env.get("TASKD_ALLOW_PLAINTEXT", "").lower() in ("1", "yes", "true")
        self.connector = Connector(self.clock, self.endpoint, self.server, self.given or self.sessions, plaintext)
        self.reporter = Reporter(self.out, self.texts, self.json, self.command("login"))

    def admission(self, connect: Callable[[], Awaitable[Connection]], wait: bool = True) -> Admission:
        """For requests that the server may put off; with ``wait`` they are sent again. ``connect`` opens a connection
        for them, which whoever calls this closes."""
        listener = Countdown(self.out, self.texts, None if self.json else self.measure)
        return Admission(self.clock, connect, listener, WAIT_SECONDS if wait else 0.0)

    def command(self, *words: str) -> str:
        """A command line to recommend to the user."""
        server = ["--server", self.server] if self.server_given else []
        cafile = ["--cafile", self.cafile_given] if self.cafile_given else []
        return shlex.join(["taskclient", *server, *cafile, *words])

    def say(self, key: str, /, **fields: Any) -> None:
        """Print a text."""
        self.out.line(self.texts(key, **fields))

    def note(self, key: str, /, **fields: Any) -> None:
        """Write a text for the user to standard error."""
        self.out.note(self.texts(key, **fields))

    def show(self, reply: Received, lines: Callable[[], Iterable[str]]) -> None:
        """Print a reply: with ``--json`` as it came, else these lines."""
        if self.json:
            self.out.raw(reply.line)
        else:
            self.out.lines(lines())

    def report(self, reply: Received, key: str, /, **fields: Any) -> None:
        """Print a reply: with ``--json`` as it came, else this text."""
        self.show(reply, lambda: [self.texts(key, **fields)])

    def read(self, line: bytes, kind: type[_T]) -> _T:
        """Decode what the server sent. Raises ConnectionFailed."""
        return read(line, kind, self.server)

    def view(self, task: bytes) -> TaskView:
        """Decode a task that the server sent. Raises ConnectionFailed."""
        return self.read(task, ReceivedTask)

    def now(self) -> datetime:
        """The time, aware."""
        return datetime.fromtimestamp(self.clock.seconds(), timezone.utc)

    async def prompt(self, key: str, hidden: bool = False, **fields: Any) -> str:
        """Ask at the terminal. Raises EndOfInput."""
        # Turn echo off before the prompt appears, or the first letters of a fast answer would be visible
        with self.source.hidden() if hidden else nullcontext():
            self.out.prompt(self.texts(key, **fields))
            try:
                return await self.source.line()
            finally:
                if hidden:
                    self.out.prompt("\n")
