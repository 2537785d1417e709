"""What the tests of the broker on RabbitMQ share."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pika
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

from taskd.broker.rabbitmq.broker import RabbitBroker
from taskd.config import RabbitMQ
from tests import services
from tests.conformance.broker_case import BrokerCase

INSTALLATION = "tests"


def full(name: str, installation: str = INSTALLATION) -> str:
    """The name of a queue or of a topic's exchange in RabbitMQ."""
    return f"taskd.{installation}.{name}"


class RabbitMQCase(BrokerCase):
    """Brokers on the RabbitMQ of this run, with the real reactor. All brokers of a test are of one ``installation``."""

    async def setUp(self) -> None:  # type: ignore[override]
        self.installation = services.unique("test")
        await super().setUp()

    def node(self) -> services.RabbitMQ:
        """The server."""
        return services.rabbitmq()

    def settings(self, **settings: Any) -> RabbitMQ:
        """How to reach the server."""
        node = self.node()
        found = {"host": node.host, "port": node.port, "user": node.user, "password": node.password, **settings}
        return RabbitMQ(**found)

    def make(self, installation: str = "", **settings: Any) -> Any:
        services.require("rabbitmq")
        name = installation or self.installation
        broker = RabbitBroker(self.settings(**settings), reactor, lambda: name)
        self.addCleanup(lambda: Deferred.fromCoroutine(broker.stop()))
        return broker

    async def another(self) -> Any:
        broker = self.make()
        await broker.start()
        await self.until(lambda: broker.ready, "another broker is ready")
        return broker

    async def reopen(self) -> None:
        self.broker = await self.another()

    def pass_time(self) -> Awaitable[None]:
        return deferLater(reactor, 0.005)

    def seconds(self) -> float:
        return float(reactor.seconds())


class LoggedCase(RabbitMQCase):
    """A RabbitMQCase that collects the warnings and errors in the log as ``lines``."""

    async def setUp(self) -> None:  # type: ignore[override]
        self.lines: list[str] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            if event.get("log_level", LogLevel.debug) >= LogLevel.warn:
                self.lines.append(str(formatEvent(event)))

        # an unhandled failure is logged when it is garbage collected
        self.addCleanup(gc.collect)
        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        await super().setUp()

    def the_line(self, *parts: str) -> None:
        """Check that the log has one line with all these parts, and clear it."""
        self.assertEqual(len(self.lines), 1, self.lines)
        for part in parts:
            self.assertIn(part, self.lines[0])
        self.lines.clear()

    def amqp(self, use: Callable[[Any], Any]) -> Deferred[Any]:
        """Call ``use`` with a channel of another client in a thread. Fires with its result."""

        def run() -> Any:
            node = self.node()
            credentials = pika.PlainCredentials(node.user, node.password)
            connection = pika.BlockingConnection(pika.ConnectionParameters(node.host, node.port, "/", credentials))
            try:
                return use(connection.channel())
            finally:
                connection.close()

        return deferToThread(run)

    def ctl(self, *arguments: str) -> Deferred[str]:
        """Run rabbitmqctl in a thread."""
        return deferToThread(self.node().ctl, *arguments)

    async def ours(self, what: str) -> list[str]:
        """The names of the queues or exchanges of this test in RabbitMQ."""
        names = (await self.ctl(f"list_{what}", "name")).splitlines()
        return sorted(name for name in names if name.startswith(f"taskd.{self.installation}."))

    def subscribe(self) -> tuple[list[bytes], list[int]]:
        """Subscribe. The list of received event batches, and a list that grows with each gap."""
        received: list[bytes] = []
        gaps: list[int] = []
        self.broker.subscribe(received.append, lambda: gaps.append(len(received)))
        return received, gaps
