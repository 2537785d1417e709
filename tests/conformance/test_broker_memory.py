"""The suite of IBroker on the broker of the embedded server."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from taskd.broker.memory import MemoryBroker
from tests.conformance.broker import BrokerTests


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

    async def test_hints_of_one_turn_are_one_which_has_orders_if_one_has(self) -> None:
        inbox = await self.receive()
        for orders in (False, True, False):
            self.broker.hint([self.worker], orders)
        await self.pass_time()
        self.assertEqual(inbox.got, [True])

    async def test_a_receiver_survives_a_restart_and_is_told_of_it(self) -> None:
        inbox = await self.receive()
        await self.broker.stop()
        self.assertEqual(inbox.lost, 1)
        await self.reopen()
        self.assertEqual((inbox.lost, inbox.hints.ready), (2, True))
        self.broker.hint([self.worker])
        await self.pass_time()
        self.assertEqual(inbox.got, [False])

    async def test_a_stopped_broker_leaves_no_delayed_call(self) -> None:
        self.broker.subscribe(lambda body: None, lambda: None)
        await self.receive()
        self.broker.hint([self.worker])
        self.broker.announce(b"x")
        await self.broker.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])


del BrokerTests
