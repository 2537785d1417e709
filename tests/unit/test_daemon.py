"""taskd.daemon: the clock of the timers, and a stop that finishes whatever fails."""

from __future__ import annotations

import atexit
import gc
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.application.internet import ClientService
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock, LoopingCall, deferLater
from twisted.logger import LogLevel, capturedLogs, formatEvent
from zope.interface import implementer

import taskd.daemon
from taskd.config.reading import read_settings
from taskd.daemon import (
    COLLECT_AFTER,
    MAX_FILES,
    Daemon,
    file_limit,
    raise_file_limit,
    spare_collections,
    use_monotonic_clock,
)
from taskd.model.errors import Unavailable
from taskd.server.tap import Options as ServerOptions


@pytest.fixture
def reactor() -> Iterator[Any]:
    """A reactor that does not run, and is not the one of this process."""
    made = SelectReactor()
    yield made
    for call in made.getDelayedCalls():
        call.cancel()
    made.waker.connectionLost(None)


def test_timers_follow_the_monotonic_clock(reactor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting the system's clock moves none of them, however they were made."""
    use_monotonic_clock(reactor)
    begin = time.monotonic()
    fired: list[str] = []
    reactor.callLater(5, fired.append, "callLater")
    Deferred().addTimeout(6, reactor).addErrback(lambda f: fired.append("timeout"))
    deferLater(reactor, 7, fired.append, "deferLater")
    loop = LoopingCall(fired.append, "loop")
    loop.clock = reactor
    loop.start(8, now=False)
    due = sorted(call.getTime() - begin for call in reactor.getDelayedCalls())
    assert due == pytest.approx([5, 6, 7, 8], abs=0.5)
    for hours in (-1, 1):
        monkeypatch.setattr(time, "time", lambda hours=hours: 1_740_830_400.0 + 3600 * hours)
        assert 4 < reactor.timeout() <= 5
        reactor.runUntilCurrent()
    assert fired == []
    monkeypatch.setattr(reactor, "seconds", lambda: begin + 10)
    reactor.runUntilCurrent()
    assert fired == ["callLater", "timeout", "deferLater", "loop"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1024, 65_536), (65_536, 65_536)),
        ((256, 256), (256, 256)),
        ((1024, resource.RLIM_INFINITY), (MAX_FILES, resource.RLIM_INFINITY)),
        ((1024, 2**30), (MAX_FILES, 2**30)),
        ((2**21, 2**30), (2**21, 2**30)),
    ],
)
def test_the_limit_of_open_files_is_raised(
    before: tuple[int, int], after: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [before]
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda which, pair: limits.append(pair))
    raise_file_limit()
    assert limits[-1] == after
    assert file_limit() == after[0]


@implementer(IStreamClientEndpoint)
class Closed:
    """Nobody listens there."""

    def connect(self, protocolFactory: object) -> Deferred[Any]:
        """Be refused."""
        return fail(ConnectionRefusedError("closed"))


def test_connections_are_tried_again_by_the_monotonic_clock(reactor: Any) -> None:
    """The backoff of Twisted's client service, which RabbitMQ's connections use."""

    use_monotonic_clock(reactor)
    service = ClientService(Closed(), Factory(), retryPolicy=lambda attempt: 9.0, clock=reactor)
    service.startService()
    [call] = reactor.getDelayedCalls()
    assert call.getTime() - time.monotonic() == pytest.approx(9, abs=0.5)
    service.stopService()


def test_the_clock_is_not_replaced_under_timers(reactor: Any) -> None:
    """They would never fire, or all at once."""
    reactor.callLater(1, print)
    with pytest.raises(RuntimeError, match="scheduled already"):
        use_monotonic_clock(reactor)


def test_the_garbage_collector_runs_seldom() -> None:
    """It leaves alone what a daemon has made at its start, and still finds cycles."""
    before = gc.get_threshold()
    try:
        spare_collections()
        assert gc.get_freeze_count() > 1000
        assert gc.get_threshold() == (COLLECT_AFTER, *before[1:])
        assert gc.isenabled()
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


class Part:
    """A store or a broker that fails at its stop."""

    def __init__(self, name: str, stopped: list[str]) -> None:
        self.ready = True
        self._name = name
        self._stopped = stopped
        self.started: Deferred[None] = Deferred()

    def start(self) -> Deferred[None]:
        """Start when the test says so."""
        return self.started

    async def stop(self) -> None:
        """Note it, and fail."""
        self._stopped.append(self._name)
        raise ZeroDivisionError(self._name)


class Reactor(Clock):
    """A clock that notes whether it was stopped."""

    stops = 0

    def stop(self) -> None:
        """End the process."""
        self.stops += 1

    def callWhenRunning(self, function: object, *args: object) -> None:
        """It never runs."""


class Stopping(Daemon):
    """A daemon whose work fails at its beginning and its end."""

    command = "test"
    stopped: list[str]
    parts: tuple[Part, Part]
    begun = 0

    async def begin(self) -> None:
        self.begun += 1
        raise Unavailable("the store is away")

    async def drain(self) -> None:
        self.stopped.append("work")
        raise ZeroDivisionError("drain")


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Stopping:
    """A daemon that waits for its store."""
    stopped: list[str] = []
    parts = Part("store", stopped), Part("broker", stopped)
    monkeypatch.setattr(taskd.daemon, "open_adapters", lambda settings, reactor: parts)
    made = Stopping(Reactor(), read_settings(None, {}), 1.0)
    made.stopped, made.parts = stopped, parts
    made.startService()
    return made


def test_a_stop_finishes_whatever_fails(daemon: Stopping) -> None:
    """Each failure is in the log, and nobody waits."""
    with capturedLogs() as events:
        done = daemon.stopService()
    assert done.called and done.result is None
    assert daemon.stopped == ["work", "broker", "store"]
    failures = [event for event in events if event["log_level"] is LogLevel.critical]
    assert [event["what"] for event in failures] == ["the work", "the broker", "the store"]


def test_a_start_that_fails_because_of_the_stop_is_no_failure(
    daemon: Stopping, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM while the store is away: the process has done what it was told, and ends with status 0."""
    daemon.stopService()
    for part in daemon.parts:
        part.started.callback(None)
    assert (daemon.reactor.stops, capsys.readouterr().err) == (0, "")


def test_any_other_start_that_fails_ends_the_process(
    daemon: Stopping, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one line."""
    at_exit: list[object] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    for part in daemon.parts:
        part.started.callback(None)
    assert (daemon.reactor.stops, len(at_exit)) == (1, 1)
    assert capsys.readouterr().err == "test: the store is away\n"


def test_the_broker_starts_when_the_store_has(daemon: Stopping, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs the id of the installation. The work begins when the broker is ready, or without it."""
    store, broker = daemon.parts
    calls: list[str] = []

    async def begin() -> None:
        daemon.begun += 1

    monkeypatch.setattr(daemon, "begin", begin)

    def start() -> Deferred[None]:
        calls.append("broker")
        return broker.started

    monkeypatch.setattr(broker, "start", start)
    broker.ready = False
    broker.started.callback(None)
    assert calls == []
    store.started.callback(None)
    assert (calls, daemon.begun) == (["broker"], 0)
    for seconds, begun in ((taskd.daemon.BROKER_SECONDS - 0.1, 0), (0.2, 1), (5, 1)):
        daemon.reactor.pump([0.02] * round(seconds / 0.02))
        assert daemon.begun == begun


@pytest.mark.parametrize("ready", [False, True])
def test_a_daemon_that_stops_while_it_waits_for_its_broker_begins_nothing(daemon: Stopping, ready: bool) -> None:
    """Nobody would end the work."""
    _, broker = daemon.parts
    broker.ready = False
    for part in daemon.parts:
        part.started.callback(None)
    daemon.reactor.advance(0.02)
    daemon.stopService()
    broker.ready = ready
    daemon.reactor.pump([0.02] * 100)
    assert (daemon.begun, daemon.began) == (0, False)


def test_a_file_of_passwords_that_others_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon starts: a first try must not fail over this. Its log has one line."""
    monkeypatch.setattr(
        taskd.daemon, "open_adapters", lambda settings, reactor: (Part("store", []), Part("broker", []))
    )
    monkeypatch.setattr(taskd.daemon, "use_monotonic_clock", lambda reactor: None)
    file = tmp_path / "env"
    file.write_text("POSTGRES_PASSWORD=secret\n")
    for mode, lines in ((0o600, []), (0o644, ["POSTGRES_PASSWORD"])):
        file.chmod(mode)
        options = ServerOptions()
        options["env-file"] = str(file)
        with capturedLogs() as events:
            Stopping.from_options(options)
        said = [str(formatEvent(event)) for event in events if event["log_level"] is LogLevel.warn]
        expected = [f"{file}: every user of this machine can read {name}; run: chmod 600 {file}" for name in lines]
        assert said == expected
