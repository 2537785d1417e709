"""For tests of handlers: one attempt, or a whole embedded server with its worker and clients, in memory and on a clock.

Nothing here opens a socket, starts a thread or waits: time passes when a test lets it.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from twisted.internet.defer import ensureDeferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from taskd.api.accounts import Accounts
from taskd.api.login_guard import open_guard
from taskd.broker.memory import MemoryBroker
from taskd.config import ConnectionLimits
from taskd.model.json_text import encode_json
from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.ports.handler import ITaskHandler
from taskd.server.task_server import TaskServer
from taskd.store.sqlite.database import InlineRunner
from taskd.store.sqlite.store import SqliteStore
from taskd.worker.executors.thread_pool import IThreads
from taskd.worker.handler import check_handler
from taskd.worker.runner import Runner
from taskd.worker.simulate import Simulate
from taskd.worker.worker import Worker

PASSWORD = "a password for tests"
STEP = 0.05
"""Seconds that the clock is turned by at a time, so that what follows from one thing happens before the next."""

MAX_PAYLOAD_BYTES = 64 * 1024


@dataclass
class Ran:
    """One attempt that has ended, and what the handler said meanwhile.

    ``state`` is ``completed``, ``failed``, or ``waiting`` when it would be tried again after ``delay`` seconds.
    """

    state: str
    result: Any = None
    error: str | None = None
    trace: str | None = None
    delay: float | None = None
    progress: list[tuple[float, str]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)


def run_handler(
    handler: ITaskHandler,
    payload: Mapping[str, Any] | None = None,
    *,
    task: str = "a test",
    user: str = "ana",
    queue: str = "tasks",
    attempt: int = 1,
    max_attempts: int | None = None,
    clock: Clock | None = None,
    seconds: float = 3600.0,
) -> Ran:
    """Run one attempt of a handler. ``clock`` is the one that the handler's own waiting goes by; it is turned for up to
    ``seconds``.

    A handler with isolation ``thread`` or ``process`` is called right here. Raises AssertionError when the attempt has
    not ended by then, SettingsError when the handler cannot be.
    """
    clock = clock or Clock()
    check_handler(handler, repr(handler))
    ran = Ran("running")
    now = datetime.fromtimestamp(clock.seconds(), timezone.utc)
    body = encode_json(dict(payload or {}), MAX_PAYLOAD_BYTES, "payload")
    spec = Task(1, 1, task, handler.kind, queue, State.RUNNING, now, now, body, attempt, max_attempts or 0, 1)
    runner = Runner(clock, [_inline(handler)], threads=_InlineThreads())
    done = runner.run(spec, user, _Notes(ran)).done
    until = clock.seconds() + seconds
    while not done.called and clock.seconds() < until:
        clock.advance(STEP)
    if not done.called:
        raise AssertionError(f"{handler!r} has not ended after {seconds:g} seconds of its clock")
    outcome = _now(done)
    ran.state = outcome.state.value
    ran.result = None if outcome.result is None else json.loads(outcome.result)
    ran.error, ran.trace = outcome.error, outcome.trace
    ran.delay = outcome.delay if outcome.state is State.WAITING else None
    return ran


class Lab:
    """An embedded server, its worker with these handlers besides ``simulate``, and clients; as a context manager it is
    closed at the end of the block. ``clock`` is the one that everything goes by."""

    def __init__(
        self,
        handlers: Iterable[ITaskHandler] = (),
        *,
        queues: Sequence[str] = ("tasks",),
        slots: int = 10,
        lease: float = 30.0,
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self._names = itertools.count(1)
        store, broker = SqliteStore(InlineRunner(), self.clock), MemoryBroker(self.clock)
        self.server = TaskServer(
            self.clock,
            store,
            broker,
            # the least that bcrypt takes: a test has nothing to hide
            Accounts(store, open_guard(self.clock, store, maybeDeferred, 1), 4, 86_400),
            queues=queues,
            lease=lease,
            node="lab",
            # its clients have no network
            limits=ConnectionLimits(allow_plaintext=True),
        )
        kinds = [Simulate(self.clock), *(_inline(handler) for handler in handlers)]
        runner = Runner(self.clock, kinds, threads=_InlineThreads())
        slots_by_isolation = {"async": slots, "thread": slots}
        self.worker = Worker(
            self.clock, store, broker, runner, queues, slots_by_isolation, lambda: f"lab worker {next(self._names)}"
        )
        self._store, self._broker = store, broker
        _now(broker.start())
        _now(store.start())
        _now(self.worker.start())
        self.server.start()
        self.advance(0)

    def client(self, username: str = "ana") -> LabClient:
        """A connection that is logged in as this user, who is registered if need be."""
        client = LabClient(self)
        client.ask("register", username=username, password=PASSWORD)
        answer = client.ask("login", username=username, password=PASSWORD)
        assert answer["ok"], answer
        return client

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        end = self.clock.seconds() + seconds
        for _ in range(10):
            self.clock.advance(0)
        while self.clock.seconds() < end:
            self.clock.advance(min(STEP, end - self.clock.seconds()))
            for _ in range(3):
                self.clock.advance(0)

    def close(self) -> None:
        """Forget everything."""
        _now(self._broker.stop())
        _now(self._store.stop())

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class LabClient:
    """One connection to the server of a Lab. Replies and events are as docs/protocol.md says."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._ids = itertools.count(1)
        self._lines: list[dict[str, Any]] = []
        self._transport = StringTransport()
        connection = lab.server.lines.buildProtocol(None)
        assert connection is not None
        self._connection = connection
        connection.makeConnection(self._transport)

    def ask(self, action: str, *, seconds: float = 60.0, **fields: Any) -> dict[str, Any]:
        """The reply to a request, for which up to ``seconds`` pass."""
        request_id = next(self._ids)
        request = json.dumps({"action": action, "id": request_id, **fields})
        self._connection.dataReceived(request.encode() + b"\n")
        until = self._lab.clock.seconds() + seconds
        self._lab.advance(0)
        while True:
            self._read()
            for line in self._lines:
                if line.get("id") == request_id:
                    self._lines.remove(line)
                    return line
            if self._lab.clock.seconds() >= until:
                raise AssertionError(f"{action} was not answered within {seconds:g} seconds")
            self._lab.advance(STEP)

    def events(self) -> list[dict[str, Any]]:
        """The events that have come since they were last asked for."""
        self._read()
        found = [line for line in self._lines if "event" in line]
        self._lines = [line for line in self._lines if "event" not in line]
        return found

    def _read(self) -> None:
        data = self._transport.value()
        self._transport.clear()
        self._lines += [json.loads(line) for line in data.splitlines()]


class _Notes:
    """Writes down what a handler says."""

    def __init__(self, ran: Ran) -> None:
        self._ran = ran

    def progress(self, fraction: float, note: str) -> None:
        self._ran.progress.append((fraction, note))

    def lines(self, lines: Sequence[str], dropped: int) -> None:
        self._ran.log += lines


@implementer(IThreads)
class _InlineThreads:
    """There is only one thread, this one."""

    def start(self) -> None:
        """Nothing is needed."""

    async def stop(self) -> None:
        """Nothing is left."""

    def call(self, function: Callable[[], None]) -> None:
        function()

    wake = call_aside = call


def _inline(handler: ITaskHandler) -> ITaskHandler:
    """The same handler, but one for child processes runs in this process."""
    if handler.isolation == "process":
        handler = copy.copy(handler)
        handler.isolation = "thread"
    return handler


def _now(work: Any) -> Any:
    """The result of a coroutine or a Deferred that needs no time in memory."""
    results: list[Any] = []
    ensureDeferred(work).addBoth(results.append)
    assert results, "it needs time"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]
