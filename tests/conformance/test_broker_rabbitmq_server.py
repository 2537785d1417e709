"""The broker while its RabbitMQ server is killed, stopped or low on memory."""

from __future__ import annotations

import functools
import os
import signal

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from taskd.broker.rabbitmq import connection
from tests import services
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

    async def test_killed_and_started_again(self) -> None:
        inbox = await self.receive()
        received_events, gaps = self.subscribe()
        await self.until(lambda: gaps, "the subscription")
        lost = inbox.lost
        self.node().kill()
        await self.until(lambda: not self.broker.ready and not inbox.hints.ready, "the loss is noticed")
        await self.until(lambda: inbox.lost > lost, "the receiver is told")
        self.assertIsNotNone(self.broker.outage)
        self.broker.hint([self.worker])
        self.broker.announce(b"dropped")
        # a broker that starts now cannot connect
        late = self.make()
        await late.start()
        await self.until(lambda: late.outage, "the late broker cannot connect")
        self.assertEqual(len([line for line in self.lines if "retrying" in line]), 2, self.lines)
        before, lost = len(gaps), inbox.lost
        await deferToThread(self.node().start)
        await self.until(lambda: self.broker.ready and late.ready, "ready again", 30)
        await self.until(lambda: self.broker.consuming and len(gaps) > before, "it receives again")
        self.assertGreater(inbox.lost, lost)
        self.assertIsNone(self.broker.outage)
        inbox.got.clear()
        await self.until(lambda: late.hint([self.worker]) or inbox.got, "a hint")
        await self.until(lambda: self.broker.announce(b"x") or received_events, "an event")
        self.assertNotIn(b"dropped", received_events)

    async def test_reads_nothing_for_a_while(self) -> None:
        """What is sent does not gather in memory without end."""
        self.patch(connection, "BEHIND_SECONDS", 0.2)
        received_events, gaps = self.subscribe()
        await self.until(lambda: gaps, "the subscription")
        before = len(gaps)
        os.kill(self.pid(), signal.SIGSTOP)
        try:
            for _ in range(40):
                self.broker.announce(b"x" * 2**20)
            await self.until(lambda: not self.broker.ready, "it is behind")
            self.broker.announce(b"dropped")
        finally:
            os.kill(self.pid(), signal.SIGCONT)
        await self.until(lambda: self.broker.ready, "it takes messages again")
        await self.until(lambda: len(gaps) > before, "the gap")
        self.assertNotIn(b"dropped", received_events)

    async def test_memory_alarm(self) -> None:
        inbox = await self.receive()
        received_events, gaps = self.subscribe()
        await self.until(lambda: gaps, "the subscription")
        self.addCleanup(lambda: Deferred.fromCoroutine(self.alarm(False)))
        await self.alarm(True)
        # RabbitMQ reports the alarm to a connection that publishes
        await self.until(lambda: self.broker.hint([self.worker]) or not self.broker.ready, "it notices the alarm")
        self.assertIn("memory", self.broker.blocked)
        before = len(gaps)
        self.broker.announce(b"dropped")
        for _ in range(1000):
            self.broker.hint([self.worker])
        # a broker that starts now notices the alarm by itself, and can be stopped
        late, stopped = self.make(), self.make()
        for broker in (late, stopped):
            await broker.start()
        await self.until(lambda: late.blocked and stopped.blocked, "the late broker is blocked")
        self.assertIs(late.ready, False)
        await stopped.stop()
        await self.alarm(False)
        await self.until(lambda: self.broker.ready and late.ready, "the alarm is over")
        self.assertIsNone(self.broker.blocked)
        await self.until(lambda: len(gaps) > before, "the subscriber gets a gap")
        inbox.got.clear()
        await self.until(lambda: self.broker.hint([self.worker]) or inbox.got, "a hint")
        self.assertNotIn(b"dropped", received_events)
        self.assertNotIn(b"", received_events)
        self.assertEqual(len(self.lines), 3, self.lines)
        self.assertTrue(all("takes no messages" in line for line in self.lines))

    async def test_server_that_does_not_respond(self) -> None:
        self.patch(connection, "CLOSE_SECONDS", 0.3)
        other = await self.another()
        inbox = await self.receive()
        os.kill(self.pid(), signal.SIGSTOP)
        self.addCleanup(os.kill, self.pid(), signal.SIGCONT)
        # hints and events are lost, and stopping does not wait for the server
        self.broker.hint([self.worker])
        self.broker.announce(b"x")
        inbox.hints.stop()
        await other.stop()
        os.kill(self.pid(), signal.SIGCONT)
        inbox = await self.receive()
        await self.until(lambda: self.broker.hint([self.worker]) or inbox.got, "a hint")

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
        inbox = await self.receive()
        await self.ctl("stop_app")
        await self.until(lambda: not self.broker.ready and not inbox.hints.ready, "the loss is noticed")
        await self.ctl("start_app")
        await self.until(lambda: self.broker.ready and inbox.hints.ready, "ready again")
        await self.until(lambda: self.broker.hint([self.worker]) or inbox.got, "a hint")

    async def test_server_loses_everything(self) -> None:
        inbox = await self.receive()
        await self.ctl("stop_app")
        await self.ctl("force_reset")
        await self.ctl("start_app")
        await self.until(lambda: self.broker.ready and inbox.hints.ready, "ready again")
        await self.until(lambda: self.broker.hint([self.worker]) or inbox.got, "a hint")


del LoggedCase
