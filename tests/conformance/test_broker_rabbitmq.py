"""The suite of IBroker on RabbitMQ, and what can befall a server: it dies, hangs, raises alarms, refuses, is away."""

from __future__ import annotations

import functools
import gc
import os
import signal
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pika
from pika import frame, spec
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from taskd.broker.rabbitmq import connection, consumer, events, publisher, reconnecting
from taskd.broker.rabbitmq.broker import RabbitBroker
from taskd.broker.rabbitmq.consumer import parse_body
from taskd.broker.rabbitmq.frames import BadFrame, FrameReader, PublishFrames
from taskd.broker.rabbitmq.topology import EXCHANGES
from taskd.config import RabbitMQ
from taskd.model.errors import BrokerUnavailable
from taskd.ports.broker import CHANGES
from taskd.ports.scheduling import Dispatch
from tests import services
from tests.conformance.broker import BrokerCase, BrokerTests, Inbox, messages


class Hooks(BrokerCase):
    """The hooks on the RabbitMQ of this run, under the real reactor."""

    def node(self) -> services.RabbitMQ:
        """The server."""
        return services.rabbitmq()

    def make(self, **settings: Any) -> Any:
        services.require("rabbitmq")
        node = self.node()
        found = {"host": node.host, "port": node.port, "user": node.user, "password": node.password, **settings}
        broker = RabbitBroker(RabbitMQ(**found), reactor, [self.queue])
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

    def unique_queue(self) -> str:
        return services.unique("queue")


class Suite(Hooks, BrokerTests):
    """The suite."""


class Incidents(Hooks):
    """What else is tested with a server; ``lines`` are those of the log that an operator would look at."""

    async def setUp(self) -> None:  # type: ignore[override]
        self.lines: list[str] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            if event.get("log_level", LogLevel.debug) >= LogLevel.warn:
                self.lines.append(str(formatEvent(event)))

        # a failure that nobody has looked at is reported when it goes
        self.addCleanup(gc.collect)
        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        await super().setUp()

    def the_line(self, *parts: str) -> None:
        """There is one line in the log, and it says all this. Begins anew."""
        self.assertEqual(len(self.lines), 1, self.lines)
        for part in parts:
            self.assertIn(part, self.lines[0])
        self.lines.clear()

    def amqp(self, use: Callable[[Any], Any]) -> Deferred[Any]:
        """What ``use`` answers, given a channel of another client."""

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
        """Run rabbitmqctl while the reactor goes on."""
        return deferToThread(self.node().ctl, *arguments)

    async def unavailable(self, broker: Any = None) -> str:
        """Publishing raises BrokerUnavailable; what it says."""
        with self.assertRaises(BrokerUnavailable) as caught:
            await (broker or self.broker).publish(self.queue, messages(1, 1))
        return str(caught.exception)

    async def published(self, those: list[Dispatch]) -> None:
        """Publish as the outbox does, again until it is confirmed; as long as RabbitMQ still deletes a queue it may
        not be."""
        deadline = self.seconds() + 20
        while True:
            try:
                await self.broker.publish(self.queue, those)
                return
            except BrokerUnavailable:
                if self.seconds() > deadline:
                    raise
            await self.pass_time()

    def drawer(self) -> tuple[list[bytes], list[int]]:
        """What a new subscriber hears, and a list that grows with each gap."""
        heard: list[bytes] = []
        gaps: list[int] = []
        self.broker.subscribe(heard.append, lambda: gaps.append(len(heard)))
        return heard, gaps


class Queues(Incidents):
    """Something happens to a queue, to an exchange or to a message."""

    async def test_queue_deleted_under_a_consumer(self) -> None:
        inbox = await self.consume(2)
        await self.broker.publish(self.queue, messages(1, 5))
        void = await self.received(inbox, 2)
        await self.amqp(lambda channel: channel.queue_delete(self.queue))
        await self.until(lambda: inbox.lost, "the loss is told")
        await self.until(lambda: inbox.consumer.ready, "consuming again")
        inbox.consumer.ack(void)
        inbox.consumer.requeue(void)
        await self.broker.publish(self.queue, messages(11, 12))
        await self.received(inbox, 4)
        self.assertEqual((inbox.ids[2:], inbox.lost), ([11, 12], 1))
        self.the_line(f"queue {self.queue}", "cancelled", "trying on")

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

    async def test_unroutable_is_never_confirmed(self) -> None:
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
        await gatherResults([Deferred.fromCoroutine(self.broker.publish(queue, those)) for queue, those in batches])
        self.assertEqual(self.broker._work.publisher.unconfirmed, 0)
        for queue in queues:
            await self.until_depth(1 + sum(len(those) for to, those in batches if to == queue), queue)

    async def test_refused_message(self) -> None:
        arguments = {"x-max-length": 2, "x-overflow": "reject-publish"}
        queue = self.unique_queue()
        await self.amqp(lambda channel: channel.queue_declare(queue, durable=True, arguments=arguments))
        with self.assertRaisesRegex(BrokerUnavailable, "refused"):
            await self.broker.publish(queue, messages(1, 50))
        self.assertIs(self.broker.ready, True)

    async def test_queue_of_another_kind_is_used_as_it_is(self) -> None:
        queue = self.unique_queue()
        await self.amqp(lambda channel: channel.queue_declare(queue, durable=True))
        inbox = await self.consume(queue=queue)
        await self.broker.publish(queue, messages(1, 3))
        await self.received(inbox, 3)
        self.assertEqual(inbox.lost, 0)
        self.the_line(f"queue {queue} was there before", "x-queue-type")

    async def test_messages_of_others_are_dropped(self) -> None:
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
        self.the_line(f"queue {self.queue}", "none of ours")

    async def test_prefetch_beyond_the_protocol(self) -> None:
        inbox = await self.consume(100_000)
        await self.broker.publish(self.queue, messages(1, 10_000))
        await self.received(inbox, 10_000)
        inbox.consumer.ack(inbox.all)

    async def test_news_exchange_deleted(self) -> None:
        self.patch(events, "BIND_SECONDS", 0.05)
        heard, _ = self.drawer()
        await self.until(lambda: self.broker.announce(b"x") or heard, "news")
        await self.amqp(lambda channel: channel.exchange_delete(EXCHANGES[CHANGES]))
        # what is still under way
        await self.until(lambda: self.lines, "the loss is noticed")
        heard.clear()
        await self.until(lambda: self.broker.announce(b"x") or heard, "news again")
        self.assertIs(self.broker.ready, True)

    async def test_news_queue_is_bounded_and_goes_with_us(self) -> None:
        self.drawer()
        await self.until(lambda: self.broker.consuming)
        listed = (await self.ctl("list_queues", "name", "arguments", "exclusive", "auto_delete")).splitlines()
        [line] = [line for line in listed if line.startswith("amq.gen")]
        for part in ("x-max-length", "10000", "drop-head", "x-message-ttl", "true\ttrue"):
            self.assertIn(part, line)
        await self.broker.stop()
        self.assertNotIn("amq.gen", await self.ctl("list_queues", "name"))

    async def test_connections_closed_by_an_operator(self) -> None:
        inbox = await self.consume(3)
        heard, gaps = self.drawer()
        await self.until(lambda: gaps, "the subscription")
        await self.broker.publish(self.queue, messages(1, 5))
        await self.received(inbox, 3)
        count = len(gaps)
        await self.ctl("close_all_connections", "that's all")
        await self.until(lambda: inbox.lost and len(gaps) > count, "connections were lost")
        await self.until(lambda: self.broker.ready and self.broker.consuming, "all is well again")
        await self.until(lambda: len(inbox.all) == 6, "deliveries of the new channel")
        self.assertEqual([d.redelivered for d in inbox.all[3:]], [True] * 3)
        await self.until(lambda: self.broker.announce(b"x") or heard, "news")
        self.the_line(f"RabbitMQ at {self.node().host}:{self.node().port}", "CONNECTION_FORCED", "trying on")
        self.assertIsNone(self.broker.outage)


class Greeting(Protocol):
    """Says something to whoever connects, and nothing more."""

    greeting = b""

    def connectionMade(self) -> None:
        self.factory.count += 1
        assert self.transport is not None
        self.transport.write(self.greeting)


class Connecting(Incidents):
    """There is no server, or not for us."""

    async def serve(self, greeting: bytes) -> Any:
        """Listen; the factory counts connections, and its ``port`` is where it is."""
        factory: Any = Factory.forProtocol(type("Greets", (Greeting,), {"greeting": greeting}))
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
        await self.until(lambda: self.lines, "it is told")
        self.assertIn("cannot be reached", await self.unavailable(broker))
        await self.ctl("add_user", user, "sésame")
        # now it may log in, but not enter
        await self.until(lambda: "vhost" in (broker.outage or ""), "a new reason")
        self.assertIs(broker.ready, False)
        await self.ctl("set_permissions", user, ".*", ".*", ".*")
        await self.until(lambda: broker.ready and broker.consuming, "ready")
        name = f"RabbitMQ at {self.node().host}:{self.node().port}"
        self.the_line(name, "ACCESS_REFUSED", "RABBITMQ_PASSWORD", "trying on")

    async def test_unknown_host(self) -> None:
        broker = await self.start(host="no-such-host.invalid")
        await self.until(lambda: self.lines, "it is told", 20)
        await broker.stop()
        self.the_line("RabbitMQ at no-such-host.invalid", "trying on")

    async def test_host_that_is_none(self) -> None:
        broker = await self.start(host="no host." * 40)
        await self.until(lambda: self.lines, "it is told", 20)
        await broker.stop()
        self.the_line("trying on")

    async def test_silent_server(self) -> None:
        self.patch(reconnecting, "OPEN_SECONDS", 0.1)
        server = await self.serve(b"")
        broker = await self.start(port=server.port)
        await self.until(lambda: server.count > 2, "it tries on")
        await broker.stop()
        self.the_line("no answer within")

    async def test_server_of_another_protocol(self) -> None:
        for greeting in (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"AMQP\0\1\0\0",
            b"\1\0\0" * 99,
        ):
            server = await self.serve(greeting)
            broker = await self.start(port=server.port)
            await self.until(lambda: server.count > 2, "it tries on")  # noqa: B023
            await broker.stop()
            self.the_line("does not speak AMQP")

    async def test_stopped_at_any_moment(self) -> None:
        for turns in range(40):
            broker = self.make()
            await broker.start()
            inbox = Inbox()
            broker.consume(self.queue, 1, inbox.deliver, inbox.lose)
            broker.subscribe(lambda news: None, lambda: None)
            for _ in range(turns):
                await deferLater(reactor, 0)
            if turns % 2 and broker.ready:
                publishing = Deferred.fromCoroutine(broker.publish(self.queue, messages(1, 3)))
                publishing.addErrback(lambda failure: failure.trap(BrokerUnavailable))
            await broker.stop()
            self.assertIs(broker.ready, False)
        self.assertEqual(self.lines, [])


@functools.cache
def own_node() -> services.RabbitMQ:
    """A server to be killed."""
    node = services.RabbitMQ()
    node.start()
    return node


class Node(Incidents):
    """Something happens to the server, one of our own."""

    def node(self) -> services.RabbitMQ:
        return own_node()

    def pid(self) -> int:
        assert self.node()._process is not None
        return self.node()._process.pid  # type: ignore[union-attr]

    async def alarm(self, on: bool) -> None:
        await self.ctl("set_vm_memory_high_watermark", "0" if on else "0.4")

    async def settle_queue(self) -> None:
        """Have the server write down what it writes later: a queue that it knows only by heart dies with it."""
        await self.ctl("eval", "[dets:sync(T) || T <- dets:all()].")

    async def test_killed_and_back(self) -> None:
        inbox = await self.consume(10)
        heard, gaps = self.drawer()
        await self.until(lambda: gaps, "the subscription")
        await self.broker.publish(self.queue, messages(1, 100))
        taken = await self.received(inbox, 10)
        inbox.consumer.ack(taken[:3])
        await self.received(inbox, 13)
        await self.until_depth(87)
        await self.settle_queue()
        under_way = Deferred.fromCoroutine(self.broker.publish(self.queue, messages(201, 300)))
        self.node().kill()
        # it may have been confirmed just before
        confirmed: Any = await DeferredList([under_way], consumeErrors=True)
        await self.until(lambda: not self.broker.ready and not inbox.consumer.ready, "the loss is noticed")
        self.assertEqual(inbox.lost, 1)
        await self.unavailable()
        with self.assertRaises(BrokerUnavailable):
            await self.broker.depth(self.queue)
        self.assertIsNotNone(self.broker.outage)
        inbox.consumer.ack(taken)
        inbox.consumer.requeue(taken)
        # whoever starts now finds nobody
        late = self.make()
        await late.start()
        await self.until(lambda: late.outage, "it finds nobody")
        self.assertEqual(len([line for line in self.lines if "trying on" in line]), 2, self.lines)
        heard.clear()
        before = len(gaps)
        await deferToThread(self.node().start)
        await self.until(lambda: self.broker.ready and late.ready, "ready again")
        await self.until(lambda: self.broker.consuming and len(gaps) > before, "consuming again")
        self.assertIsNone(self.broker.outage)
        await self.broker.publish(self.queue, messages(101, 101))
        # until everything that was confirmed and not acked was here
        expected = {*range(4, 102), *(range(201, 301) if confirmed[0][0] else ())}
        seen: set[int] = set()

        def drain() -> bool:
            seen.update(delivery.task_id for delivery in inbox.all[13:])
            inbox.consumer.ack(inbox.all[13:])
            return seen >= expected

        await self.until(drain, "all that was confirmed")
        self.assertTrue(all(d.redelivered for d in inbox.all[13:] if d.task_id <= 13))
        await self.until(lambda: self.broker.announce(b"x") or heard, "news")

    async def test_killed_before_it_knew_the_queue(self) -> None:
        # the server may forget the queue's leader then, and with it the messages, but we are not stuck for ever
        inbox = await self.consume(10)
        await self.published(messages(1, 1))
        await self.received(inbox, 1)
        self.node().kill()
        await deferToThread(self.node().start)
        await self.until(lambda: inbox.consumer.ready, "consuming again", 40)
        await self.published(messages(2, 2))
        await self.until(lambda: 2 in inbox.ids, "delivered")

    async def test_memory_alarm(self) -> None:
        inbox = await self.consume(2)
        heard, gaps = self.drawer()
        await self.until(lambda: gaps, "the subscription")
        await self.broker.publish(self.queue, messages(1, 6))
        await self.received(inbox, 2)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.alarm(False)))
        await self.alarm(True)
        # the server tells those who publish
        await self.unavailable()
        await self.until(lambda: not self.broker.ready, "the alarm is heard")
        self.assertIn("memory", self.broker.blocked)
        self.assertIn("takes no messages", await self.unavailable())
        with self.assertRaises(BrokerUnavailable):
            await self.broker.depth(self.queue)
        before = len(gaps)
        self.broker.announce(b"dropped")
        # consuming goes on
        inbox.consumer.ack(inbox.all)
        await self.received(inbox, 4)
        # one that comes now finds out before it is trusted with anything, and can be stopped
        late, stopped = self.make(), self.make()
        late_inbox = Inbox()
        for broker in (late, stopped):
            await broker.start()
        late.consume(self.queue, 1, late_inbox.deliver, late_inbox.lose)
        await self.until(lambda: late.blocked and stopped.blocked and late_inbox.all, "the late one knows")
        self.assertIs(late.ready, False)
        await stopped.stop()
        await self.alarm(False)
        await self.until(lambda: self.broker.ready and late.ready, "the alarm is over")
        self.assertIsNone(self.broker.blocked)
        await self.broker.publish(self.queue, messages(7, 8))
        inbox.consumer.ack(inbox.all)
        await self.until(lambda: len(inbox.all) >= 6)
        await self.until(lambda: len(gaps) > before, "who listens is told that news were dropped")
        self.assertNotIn(b"dropped", heard)
        self.assertNotIn(b"", heard)
        self.assertEqual(len(self.lines), 3, self.lines)
        self.assertTrue(all("takes no messages" in line for line in self.lines))

    async def test_alarm_with_messages_under_way(self) -> None:
        self.addCleanup(lambda: Deferred.fromCoroutine(self.alarm(False)))
        raised = Deferred.fromCoroutine(self.alarm(True))
        failed = False
        while not failed:
            try:
                await self.broker.publish(self.queue, messages(1, 20))
            except BrokerUnavailable:
                failed = True
        await raised
        self.assertIs(self.broker.ready, False)
        await self.alarm(False)
        await self.until(lambda: self.broker.ready, "the alarm is over")
        await self.broker.publish(self.queue, messages(1, 20))
        self.assertEqual(len(self.lines), 1, self.lines)

    async def test_frozen(self) -> None:
        self.patch(publisher, "CONFIRM_SECONDS", 0.3)
        self.patch(reconnecting, "OPEN_SECONDS", 0.3)
        self.patch(connection, "CLOSE_SECONDS", 0.3)
        self.patch(consumer, "CANCEL_SECONDS", 0.3)
        other = await self.another()
        inbox = await self.consume(5)
        await self.broker.publish(self.queue, messages(1, 3))
        await self.received(inbox, 3)
        os.kill(self.pid(), signal.SIGSTOP)
        self.addCleanup(os.kill, self.pid(), signal.SIGCONT)
        self.assertIn("not confirmed within", await self.unavailable())
        await self.until(lambda: not self.broker.ready, "given up")
        # acks go nowhere, and nobody waits for that
        inbox.consumer.ack(inbox.all)
        await inbox.consumer.stop()
        await other.stop()
        os.kill(self.pid(), signal.SIGCONT)
        await self.until(lambda: self.broker.ready, "ready again", 20)
        await self.broker.publish(self.queue, messages(1, 1))

    async def test_missing_heartbeats(self) -> None:
        self.patch(connection, "HEARTBEAT", 1)
        broker = await self.another()
        os.kill(self.pid(), signal.SIGSTOP)
        self.addCleanup(os.kill, self.pid(), signal.SIGCONT)
        await self.until(lambda: not broker.ready, "the silence is noticed", 20)
        os.kill(self.pid(), signal.SIGCONT)
        await self.until(lambda: broker.ready, "ready again", 20)
        self.the_line("heartbeats", "trying on")

    async def test_restarted_in_order(self) -> None:
        inbox = await self.consume(5)
        await self.broker.publish(self.queue, messages(1, 3))
        await self.received(inbox, 3)
        await self.ctl("stop_app")
        await self.until(lambda: not self.broker.ready and not inbox.consumer.ready, "the loss is noticed")
        await self.ctl("start_app")
        await self.until(lambda: self.broker.ready and inbox.consumer.ready, "ready again")
        await self.until(lambda: len(inbox.all) == 6, "delivered again")
        await self.broker.publish(self.queue, messages(4, 4))
        await self.until(lambda: inbox.ids[6:] == [4])

    async def test_reset(self) -> None:
        inbox = await self.consume(5)
        await self.ctl("stop_app")
        await self.ctl("force_reset")
        await self.ctl("start_app")
        await self.until(lambda: self.broker.ready and inbox.consumer.ready, "ready again")
        await self.broker.publish(self.queue, messages(1, 3))
        await self.received(inbox, 3)


class Bodies(SynchronousTestCase):
    """What is taken for a message."""

    def test_ours(self) -> None:
        for body in (b"1 1", b"0 0", b"9223372036854775807 2147483647", b"007 1"):
            self.assertEqual(parse_body(body), Dispatch(*map(int, body.split())))

    def test_not_ours(self) -> None:
        bodies = [
            *(b"", b" ", b"1", b"1 ", b" 1", b"1  1", b"1 1 ", b" 1 1", b"1 2 3", b"-1 1", b"1 -1", b"+1 1", b"1_0 1"),
            *(b"9223372036854775808 1", b"1 2147483648", b"1.0 1", b"a b", "\u0661 1".encode(), b"1\n1", b"1 1\n"),
            *(b"9" * 5000 + b" 1", b"1 " + b"0" * 100),
        ]
        for body in bodies:
            self.assertIsNone(parse_body(body), body)


class Frames(SynchronousTestCase):
    """Reading and writing without pika gives what pika does."""

    def content(self, channel: int, method: Any, body: bytes, properties: Any = None, split: int = 0) -> bytes:
        header = frame.Header(channel, len(body), properties or spec.BasicProperties())
        pieces = [body[:split], body[split:]] if split else [body] if body else []
        frames = [frame.Method(channel, method), header, *(frame.Body(channel, piece) for piece in pieces)]
        return b"".join(f.marshal() for f in frames)

    def deliver(self, channel: int, tag: int, body: bytes, **options: Any) -> bytes:
        redelivered = options.pop("redelivered", False)
        method = spec.Basic.Deliver("ctag-ñ", tag, redelivered, "exchange", "k" * 255)
        return self.content(channel, method, body, **options)

    def test_publish(self) -> None:
        frames = PublishFrames(7, "queue ñ")
        bodies = [b"1 1", b"12345 1", b"1 1", b"x" * 1000]
        method = spec.Basic.Publish(exchange="", routing_key="queue ñ", mandatory=True)
        expected = [self.content(7, method, body, spec.BasicProperties(delivery_mode=2)) for body in bodies]
        self.assertEqual(frames.encode(bodies), b"".join(expected))
        self.assertEqual(frames.encode([]), b"")

    def test_read_in_any_pieces(self) -> None:
        heartbeat = frame.Heartbeat().marshal()
        ack = frame.Method(1, spec.Basic.Ack(3, True)).marshal()
        large = spec.BasicProperties(headers={"x": "y" * 300}, delivery_mode=2)
        # those for pika: no handler, no body, a body of two frames, of another channel in between
        for_pika = [
            heartbeat,
            self.deliver(2, 1, b"not ours"),
            self.deliver(1, 12, b""),
            ack,
            self.deliver(1, 13, b"two frames", split=3),
            frame.Method(1, spec.Basic.Deliver("c", 14, False, "", "")).marshal() + heartbeat,
            *(frame.Header(1, 1, spec.BasicProperties()).marshal(), frame.Body(1, b"x").marshal()),
        ]
        stream = b"".join(
            [
                self.deliver(1, 1, b"1 1"),
                for_pika[0],
                self.deliver(1, 2**64 - 1, b"2 1", redelivered=True),
                self.deliver(1, 3, b"\xce" * 1000, properties=large),
                b"".join(for_pika[1:4]),
                self.deliver(1, 4, b"4"),
                b"".join(for_pika[4:]),
                self.deliver(1, 5, b"5"),
            ]
        )
        expected = [(1, False, b"1 1"), (2**64 - 1, True, b"2 1"), (3, False, b"\xce" * 1000), (4, False, b"4")]
        for size in (1, 2, 3, 7, 8, 30, 1000, len(stream)):
            taken: list[tuple[int, bool, bytes]] = []
            other: list[bytes] = []
            reader = FrameReader(other.append)
            reader.handlers[1] = lambda *message: taken.append(message)  # noqa: B023
            for at in range(0, len(stream), size):
                reader.feed(stream[at : at + size])
            self.assertEqual(taken, [*expected, (5, False, b"5")])
            self.assertEqual(b"".join(other), b"".join(for_pika))

    def test_handler_may_leave(self) -> None:
        taken: list[int] = []
        other: list[bytes] = []
        reader = FrameReader(other.append)

        def take(tag: int, redelivered: bool, body: bytes) -> None:
            taken.append(tag)
            del reader.handlers[1]

        reader.handlers[1] = take
        rest = self.deliver(1, 2, b"2") + self.deliver(1, 3, b"3")
        reader.feed(self.deliver(1, 1, b"1") + rest)
        self.assertEqual((taken, b"".join(other)), ([1], rest))

    def test_pika_may_end_a_handler(self) -> None:
        other: list[bytes] = []

        def read(data: bytes) -> None:
            other.append(data)
            reader.handlers.clear()

        reader = FrameReader(read)
        reader.handlers[1] = lambda *message: self.fail("it has ended")
        stream = frame.Heartbeat().marshal() + self.deliver(1, 1, b"1")
        reader.feed(stream)
        self.assertEqual(b"".join(other), stream)

    def test_frame_that_is_too_long(self) -> None:
        reader = FrameReader(lambda data: None)
        with self.assertRaises(BadFrame):
            reader.feed(struct.pack(">BHI", 1, 1, 2**30) + b"x")


del BrokerCase, BrokerTests, Hooks, Incidents
