"""The broker while its RabbitMQ server is killed, stopped or low on memory."""

from __future__ import annotations

import functools
import os
import signal
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.threads import deferToThread

from taskd.broker.rabbitmq import connection, consumer, publisher, reconnecting
from taskd.model.errors import BrokerUnavailable
from tests import services
from tests.conformance.broker_case import Inbox, messages
from tests.conformance.rabbitmq_case import LoggedCase


@functools.cache
def private_node() -> services.RabbitMQ:
    """A server that these tests may kill."""
    node = services.RabbitMQ()
    node.start()
    return node


class ServerTests(LoggedCase):
    """A server of this file's own is killed, stopped, restarted or raises an alarm."""

    def node(self) -> services.RabbitMQ:
        return private_node()

    def pid(self) -> int:
        assert self.node()._process is not None
        return self.node()._process.pid  # type: ignore[union-attr]

    async def alarm(self, on: bool) -> None:
        await self.ctl("set_vm_memory_high_watermark", "0" if on else "0.4")

    async def write_queue_to_disk(self) -> None:
        """Make the server write its metadata to disk at once. A queue that is only in its memory would be lost."""
        await self.ctl("eval", "[dets:sync(T) || T <- dets:all()].")

    async def test_killed_and_started_again(self) -> None:
        inbox = await self.consume(10)
        received_events, gaps = self.subscribe()
        await self.until(lambda: gaps, "the subscription")
        await self.broker.publish(self.queue, messages(1, 100))
        taken = await self.received(inbox, 10)
        inbox.consumer.ack(taken[:3])
        await self.received(inbox, 13)
        await self.until_depth(87)
        await self.write_queue_to_disk()
        publishing = Deferred.fromCoroutine(self.broker.publish(self.queue, messages(201, 300)))
        self.node().kill()
        # RabbitMQ may have confirmed it just before the kill
        confirmed: Any = await DeferredList([publishing], consumeErrors=True)
        await self.until(lambda: not self.broker.ready and not inbox.consumer.ready, "the loss is noticed")
        self.assertEqual(inbox.lost, 1)
        await self.unavailable()
        with self.assertRaises(BrokerUnavailable):
            await self.broker.depth(self.queue)
        self.assertIsNotNone(self.broker.outage)
        inbox.consumer.ack(taken)
        inbox.consumer.requeue(taken)
        # a broker that starts now cannot connect
        late = self.make()
        await late.start()
        await self.until(lambda: late.outage, "the late broker cannot connect")
        self.assertEqual(len([line for line in self.lines if "retrying" in line]), 2, self.lines)
        received_events.clear()
        before = len(gaps)
        await deferToThread(self.node().start)
        await self.until(lambda: self.broker.ready and late.ready, "ready again")
        await self.until(lambda: self.broker.consuming and len(gaps) > before, "the consumer is ready again")
        self.assertIsNone(self.broker.outage)
        await self.broker.publish(self.queue, messages(101, 101))
        # everything that was confirmed and not acked must arrive
        expected = {*range(4, 102), *(range(201, 301) if confirmed[0][0] else ())}
        seen: set[int] = set()

        def drain() -> bool:
            seen.update(delivery.task_id for delivery in inbox.all[13:])
            inbox.consumer.ack(inbox.all[13:])
            return seen >= expected

        await self.until(drain, "all confirmed messages")
        self.assertTrue(all(d.redelivered for d in inbox.all[13:] if d.task_id <= 13))
        await self.until(lambda: self.broker.announce(b"x") or received_events, "an event")

    async def test_killed_before_the_queue_is_on_disk(self) -> None:
        # RabbitMQ may lose the queue's leader and its messages then, but the broker must recover
        inbox = await self.consume(10)
        await self.published(messages(1, 1))
        await self.received(inbox, 1)
        self.node().kill()
        await deferToThread(self.node().start)
        await self.until(lambda: inbox.consumer.ready, "the consumer is ready again", 40)
        await self.published(messages(2, 2))
        await self.until(lambda: 2 in inbox.ids, "delivered")

    async def test_memory_alarm(self) -> None:
        inbox = await self.consume(2)
        received_events, gaps = self.subscribe()
        await self.until(lambda: gaps, "the subscription")
        await self.broker.publish(self.queue, messages(1, 6))
        await self.received(inbox, 2)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.alarm(False)))
        await self.alarm(True)
        # RabbitMQ reports the alarm to a connection that publishes
        await self.unavailable()
        await self.until(lambda: not self.broker.ready, "the broker notices the alarm")
        self.assertIn("memory", self.broker.blocked)
        self.assertIn("takes no messages", await self.unavailable())
        with self.assertRaises(BrokerUnavailable):
            await self.broker.depth(self.queue)
        before = len(gaps)
        self.broker.announce(b"dropped")
        # consuming goes on
        inbox.consumer.ack(inbox.all)
        await self.received(inbox, 4)
        # a broker that starts now notices the alarm before it is ready, and can be stopped
        late, stopped = self.make(), self.make()
        late_inbox = Inbox()
        for broker in (late, stopped):
            await broker.start()
        late.consume(self.queue, 1, late_inbox.deliver, late_inbox.lose)
        await self.until(lambda: late.blocked and stopped.blocked and late_inbox.all, "the late broker is blocked")
        self.assertIs(late.ready, False)
        await stopped.stop()
        await self.alarm(False)
        await self.until(lambda: self.broker.ready and late.ready, "the alarm is over")
        self.assertIsNone(self.broker.blocked)
        await self.broker.publish(self.queue, messages(7, 8))
        inbox.consumer.ack(inbox.all)
        await self.until(lambda: len(inbox.all) >= 6)
        await self.until(lambda: len(gaps) > before, "the subscriber gets a gap")
        self.assertNotIn(b"dropped", received_events)
        self.assertNotIn(b"", received_events)
        self.assertEqual(len(self.lines), 3, self.lines)
        self.assertTrue(all("takes no messages" in line for line in self.lines))

    async def test_alarm_while_publishing(self) -> None:
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

    async def test_server_that_does_not_respond(self) -> None:
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
        await self.until(lambda: not self.broker.ready, "the connection is given up")
        # acks are lost, and stopping does not wait for the server
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
        self.the_line("heartbeats", "retrying")

    async def test_orderly_restart(self) -> None:
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

    async def test_server_loses_all_queues(self) -> None:
        inbox = await self.consume(5)
        await self.ctl("stop_app")
        await self.ctl("force_reset")
        await self.ctl("start_app")
        await self.until(lambda: self.broker.ready and inbox.consumer.ready, "ready again")
        await self.broker.publish(self.queue, messages(1, 3))
        await self.received(inbox, 3)


del LoggedCase
