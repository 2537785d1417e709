"""The suite of IBroker on RabbitMQ, and tests of what others delete and of servers that cannot be reached."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from taskd.broker.rabbitmq import incoming, outgoing, reconnecting
from tests import services
from tests.conformance.broker import BrokerTests
from tests.conformance.broker_case import Inbox
from tests.conformance.rabbitmq_case import LoggedCase, RabbitMQCase


class RabbitBrokerTests(RabbitMQCase, BrokerTests):
    """The suite."""


class DeclaredTests(LoggedCase):
    """Queues and exchanges that others delete, and what stays of ours."""

    async def hinted(self, inbox: Inbox, orders: bool = False) -> None:
        """Send hints until one arrives."""
        inbox.got.clear()
        await self.until(lambda: self.broker.hint([inbox.worker], orders) or inbox.got, "a hint")

    async def test_the_queue_of_a_worker_is_deleted(self) -> None:
        inbox = await self.receive()
        before = inbox.lost
        # rabbitmqctl refuses to delete an exclusive queue
        await self.ctl("eval", '[rabbit_amqqueue:delete(Q, false, false, <<"t">>) || Q <- rabbit_amqqueue:list()].')
        await self.until(lambda: inbox.lost > before, "on_lost is called")
        await self.until(lambda: inbox.hints.ready, "hints can arrive again")
        await self.hinted(inbox)
        # the queue of the sender was deleted too
        self.assertEqual(len(self.lines), 2, self.lines)
        for line, what in zip(sorted(self.lines), (f"hints for {self.worker}", "sending"), strict=True):
            self.assertRegex(line, f"^{what}: the consumer was cancelled.*retrying$")

    async def test_exchanges_are_deleted(self) -> None:
        self.patch(incoming, "BIND_SECONDS", 0.05)
        self.patch(outgoing, "BIND_SECONDS", 0.05)
        inbox = await self.receive()
        received_events, gaps = self.subscribe()
        await self.until(lambda: gaps, "the subscription")
        await self.until(lambda: self.broker.announce(b"x") or received_events, "an event")
        for exchange in await self.ours("exchanges"):
            await self.amqp(lambda channel, name=exchange: channel.exchange_delete(name))  # type: ignore[misc]
        received_events.clear()
        before = len(gaps)
        await self.until(lambda: self.broker.announce(b"y") or b"y" in received_events, "an event again")
        await self.hinted(inbox, orders=True)
        await self.until(lambda: self.broker.ready, "ready again")
        await self.until(lambda: len(gaps) > before, "events may have been lost")

    async def test_the_exchange_stays_while_receivers_come_and_go(self) -> None:
        other = await self.another()
        for _ in range(3):
            inbox = await self.receive(self.unique_worker(), other)
            await self.hinted(inbox)
            inbox.hints.stop()
            # to nobody: RabbitMQ drops it
            self.broker.hint([inbox.worker])
            self.broker.announce(b"to nobody")
        self.assertEqual(len(await self.ours("exchanges")), 1)
        self.assertIs(self.broker.ready, True)
        self.assertEqual(self.lines, [])

    async def test_nothing_stays_when_the_daemons_are_gone(self) -> None:
        inbox = await self.receive()
        received_events, _ = self.subscribe()
        await self.hinted(inbox)
        await self.until(lambda: self.broker.announce(b"x") or received_events, "an event")
        self.assertEqual((len(await self.ours("queues")), len(await self.ours("exchanges"))), (3, 1))
        await self.broker.stop()
        self.assertEqual((await self.ours("queues"), await self.ours("exchanges")), ([], []))

    async def test_queues_are_bounded_and_classic(self) -> None:
        await self.receive()
        self.subscribe()
        await self.until(lambda: self.broker.consuming)
        columns = "name", "type", "durable", "exclusive", "auto_delete", "arguments"
        listed = (await self.ctl("list_queues", *columns)).splitlines()
        mine = [line for line in listed if line.startswith(f"taskd.{self.installation}.")]
        self.assertEqual(len(mine), 3)
        for line in mine:
            if ".sender." in line:
                # it gets nothing
                continue
            self.assertRegex(line, r"classic\tfalse\ttrue\ttrue\t")
            for part in ("x-max-length", "drop-head"):
                self.assertIn(part, line)

    async def test_an_operator_closes_the_connections(self) -> None:
        inbox = await self.receive()
        received_events, gaps = self.subscribe()
        await self.until(lambda: gaps, "the subscription")
        count, lost = len(gaps), inbox.lost
        await self.ctl("close_all_connections", "that's all")
        await self.until(lambda: inbox.lost > lost and len(gaps) > count, "the connections are lost")
        await self.until(lambda: self.broker.ready and self.broker.consuming, "the broker is ready again")
        await self.hinted(inbox)
        await self.until(lambda: self.broker.announce(b"x") or received_events, "an event")
        self.the_line(f"RabbitMQ at {self.node().host}:{self.node().port}", "CONNECTION_FORCED", "retrying")
        self.assertIsNone(self.broker.outage)


class GreetingProtocol(Protocol):
    """Sends a greeting to every client, and nothing else."""

    greeting = b""

    def connectionMade(self) -> None:
        self.factory.count += 1
        assert self.transport is not None
        self.transport.write(self.greeting)


class ConnectingTests(LoggedCase):
    """Servers that are missing, refuse the login or do not speak AMQP."""

    async def serve(self, greeting: bytes) -> Any:
        """Listen on a free port. The factory has this ``port``, and the ``count`` of connections."""
        factory: Any = Factory.forProtocol(type("Greeter", (GreetingProtocol,), {"greeting": greeting}))
        factory.noisy = False
        factory.count = 0
        listening = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        factory.port = listening.getHost().port
        self.addCleanup(listening.stopListening)
        return factory

    async def start(self, **settings: Any) -> Any:
        broker = self.make(**settings)
        await broker.start()
        self.assertIs(broker.ready, False)
        return broker

    async def test_wrong_credentials(self) -> None:
        user = services.unique("user")
        broker = await self.start(user=user, password="sésame")
        inbox = Inbox(self.worker)
        broker.receive_hints(self.worker, inbox.hint, inbox.lose)
        await self.until(lambda: self.lines, "the outage is logged")
        await self.ctl("add_user", user, "sésame")
        # the user can log in now, but has no permission for the virtual host
        await self.until(lambda: "vhost" in (broker.outage or ""), "the reason changes")
        self.assertIs(broker.ready, False)
        await self.ctl("set_permissions", user, ".*", ".*", ".*")
        await self.until(lambda: broker.ready and broker.consuming, "ready")
        name = f"RabbitMQ at {self.node().host}:{self.node().port}"
        first, second = self.lines
        for part in (name, "ACCESS_REFUSED", "(see RABBITMQ_USER and RABBITMQ_PASSWORD)", "retrying"):
            self.assertIn(part, first)
        for part in (name, f"NOT_ALLOWED - access to vhost '/' refused for user '{user}'", "(see RABBITMQ_VHOST)"):
            self.assertIn(part, second)

    async def test_host_name_that_does_not_resolve(self) -> None:
        broker = await self.start(host="no-such-host.invalid")
        await self.until(lambda: self.lines, "the outage is logged", 20)
        await broker.stop()
        self.the_line("RabbitMQ at no-such-host.invalid", "retrying")

    async def test_host_name_that_is_invalid(self) -> None:
        broker = await self.start(host="no host." * 40)
        await self.until(lambda: self.lines, "the outage is logged", 20)
        await broker.stop()
        self.the_line("retrying")

    async def test_silent_server(self) -> None:
        self.patch(reconnecting, "OPEN_SECONDS", 0.1)
        server = await self.serve(b"")
        broker = await self.start(port=server.port)
        await self.until(lambda: server.count > 2, "it connects again")
        await broker.stop()
        self.the_line("no answer within")

    async def test_server_that_speaks_another_protocol(self) -> None:
        for greeting in (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"AMQP\0\1\0\0",
            b"\1\0\0" * 99,
        ):
            server = await self.serve(greeting)
            broker = await self.start(port=server.port)
            await self.until(lambda: server.count > 2, "it connects again")  # noqa: B023
            await broker.stop()
            self.the_line("does not speak AMQP")

    async def test_stopped_at_any_moment(self) -> None:
        for turns in range(40):
            broker = self.make()
            await broker.start()
            inbox = Inbox(self.worker)
            broker.receive_hints(self.worker, inbox.hint, inbox.lose)
            broker.subscribe(lambda body: None, lambda: None)
            for _ in range(turns):
                await deferLater(reactor, 0)
            if turns % 2:
                broker.hint([self.worker])
            await broker.stop()
            self.assertIs(broker.ready, False)
        self.assertEqual(self.lines, [])


del BrokerTests, LoggedCase, RabbitMQCase
