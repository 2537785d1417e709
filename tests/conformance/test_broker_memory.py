"""The suite of IBroker on the broker of the embedded server."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from taskd.broker.memory import MemoryBroker
from tests.conformance.broker import BrokerTests
from tests.conformance.broker_case import messages
from tests.services import unique


class MemoryBrokerTests(BrokerTests):
    """The suite with a clock that the test advances."""

    def make(self) -> Any:
        self.clock = getattr(self, "clock", None) or Clock()
        return MemoryBroker(self.clock)

    async def another(self) -> Any:
        return self.broker

    async def reopen(self) -> None:
        await self.broker.start()

    async def pass_time(self) -> None:
        self.clock.advance(0.01)

    def seconds(self) -> float:
        return float(self.clock.seconds())

    def unique_queue(self) -> str:
        return unique("queue")

    async def test_a_stopped_broker_leaves_no_delayed_call(self) -> None:
        self.broker.subscribe(lambda body: None, lambda: None)
        await self.consume()
        await self.broker.publish(self.queue, messages(1, 5))
        self.broker.announce(b"x")
        await self.broker.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])


del BrokerTests
