"""The suite of IBroker on RabbitMQ, and tests of queues that change and of servers that cannot be reached."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from taskd.broker.rabbitmq import events, reconnecting
from taskd.broker.rabbitmq.topology import EXCHANGES
from taskd.model.errors import BrokerUnavailable
from taskd.ports.broker import CHANGES
from tests import services
from tests.conformance.broker import BrokerTests
from tests.conformance.broker_case import Inbox, messages
from tests.conformance.rabbitmq_case import LoggedCase, RabbitMQCase


class RabbitBrokerTests(RabbitMQCase, BrokerTests):
    """The suite."""


class QueueTests(LoggedCase):
    """Queues and exchanges that others delete or use, and messages that RabbitMQ refuses."""

    async def test_queue_deleted_under_a_consumer(self) -> None:
        inbox = await self.consume(2)
        await self.broker.publish(self.queue, messages(1, 5))
        lost = await self.received(inbox, 2)
        await self.amqp(lambda channel: channel.queue_delete(self.queue))
        await self.until(lambda: inbox.lost, "on_lost is called")
        await self.until(lambda: inbox.consumer.ready, "the consumer is ready again")
        inbox.consumer.ack(lost)
        inbox.consumer.requeue(lost)
        await self.broker.publish(self.queue, messages(11, 12))
        await self.received(inbox, 4)
        self.assertEqual((inbox.ids[2:], inbox.lost), ([11, 12], 1))
        self.the_line(f"queue {self.queue}", "cancelled", "retrying")

    async def test_queue_deleted_under_a_publisher(self) -> None:
        await self.broker.publish(self.queue, messages(1, 5))
        await self.amqp(lambda channel: channel.queue_delete(self.queue))
        self.assertIn(f"no queue {self.queue}", await self.unavailable())
        self.assertIs(self.broker.ready, True)
        await self.published(messages(1, 3))
        await self.until_depth(3)
        await self.amqp(lambda channel: channel.queue_delete(self.queue))
        await self.until_depth(0)
        await self.published(messages(1, 1))
        self.assertEqual(self.lines, [])

    async def test_unroutable_messages_are_never_confirmed(self) -> None:
        kept = self.unique_queue()
        await self.broker.publish(kept, messages(1, 1))
        await self.amqp(lambda channel: channel.queue_delete(self.queue))
        publishing = [
            Deferred.fromCoroutine(self.broker.publish(queue, messages(100 * i, 100 * i + i % 3)))
            for i in range(1, 101)
            for queue in (kept, self.queue)
        ]
        outcomes: Any = await DeferredList(publishing, consumeErrors=True)
        self.assertEqual([succeeded for succeeded, _ in outcomes], [True, False] * 100)
        for _, failure in outcomes[1::2]:
            failure.trap(BrokerUnavailable)
        await self.until_depth(1 + sum(1 + i % 3 for i in range(1, 101)), kept)
        await self.until_depth(0)

    async def test_many_publishers_at_once(self) -> None:
        queues = [self.unique_queue() for _ in range(4)]
        for queue in queues:
            await self.broker.publish(queue, messages(1, 1))
        batches = [(queues[i % 4], messages(i * 100, i * 100 + i % 7)) for i in range(1, 801)]
        await gatherResults([Deferred.fromCoroutine(self.broker.publish(queue, batch)) for queue, batch in batches])
        self.assertEqual(len(self.broker._work.publisher._unconfirmed), 0)
        for queue in queues:
            await self.until_depth(1 + sum(len(batch) for to, batch in batches if to == queue), queue)

    async def test_a_full_queue_refuses_messages(self) -> None:
        arguments = {"x-max-length": 2, "x-overflow": "reject-publish"}
        queue = self.unique_queue()
        await self.amqp(lambda channel: channel.queue_declare(queue, durable=True, arguments=arguments))
        with self.assertRaisesRegex(BrokerUnavailable, "refused"):
            await self.broker.publish(queue, messages(1, 50))
        self.assertIs(self.broker.ready, True)

    async def test_a_queue_with_other_properties_is_used(self) -> None:
        queue = self.unique_queue()
        await self.amqp(lambda channel: channel.queue_declare(queue, durable=True))
        inbox = await self.consume(queue=queue)
        await self.broker.publish(queue, messages(1, 3))
        await self.received(inbox, 3)
        self.assertEqual(inbox.lost, 0)
        self.the_line(f"queue {queue} exists", "x-queue-type")

    async def test_foreign_messages_are_dropped(self) -> None:
        bodies = [b"", b"hello", b"1", b"1 2 3", b"x" * 100, b"\xff\xfe", b"x" * 300_000, b'{"id": 1}', b"1 " * 200]

        def publish(channel: Any) -> None:
            for body in bodies:
                channel.basic_publish("", self.queue, body)

        inbox = await self.consume(3)
        await self.amqp(publish)
        await self.broker.publish(self.queue, messages(1, 1))
        await self.received(inbox, 1)
        inbox.consumer.ack(inbox.all)
        await self.broker.stop()
        await self.reopen()
        self.assertEqual(await self.broker.depth(self.queue), 0)
        self.the_line(f"queue {self.queue}", "not from taskd")

    async def test_prefetch_above_the_limit_of_amqp(self) -> None:
        inbox = await self.consume(100_000)
        await self.broker.publish(self.queue, messages(1, 10_000))
        await self.received(inbox, 10_000)
        inbox.consumer.ack(inbox.all)

    async def test_event_exchange_deleted(self) -> None:
        self.patch(events, "BIND_SECONDS", 0.05)
        received_events, _ = self.subscribe()
        await self.until(lambda: self.broker.announce(b"x") or received_events, "an event")
        await self.amqp(lambda channel: channel.exchange_delete(EXCHANGES[CHANGES]))
        # events that are still queued arrive until then
        await self.until(lambda: self.lines, "the loss is noticed")
        received_events.clear()
        await self.until(lambda: self.broker.announce(b"x") or received_events, "an event again")
        self.assertIs(self.broker.ready, True)

    async def test_event_queue_is_bounded_and_deleted_with_its_connection(self) -> None:
        self.subscribe()
        await self.until(lambda: self.broker.consuming)
        listed = (await self.ctl("list_queues", "name", "arguments", "exclusive", "auto_delete")).splitlines()
        [line] = [line for line in listed if line.startswith("amq.gen")]
        for part in ("x-max-length", "10000", "drop-head", "x-message-ttl", "true\ttrue"):
            self.assertIn(part, line)
        await self.broker.stop()
        self.assertNotIn("amq.gen", await self.ctl("list_queues", "name"))

    async def test_an_operator_closes_the_connections(self) -> None:
        inbox = await self.consume(3)
        received_events, gaps = self.subscribe()
        await self.until(lambda: gaps, "the subscription")
        await self.broker.publish(self.queue, messages(1, 5))
        await self.received(inbox, 3)
        count = len(gaps)
        await self.ctl("close_all_connections", "that's all")
        await self.until(lambda: inbox.lost and len(gaps) > count, "the connections are lost")
        await self.until(lambda: self.broker.ready and self.broker.consuming, "the broker is ready again")
        await self.until(lambda: len(inbox.all) == 6, "deliveries of the new channel")
        self.assertEqual([d.redelivered for d in inbox.all[3:]], [True] * 3)
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
        inbox = Inbox()
        broker.consume(self.queue, 1, inbox.deliver, inbox.lose)
        await self.until(lambda: self.lines, "the outage is logged")
        self.assertIn("cannot be reached", await self.unavailable(broker))
        await self.ctl("add_user", user, "sésame")
        # the user can log in now, but has no permission for the virtual host
        await self.until(lambda: "vhost" in (broker.outage or ""), "the reason changes")
        self.assertIs(broker.ready, False)
        await self.ctl("set_permissions", user, ".*", ".*", ".*")
        await self.until(lambda: broker.ready and broker.consuming, "ready")
        name = f"RabbitMQ at {self.node().host}:{self.node().port}"
        self.the_line(name, "ACCESS_REFUSED", "RABBITMQ_PASSWORD", "retrying")

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
            inbox = Inbox()
            broker.consume(self.queue, 1, inbox.deliver, inbox.lose)
            broker.subscribe(lambda body: None, lambda: None)
            for _ in range(turns):
                await deferLater(reactor, 0)
            if turns % 2 and broker.ready:
                publishing = Deferred.fromCoroutine(broker.publish(self.queue, messages(1, 3)))
                publishing.addErrback(lambda failure: failure.trap(BrokerUnavailable))
            await broker.stop()
            self.assertIs(broker.ready, False)
        self.assertEqual(self.lines, [])


del BrokerTests, LoggedCase, RabbitMQCase
