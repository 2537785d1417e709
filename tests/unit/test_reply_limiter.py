"""taskd.api.reply_limiter: how many large replies are built at a time, and whose turn it is."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taskd.api.reply_limiter import ReplyLimiter, ReplySlots
from taskd.model.errors import Draining


class ReplyLimiterTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.slots = ReplySlots(3)
        self.building: list[str] = []
        self.built: dict[str, Deferred[None]] = {}

    def limiter(self, limit: int = 2) -> ReplyLimiter:
        return ReplyLimiter(self.clock, self.slots, limit)

    def build(self, limiter: ReplyLimiter, *names: str) -> list[Deferred[None]]:
        """Ask for replies. Each is built when :meth:`finish` gets its name."""
        return [Deferred.fromCoroutine(self._build(limiter, name)) for name in names]

    async def _build(self, limiter: ReplyLimiter, name: str) -> None:
        async with limiter:
            self.building.append(name)
            self.built[name] = Deferred()
            await self.built[name]

    def finish(self, *names: str) -> None:
        for name in names:
            self.building.remove(name)
            self.built.pop(name).callback(None)
            self.clock.advance(0)

    def test_a_connection_and_the_server_build_only_so_many_at_a_time(self) -> None:
        a, b, c = self.limiter(), self.limiter(), self.limiter()
        self.build(a, "a1", "a2", "a3")
        self.assertEqual(self.building, ["a1", "a2"])
        self.build(b, "b1", "b2")
        self.build(c, "c1")
        self.assertEqual(self.building, ["a1", "a2", "b1"])

    def test_connections_take_turns(self) -> None:
        a, b = self.limiter(3), self.limiter(3)
        self.build(a, "a1", "a2", "a3", "a4", "a5", "a6")
        self.build(b, "b1", "b2", "b3")
        order = []
        while self.building:
            order.append(self.building[0])
            self.finish(self.building[0])
        self.assertEqual(order, ["a1", "a2", "a3", "b1", "b2", "a4", "b3", "a5", "a6"])

    def test_a_client_that_does_not_read_keeps_no_slot(self) -> None:
        a, b = self.limiter(3), self.limiter()
        self.build(a, "a1", "a2", "a3", "a4")
        self.build(b, "b1")
        a.pause(True)
        self.finish("a1", "a2", "a3")
        self.assertEqual(self.building, ["b1"])
        self.build(b, "b2")
        self.assertEqual(self.building, ["b1", "b2"])
        a.pause(False)
        self.assertEqual(self.building, ["b1", "b2", "a4"])
        self.finish("b1", "b2", "a4")
        self.build(a, "a5", "a6", "a7")
        self.assertEqual(self.building, ["a5", "a6", "a7"])

    def test_a_closed_connection_leaves_its_turns_to_others(self) -> None:
        a, b, c = self.limiter(3), self.limiter(), self.limiter()
        self.build(a, "a1", "a2", "a3")
        [waiting] = self.build(b, "b1")
        self.build(c, "c1")
        b.close()
        self.failureResultOf(waiting, Draining)
        [late] = self.build(b, "b2")
        self.failureResultOf(late, Draining)
        a.close()
        self.finish("a1")
        self.assertEqual(self.building, ["a2", "a3", "c1"])

    def test_a_reply_that_fails_gives_its_slot_back(self) -> None:
        a = self.limiter(3)
        requests = self.build(a, "a1", "a2", "a3", "a4")
        self.building.remove("a1")
        self.built["a1"].errback(ZeroDivisionError())
        self.failureResultOf(requests[0], ZeroDivisionError)
        self.assertEqual(self.building, ["a2", "a3"])
        self.clock.advance(0)
        self.assertEqual(self.building, ["a2", "a3", "a4"])
