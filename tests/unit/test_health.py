"""taskd.health, the action health and the worker's socket: what a daemon says of itself."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from taskd.health import CHECK_SECONDS, Health, HealthCheck
from taskd.model.errors import Unavailable
from taskd.worker.health import HealthFactory, HealthSocket
from tests.unit.stage import StageCase


class FakeStore:
    """A store that answers when a test lets it."""

    def __init__(self) -> None:
        self.asked: list[Deferred[int]] = []

    def check_writable(self) -> Deferred[int]:
        self.asked.append(Deferred())
        return self.asked[-1]


class FakeBroker:
    """A broker in the state that a test sets."""

    ready = consuming = True


class Checks(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.store, self.broker = Clock(), FakeStore(), FakeBroker()
        self.check = HealthCheck(self.clock, self.store, self.broker)  # type: ignore[arg-type]

    def begin(self) -> Deferred[Health]:
        """Begin a check."""
        return Deferred.fromCoroutine(self.check.check())

    def test_all_is_well(self) -> None:
        checking = self.begin()
        self.store.asked[0].callback(4)
        self.assertEqual(self.successResultOf(checking), Health(True, [], True, 4, True, True))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_is_wrong_is_named(self) -> None:
        checking = self.begin()
        self.broker.ready = self.broker.consuming = False
        self.store.asked[0].errback(Unavailable("the database takes no changes: it is read-only"))
        health = self.successResultOf(checking)
        self.assertEqual((health.healthy, health.store, health.schema, health.broker), (False, False, None, False))
        self.assertEqual(
            health.reasons,
            [
                "store: the database takes no changes: it is read-only",
                "broker: hints and events cannot be sent",
                "broker: hints and events cannot arrive",
            ],
        )

    def test_a_defect(self) -> None:
        checking = self.begin()
        self.store.asked[0].errback(ZeroDivisionError())
        self.assertEqual(self.successResultOf(checking).reasons, ["store: a defect: ZeroDivisionError"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_database_that_hangs_gets_one_question_and_everybody_an_answer(self) -> None:
        checks = [self.begin() for _ in range(3)]
        self.clock.advance(CHECK_SECONDS / 2)
        late = self.begin()
        self.clock.advance(CHECK_SECONDS / 2)
        for checking in checks:
            self.assertEqual(self.successResultOf(checking).reasons, ["store: no answer within 3 s"])
        self.assertNoResult(late)
        self.assertEqual(len(self.store.asked), 1)
        self.store.asked[0].callback(1)
        self.assertTrue(self.successResultOf(late).healthy)
        again = self.begin()
        self.store.asked[1].callback(1)
        self.assertTrue(self.successResultOf(again).healthy)


class OfAServer(StageCase):
    def health(self) -> dict[str, Any]:
        """The reply to a client on the same machine."""
        return self.stage.connect("127.0.0.1").ask("health")

    def test_all_is_well(self) -> None:
        self.stage.add_worker()
        self.stage.add_worker(name="v")
        self.stage.change_worker("v", stalled="render of task 12", state="draining")
        reply = self.health()
        del reply["id"]
        self.assertEqual(
            reply,
            {
                "ok": True,
                "status": "success",
                "healthy": True,
                "reasons": [],
                "store": True,
                "schema": 1,
                "broker": True,
                "consuming": True,
                "workers": 2,
                "stalled": {"v": "render of task 12"},
            },
        )

    def test_the_database_or_the_broker_is_away(self) -> None:
        self.stage.runner.away = True
        reply = self.health()
        self.assertEqual((reply["healthy"], reply["store"], reply["broker"]), (False, False, True))
        self.assertIn("disk I/O error", reply["reasons"][0])
        self.stage.runner.away = False
        self.stage.broker.ready = False
        reply = self.health()
        self.assertEqual((reply["healthy"], reply["store"], reply["broker"]), (False, True, False))

    def test_a_client_elsewhere_learns_nothing(self) -> None:
        self.assertRefused(self.stage.client().ask("health"), "forbidden")


class OfAWorker(StageCase):
    def test_who_connects_gets_one_line(self) -> None:
        factory = HealthFactory(HealthCheck(self.stage.clock, self.stage.store, self.stage.broker))
        connection, transport = factory.buildProtocol(None), StringTransport()
        connection.makeConnection(transport)
        line = json.loads(transport.value())
        self.assertEqual((line["healthy"], line["reasons"], line["schema"]), (True, [], 1))
        self.assertEqual((transport.value().count(b"\n"), transport.disconnecting), (1, True))


class Reader(Protocol):
    """Reads until the other end closes."""

    def __init__(self) -> None:
        self.data = b""
        self.done: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008
        self.done.callback(self.data)


class OverASocket(TestCase):
    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "health"
        self.store = FakeStore()

    def make(self) -> HealthSocket:
        check = HealthCheck(self.reactor, self.store, FakeBroker())  # type: ignore[arg-type]
        return HealthSocket(self.reactor, check, self.path)

    def leave_socket(self) -> socket.socket:
        """A socket that listens at the path."""
        other = socket.socket(socket.AF_UNIX)
        self.addCleanup(other.close)
        other.bind(os.fspath(self.path))
        other.listen()
        return other

    @inlineCallbacks
    def test_who_connects_gets_an_answer_and_the_socket_is_private(self) -> Any:
        self.leave_socket().close()  # as a killed worker does
        health = self.make()
        health.start()
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
        reader = Reader()
        yield connectProtocol(UNIXClientEndpoint(self.reactor, os.fspath(self.path)), reader)
        while not self.store.asked:
            pause: Deferred[None] = Deferred()
            self.reactor.callLater(0, pause.callback, None)
            yield pause
        self.store.asked[0].callback(7)
        line = yield reader.done
        self.assertEqual(json.loads(line)["schema"], 7)
        yield Deferred.fromCoroutine(health.stop())
        self.assertFalse(self.path.exists())

    def test_the_socket_of_another_worker_and_a_plain_file_are_refused(self) -> None:
        other = self.leave_socket()
        self.assertRaises(CannotListenError, self.make().start)
        other.close()
        self.path.unlink()
        self.path.write_text("precious")
        self.assertRaises(CannotListenError, self.make().start)
        self.assertEqual(self.path.read_text(), "precious")
