"""The suite of IBroker and IHints: it tests every promise of their docstrings on the broker of a subclass."""

from __future__ import annotations

from zope.interface.verify import verifyClass, verifyObject

from taskd.ports.broker import IBroker, IHints
from tests.conformance.broker_case import BrokerCase, Inbox


class BrokerTests(BrokerCase):
    """The promises that every broker keeps."""

    # -- the ports

    async def test_provides_its_interfaces(self) -> None:
        verifyClass(IBroker, type(self.broker))
        verifyObject(IBroker, self.broker)
        inbox = await self.receive()
        verifyClass(IHints, type(inbox.hints))
        verifyObject(IHints, inbox.hints)

    async def test_is_ready_between_start_and_stop(self) -> None:
        fresh = self.make()
        self.assertIs(fresh.ready, False)
        self.assertIs(self.broker.ready, True)
        inbox = await self.receive()
        await self.until(lambda: self.broker.consuming, "it receives")
        await self.broker.stop()
        self.assertIs(self.broker.ready, False)
        self.assertIs(self.broker.consuming, False)
        self.assertIs(inbox.hints.ready, False)
        await self.broker.stop()

    async def test_a_broker_that_is_not_ready_drops_everything(self) -> None:
        fresh = self.make()
        fresh.hint([self.worker])
        fresh.announce(b"into the void")
        await self.broker.stop()
        self.broker.hint([self.worker], orders=True)
        self.broker.announce(b"into the void")
        await self.reopen()
        await self.until(lambda: self.broker.ready)
        seen: list[bytes] = []
        inbox = await self.receive()
        self.broker.subscribe(seen.append, lambda: None)
        await self.until(lambda: self.broker.announce(b"x") or seen)
        await self.pass_time()
        self.assertEqual((inbox.got, set(seen)), ([], {b"x"}))

    # -- hints

    async def test_a_hint_reaches_its_worker(self) -> None:
        inbox = await self.receive()
        self.broker.hint([self.worker])
        await self.until(lambda: inbox.got == [False], "a hint")

    async def test_a_hint_comes_from_any_process(self) -> None:
        inbox = await self.receive()
        (await self.another()).hint([self.worker])
        await self.until(lambda: inbox.got == [False], "a hint")

    async def test_a_hint_with_orders(self) -> None:
        inbox = await self.receive()
        self.broker.hint([self.worker], orders=True)
        await self.until(lambda: inbox.got == [True], "a hint with orders")

    async def test_hints_to_several_workers(self) -> None:
        names = [self.unique_worker() for _ in range(3)]
        inboxes = [await self.receive(name) for name in names]
        other = await self.receive()
        self.broker.hint(iter(names))
        await self.until(lambda: all(inbox.got for inbox in inboxes), "a hint to each")
        self.broker.hint([])
        await self._sync(other)
        self.assertEqual([inbox.got for inbox in inboxes], [[False]] * 3)

    async def test_hints_to_workers_that_nobody_knows_are_dropped(self) -> None:
        inbox = await self.receive()
        self.broker.hint([self.unique_worker(), self.worker, "ñ☃ a b/c#*." + "x" * 100], orders=True)
        await self.until(lambda: inbox.got, "its hint")
        self.assertEqual(inbox.got, [True])

    async def test_the_names_of_workers_are_in_any_script(self) -> None:
        for name in ("задачи ☃", "a b/c#*.d", "x" * 120):
            worker = f"{name}{self.unique_worker()}"
            inbox = await self.receive(worker)
            self.broker.hint([worker])
            await self.until(lambda inbox=inbox: inbox.got == [False], "a hint")  # type: ignore[misc]

    async def test_several_hints_that_wait_are_one(self) -> None:
        inbox = await self.receive()
        for n in range(200):
            self.broker.hint([self.worker], orders=n == 50)
        await self.until(lambda: inbox.got, "a hint")
        await self._sync(inbox)
        self.assertLess(len(inbox.got), 100)
        self.assertIn(True, inbox.got)

    async def test_orders_are_given_once(self) -> None:
        inbox = await self.receive()
        self.broker.hint([self.worker], orders=True)
        await self.until(lambda: inbox.got == [True], "orders")
        self.broker.hint([self.worker])
        await self.until(lambda: inbox.got == [True, False], "a hint without")

    async def test_nothing_is_delivered_inside_the_call(self) -> None:
        seen: list[bytes] = []
        inbox = await self.receive()
        self.broker.subscribe(seen.append, lambda: None)
        self.broker.hint([self.worker])
        self.broker.announce(b"x")
        self.assertEqual((inbox.got, seen), ([], []))

    async def test_a_receiver_that_was_stopped_gets_no_more(self) -> None:
        inbox, other = await self.receive(), await self.receive(self.unique_worker())
        self.broker.hint([self.worker])
        inbox.hints.stop()
        self.assertIs(inbox.hints.ready, False)
        lost = inbox.lost
        self.broker.hint([self.worker])
        await self._sync(other)
        inbox.hints.stop()
        await self.broker.stop()
        self.assertEqual((inbox.got, inbox.lost), ([], lost))

    async def test_a_failing_receiver_stops_no_other(self) -> None:
        got: list[bool] = []

        def fail(orders: bool) -> None:
            got.append(orders)
            raise ValueError("a defect of the receiver")

        hints = self.broker.receive_hints(self.worker, fail, lambda: None)
        other = await self.receive(self.unique_worker())
        await self.until(lambda: hints.ready)
        for count in (1, 2):
            self.broker.hint([self.worker])
            await self.until(lambda count=count: len(got) == count)  # type: ignore[misc]
        await self._sync(other)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)

    async def test_the_end_of_a_broker_is_told_to_its_receivers(self) -> None:
        inbox = await self.receive()
        lost = inbox.lost
        await self.broker.stop()
        await self.until(lambda: inbox.lost > lost, "hints cannot arrive any more")

    async def _sync(self, inbox: Inbox) -> None:
        """Wait until what was sent before has arrived: hints arrive in their order."""
        before = len(inbox.got)
        self.broker.hint([inbox.worker])
        await self.until(lambda: len(inbox.got) > before, "a later hint")

    # -- events

    async def test_events_reach_every_subscriber(self) -> None:
        received: list[list[bytes]] = [[], [], []]
        other = await self.another()
        for broker, list_ in zip((self.broker, self.broker, other), received, strict=True):
            broker.subscribe(list_.append, lambda: None)
        # announce until every subscription has started
        count = 0

        def announce() -> bool:
            nonlocal count
            count += 1
            self.broker.announce(b"hello %d" % count)
            return all(received)

        await self.until(announce, "everyone gets events")
        other.announce(b"from the other")
        await self.until(lambda: all(b"from the other" in list_ for list_ in received))
        large = bytes(range(256)) * 1000
        for body in (b"\0", large, "ñ☃".encode()):
            self.broker.announce(body)
        await self.until(lambda: all(list_[-1] == "ñ☃".encode() for list_ in received))
        for list_ in received:
            self.assertEqual(list_[-3:], [b"\0", large, "ñ☃".encode()])

    async def test_a_failing_listener_stops_no_other(self) -> None:
        received: list[bytes] = []

        def fail(body: bytes) -> None:
            raise ValueError("a defect of the listener")

        self.broker.subscribe(fail, lambda: None)
        self.broker.subscribe(received.append, lambda: None)
        await self.until(lambda: self.broker.announce(b"x") or received)
        self.assertTrue(self.flushLoggedErrors(ValueError))
        # deliver the events that are still queued
        await self.broker.stop()
        self.flushLoggedErrors(ValueError)

    async def test_announcing_without_subscribers(self) -> None:
        self.broker.announce(b"x")
        await self.pass_time()
