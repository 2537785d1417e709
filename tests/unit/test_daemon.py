"""taskd.daemon: the clock of the timers, and a stop that finishes whatever fails."""

from __future__ import annotations

import atexit
import time
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.application.internet import ClientService
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock, LoopingCall, deferLater
from twisted.logger import LogLevel, capturedLogs
from zope.interface import implementer

import taskd.daemon
from taskd.config.reading import read_settings
from taskd.daemon import Daemon, use_monotonic_clock
from taskd.model.errors import Unavailable


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


class Part:
    """A store or a broker that fails at its stop."""

    def __init__(self, name: str, stopped: list[str]) -> None:
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

    async def begin(self) -> None:
        raise Unavailable("the store is away")

    async def drain(self) -> None:
        self.stopped.append("work")
        raise ZeroDivisionError("drain")


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Stopping:
    """A daemon that waits for its broker."""
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
