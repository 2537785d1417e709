"""The stage on which the client's unit tests play: a small taskd in memory, a clock, a keyboard, captured output."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, IOPump, connect
from zope.interface import implementer

from taskd.client.cli import perform
from taskd.client.context import Context
from taskd.client.errors import ClientError, EndOfInput
from taskd.client.options import parser
from taskd.client.rendering import Renderer
from taskd.client.sessions import SessionFile, state_folder
from taskd.client.terminal import Output
from taskd.client.texts import Texts
from taskd.errors import AuthRequired, Conflict, NotFound, NoUser, TaskdError, UsernameInUse, WrongCredentials
from taskd.model import State, Task
from taskd.wire.limits import MAX_LINE_BYTES, MAX_REPLY_BYTES
from taskd.wire.messages import encode, view
from taskd.wire.session import Call, ServerSession

NOON = datetime(2025, 3, 1, 12, tzinfo=timezone.utc)
SERVER = "127.0.0.1:5000"


class FakeTaskd:
    """What a taskd answers, in memory: one queue, no workers; tests move the tasks themselves.

    Of the actions in ``refusals`` it does none, nor of those in ``silent``, which it does not even answer; those in
    ``mute`` it does and does not answer, like a server that dies in that moment; those in ``held`` it answers when the
    connection is released.
    """

    def __init__(self) -> None:
        self.passwords: dict[str, str] = {}
        self.tokens: dict[str, str] = {}
        self.tasks: dict[int, Task] = {}
        self.connections: list[FakeConnection] = []
        self.refusals: dict[str, TaskdError] = {}
        self.silent: set[str] = set()
        self.mute: set[str] = set()
        self.held: set[str] = set()
        self.keys: dict[str, tuple[int, Any]] = {}
        self._ids = itertools.count(1)

    def user(self, name: str = "ana", password: str = "correct horse") -> str:
        """An account and a token for it."""
        self.passwords[name] = password
        token = f"token-{len(self.tokens)}"
        self.tokens[token] = name
        return token

    def task(self, text: str = "one", state: State = State.QUEUED, **fields: Any) -> Task:
        """A task there is."""
        defaults: dict[str, Any] = {"kind": "simulate", "queue": "tasks", "created_at": NOON, "run_at": NOON}
        task = Task(next(self._ids), 1, text, state=state, **defaults | fields)
        self.tasks[task.id] = task
        return task

    def move(self, task_id: int, state: State, **fields: Any) -> None:
        """Change a task's state and tell who watches or waits."""
        task = self.tasks[task_id]
        task.state = state
        task.version += 1
        for name, value in fields.items():
            setattr(task, name, value)
        for connection in tuple(self.connections):
            connection.tell(task)

    def asked(self, connection: int = -1) -> list[dict[str, Any]]:
        """The requests of one connection, in their order."""
        return self.connections[connection].requests

    def actions(self, connection: int = -1) -> list[str]:
        """The names of those requests."""
        return [request["action"] for request in self.asked(connection)]


class FakeConnection(LineReceiver):
    """The server's end of one connection, with the real session for the order of replies."""

    delimiter = b"\n"
    MAX_LENGTH = MAX_REPLY_BYTES
    transport: Any

    def __init__(self, taskd: FakeTaskd) -> None:
        self._taskd = taskd
        self._session = ServerSession(self._start, self._write, lambda full: None)
        self._token: str | None = None
        self._watching = False
        self._waits: list[tuple[Call, list[int]]] = []
        self._held: list[tuple[Call, dict[str, Any]]] = []
        self.requests: list[dict[str, Any]] = []
        self.chunks: list[bytes] = []

    def connectionMade(self) -> None:
        self._taskd.connections.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.chunks.append(data)
        super().dataReceived(data)

    def lineReceived(self, line: bytes) -> None:
        assert len(line) <= MAX_LINE_BYTES
        self.requests.append(json.loads(line))
        self._session.receive(line)

    def connectionLost(self, reason: Failure | None = None) -> None:
        if self in self._taskd.connections:
            self._watching = False
            self._waits.clear()

    def event(self, fields: dict[str, Any]) -> None:
        """Send an event."""
        self._write(encode(fields) + b"\n")

    def tell(self, task: Task) -> None:
        """A task has changed."""
        if self._watching:
            self.event({"event": "task", "task": view(task, NOON)})
        for call, ids in tuple(self._waits):
            if all(self._taskd.tasks[n].finished_at for n in ids):
                self._waits.remove((call, ids))
                call.succeed({"status": "success", "done": True, "tasks": self._views(ids)})

    def time_out(self) -> None:
        """Answer the waits as after their timeout."""
        waits, self._waits = self._waits, []
        for call, ids in waits:
            call.succeed({"status": "success", "done": False, "tasks": self._views(ids)})

    def release(self) -> None:
        """Answer what is held."""
        for call, reply in self._held:
            call.succeed(reply)

    def _write(self, line: bytes) -> None:
        self.transport.write(line)

    def _start(self, call: Call) -> None:
        name = call.action.name
        if name in self._taskd.silent:
            return
        try:
            if name in self._taskd.refusals:
                raise self._taskd.refusals[name]
            if name not in ("register", "login", "hello", "ping") and self._token is None:
                raise AuthRequired(f"log in first: {name} is for a logged-in user")
            reply = getattr(self, name)(call, call.request)
        except TaskdError as e:
            call.fail(e)
        else:
            if name in self._taskd.held:
                self._held.append((call, reply))
            elif reply is not None and name not in self._taskd.mute:
                call.succeed(reply)

    def ping(self, call: Call, request: Any) -> dict[str, Any]:
        return {"status": "success"}

    def register(self, call: Call, request: Any) -> dict[str, Any]:
        if request.username in self._taskd.passwords:
            raise UsernameInUse("somebody has this username")
        self._taskd.user(request.username, request.password)
        return {"status": "success", "user_id": 1, "username": request.username}

    def login(self, call: Call, request: Any) -> dict[str, Any]:
        if request.token is not None:
            if request.token not in self._taskd.tokens:
                raise AuthRequired("this session has ended; log in again")
            token = request.token
        else:
            if request.username not in self._taskd.passwords:
                raise NoUser("nobody is registered under this username")
            if self._taskd.passwords[request.username] != request.password:
                raise WrongCredentials("the password does not belong to the username")
            token = f"token-{len(self._taskd.tokens)}"
            self._taskd.tokens[token] = request.username
        self._token = token
        name = self._taskd.tokens[token]
        return {"status": "logged_in", "token": token, "user_id": 1, "username": name, "expires_in": 3600}

    def logout(self, call: Call, request: Any) -> dict[str, Any]:
        self._taskd.tokens.pop(self._token or "", None)
        self._token = None
        return {"status": "success"}

    def whoami(self, call: Call, request: Any) -> dict[str, Any]:
        return {"status": "success", "user_id": 1, "username": self._taskd.tokens[self._token or ""]}

    def new_task(self, call: Call, request: Any) -> dict[str, Any]:
        task_id, duplicate = self._create(request)
        return {"status": "task_created", "task_id": task_id, **({"duplicate": True} if duplicate else {})}

    def new_tasks(self, call: Call, request: Any) -> dict[str, Any]:
        created = [self._create(spec) for spec in request.tasks]
        duplicates = [task_id for task_id, duplicate in created if duplicate]
        reply: dict[str, Any] = {"status": "task_created", "task_ids": [task_id for task_id, _ in created]}
        return reply | ({"duplicates": duplicates} if duplicates else {})

    def _create(self, spec: Any) -> tuple[int, bool]:
        known = self._taskd.keys.get(spec.key)
        if known is not None:
            if known[1] != spec:
                raise Conflict(f"the key '{spec.key}' stands for another task already; use a new one", field="key")
            return known[0], True
        task = self._taskd.task(spec.task, kind=spec.kind, payload=json.dumps(spec.payload))
        self._taskd.keys[spec.key] = task.id, spec
        self.tell(task)
        return task.id, False

    def get_tasks(self, call: Call, request: Any) -> dict[str, Any]:
        below = int(request.cursor) if request.cursor else 1 << 62
        # Like the server's, a page is cut before the filter is applied: it may be short, or even empty
        page = [task for task in reversed(self._taskd.tasks.values()) if task.id < below][: request.limit]
        cursor = str(page[-1].id) if page and page[-1].id > 1 else None
        ids = [task.id for task in page if request.state in (None, task.state.value)]
        status = "success" if ids or cursor else "no_tasks"
        return {"status": status, "tasks": self._views(ids), "cursor": cursor}

    def get_task(self, call: Call, request: Any) -> dict[str, Any]:
        self._views([request.task_id])
        return {"status": "success", "task": view(self._taskd.tasks[request.task_id], NOON, full=True)}

    def cancel_task(self, call: Call, request: Any) -> dict[str, Any]:
        self._views([request.task_id])
        if self._taskd.tasks[request.task_id].state is State.RUNNING:
            raise Conflict(f"task {request.task_id} runs already")
        self._taskd.move(request.task_id, State.CANCELLED, finished_at=NOON)
        return {"status": "success", "task": self._views([request.task_id])[0]}

    def watch(self, call: Call, request: Any) -> dict[str, Any]:
        self._watching = True
        return {"status": "success", "tasks": self._views(list(reversed(self._taskd.tasks))[: request.limit])}

    def wait(self, call: Call, request: Any) -> dict[str, Any] | None:
        tasks = self._views(request.task_ids)
        done = all(self._taskd.tasks[n].finished_at for n in request.task_ids)
        if done or request.timeout == 0:
            return {"status": "success", "done": done, "tasks": tasks}
        self._waits.append((call, request.task_ids))
        return None

    def _views(self, ids: Iterable[int]) -> list[Any]:
        for n in ids:
            if n not in self._taskd.tasks:
                raise NotFound(f"you have no task {n}", field="task_id")
        return [view(self._taskd.tasks[n], NOON) for n in ids]


@implementer(IStreamClientEndpoint)
class FakeNetwork:
    """Connects clients to servers in memory. ``failing`` is raised by connection attempts, if set."""

    def __init__(self, serve: Callable[[], LineReceiver]) -> None:
        self._serve = serve
        self._pumps: list[IOPump] = []
        self.failing: Exception | None = None
        self.attempts = 0

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        self.attempts += 1
        if self.failing is not None:
            return fail(self.failing)
        client = factory.buildProtocol(None)  # type: ignore[arg-type]
        server = self._serve()
        transports = FakeTransport(server, True), FakeTransport(client, False)
        connected: Deferred[IProtocol] = Deferred()
        self._pumps.append(connect(server, transports[0], client, transports[1]))
        connected.callback(client)  # type: ignore[arg-type]
        return connected

    def flush(self) -> None:
        """Deliver everything that is under way, both ways."""
        while any(pump.pump() for pump in self._pumps):
            pass


class FakeSource:
    """A keyboard or a pipe with these lines; ``open`` ones have no end, the reader waits for :meth:`type`."""

    def __init__(self, lines: Iterable[str], tty: bool) -> None:
        self.tty = tty
        self.open = False
        self.secret: list[str] = []
        self._lines = deque(lines)
        self._hidden = False
        self._waiting: Deferred[None] | None = None

    def type(self, *lines: str) -> None:
        """The user types."""
        self._lines.extend(lines)
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    async def line(self) -> str:
        if not self._lines and self.open:
            self._waiting = Deferred()
            await self._waiting
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
    """Captured output that may say it is a terminal."""

    def __init__(self, tty: bool = False) -> None:
        super().__init__()
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty


class Run:
    """One command under way. ``status`` is None until it has ended, ``error`` what it raised."""

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
        """Standard output as JSON, an object a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    def type(self, *lines: str) -> None:
        """The user types, and things happen."""
        self.source.type(*lines)
        self._stage.settle()

    def cancel(self) -> None:
        """Ctrl-C."""
        self.task.cancel()
        self._stage.settle()

    task: Deferred[Any]


class Stage:
    """Runs commands against a fake taskd, with the state folder of the test."""

    def __init__(self, folder: Path, lang: str = "en") -> None:
        self.lang = lang
        self.clock = Clock()
        self.clock.advance(NOON.timestamp())
        self.taskd = FakeTaskd()
        self.network = FakeNetwork(lambda: FakeConnection(self.taskd))
        self.env = {"XDG_STATE_HOME": str(folder)}
        self.sessions = SessionFile(state_folder(self.env), SERVER)
        self.new_key = (f"key{n}" for n in itertools.count(1)).__next__

    def logged_in(self) -> Stage:
        """With the session of ana."""
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
        prepare: Callable[[], object] = lambda: None,
    ) -> Run:
        """Start one command line, and let it go on until it ends or waits for something."""
        prepare()
        texts = Texts(self.lang)
        options = parser(texts).parse_args(argv)
        stdout, stderr, source = Stream(tty), Stream(tty), FakeSource(lines, tty)
        source.open = open
        ctx = Context(
            clock=self.clock,
            endpoint=self.network,
            server=SERVER,
            server_given=options.server is not None,
            env=self.env,
            texts=texts,
            out=Output(stdout, stderr),
            source=source,
            renderer=Renderer(texts, columns, colour=False),
            sessions=self.sessions,
            json=options.json,
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
        """Let everything happen that needs no time."""
        self.network.flush()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)
        self.settle()

    def cut(self, connection: int = -1) -> None:
        """The server's end of a connection goes away."""
        self.taskd.connections[connection].transport.loseConnection()
        self.settle()


def test_the_fake_server_handles_nothing_before_a_login_is_through(tmp_path: Path) -> None:
    stage = Stage(tmp_path).logged_in()
    stage.taskd.silent.add("login")
    stage.run("whoami")
    assert stage.taskd.actions() == ["login", "whoami"]
    assert not issubclass(ClientError, TaskdError), "the client's errors are not the server's"
