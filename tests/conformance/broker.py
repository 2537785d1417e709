"""The suite of IBroker and IConsumer: it tests every promise of their docstrings on the broker of a subclass."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred, gatherResults
from zope.interface.verify import verifyClass, verifyObject

from taskd.model.errors import BrokerUnavailable
from taskd.ports.broker import ORDERS, Delivery, IBroker, IConsumer
from taskd.ports.scheduling import Dispatch
from tests.conformance.broker_case import BrokerCase, messages


class BrokerTests(BrokerCase):
    """The promises that every broker keeps."""

    # -- the ports

    async def test_provides_its_interfaces(self) -> None:
        verifyClass(IBroker, type(self.broker))
        verifyObject(IBroker, self.broker)
        inbox = await self.consume()
        verifyClass(IConsumer, type(inbox.consumer))
        verifyObject(IConsumer, inbox.consumer)

    async def test_is_ready_between_start_and_stop(self) -> None:
        fresh = self.make()
        self.assertIs(fresh.ready, False)
        with self.assertRaises(BrokerUnavailable):
            await fresh.publish(self.queue, messages(1, 1))
        self.assertIs(self.broker.ready, True)
        inbox = await self.consume()
        self.assertIs(inbox.consumer.ready, True)
        await self.broker.stop()
        self.assertIs(self.broker.ready, False)
        self.assertIs(inbox.consumer.ready, False)
        await self.broker.stop()

    async def test_a_stopped_broker_refuses_everything(self) -> None:
        await self.broker.stop()
        with self.assertRaises(BrokerUnavailable):
            await self.broker.publish(self.queue, messages(1, 1))
        with self.assertRaises(BrokerUnavailable):
            await self.broker.publish(self.queue, [])
        with self.assertRaises(BrokerUnavailable):
            await self.broker.depth(self.queue)
        self.broker.announce(b"into the void")
        await self.reopen()
        self.assertEqual(await self.broker.depth(self.queue), 0)

    # -- publish and deliver

    async def test_published_is_delivered(self) -> None:
        inbox = await self.consume()
        await self.broker.publish(self.queue, [Dispatch(42, 3)])
        [delivery] = await self.received(inbox, 1)
        self.assertEqual((delivery.task_id, delivery.dispatch, delivery.redelivered), (42, 3, False))

    async def test_messages_wait_for_a_consumer(self) -> None:
        await self.broker.publish(self.queue, messages(1, 3))
        inbox = await self.consume()
        await self.received(inbox, 3)
        self.assertEqual(inbox.ids, [1, 2, 3])

    async def test_publishing_no_messages(self) -> None:
        await self.broker.publish(self.queue, [])
        self.assertEqual(await self.broker.depth(self.queue), 0)

    async def test_large_numbers(self) -> None:
        inbox = await self.consume()
        await self.broker.publish(self.queue, [Dispatch(2**63 - 1, 2**31 - 1), Dispatch(1, 0)])
        first, second = await self.received(inbox, 2)
        self.assertEqual((first.task_id, first.dispatch), (2**63 - 1, 2**31 - 1))
        self.assertEqual((second.task_id, second.dispatch), (1, 0))

    async def test_order_is_kept(self) -> None:
        inbox = await self.consume(5000)
        publishing = [
            Deferred.fromCoroutine(self.broker.publish(self.queue, messages(first, first + size - 1)))
            for first, size in ((1, 1), (2, 9), (11, 490), (501, 1), (502, 1499))
        ]
        await gatherResults(publishing)
        await self.received(inbox, 2000)
        self.assertEqual(inbox.ids, list(range(1, 2001)))
        self.assertLess(len(inbox.turns), 1000, "deliveries come in lists")

    async def test_queues_are_independent(self) -> None:
        other = self.unique_queue()
        here, there = await self.consume(), await self.consume(queue=other)
        await self.broker.publish(self.queue, messages(1, 2))
        await self.broker.publish(other, messages(3, 4))
        await self.received(here, 2)
        await self.received(there, 2)
        self.assertEqual((here.ids, there.ids), ([1, 2], [3, 4]))

    async def test_queue_names_in_any_script(self) -> None:
        for name in ("задачи ☃", "a b/c#*.d", "x" * 180):
            queue = f"{name}{self.unique_queue()}"
            await self.broker.publish(queue, messages(1, 2))
            await self.until_depth(2, queue)
            inbox = await self.consume(queue=queue)
            await self.received(inbox, 2)

    async def test_consumers_share_the_messages(self) -> None:
        one = await self.consume(10)
        two = await self.consume(10, await self.another())
        await self.broker.publish(self.queue, messages(1, 20))
        await self.until(lambda: len(one.ids + two.ids) == 20, "20 deliveries")
        self.assertEqual(sorted(one.ids + two.ids), list(range(1, 21)))
        self.assertEqual((len(one.ids), len(two.ids)), (10, 10))

    async def test_a_failing_callback_stops_no_delivery(self) -> None:
        seen: list[int] = []

        def deliver(deliveries: Sequence[Delivery]) -> None:
            seen.extend(d.task_id for d in deliveries)
            raise ValueError("a defect of the caller")

        consumer = self.broker.consume(self.queue, 10, deliver, lambda: None)
        other = await self.consume(queue=self.unique_queue())
        await self.until(lambda: consumer.ready)
        await self.broker.publish(self.queue, messages(1, 1))
        await self.until(lambda: seen == [1])
        await self.broker.publish(self.queue, messages(2, 2))
        await self.until(lambda: seen == [1, 2])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)
        self.assertIs(other.consumer.ready, True)

    # -- prefetch, ack, requeue

    async def test_prefetch_limits_unacked_deliveries(self) -> None:
        inbox = await self.consume(5)
        await self.broker.publish(self.queue, messages(1, 20))
        await self.until_depth(15)
        await self.received(inbox, 5)

    async def test_ack_brings_more_deliveries(self) -> None:
        inbox = await self.consume(4)
        await self.broker.publish(self.queue, messages(1, 30))
        await self.received(inbox, 4)
        # in any order: the first, the last, one in the middle, several with a gap, all
        count = 4
        unacked = list(inbox.all)
        for picks in ([0], [3], [1], [0, 2], [3, 0, 1], [2, 3, 1, 0], [3, 2]):
            acked = [unacked[i] for i in picks]
            inbox.consumer.ack(acked)
            count += len(acked)
            await self.received(inbox, count)
            unacked = [d for d in unacked if d not in acked] + inbox.all[-len(acked) :]
        self.assertEqual(inbox.ids, list(range(1, count + 1)))
        await self.until_depth(30 - count)

    async def test_acked_is_never_delivered_again(self) -> None:
        inbox = await self.consume()
        await self.broker.publish(self.queue, messages(1, 10))
        deliveries = await self.received(inbox, 10)
        inbox.consumer.ack(deliveries[4:7])
        inbox.consumer.ack(deliveries[1:2])
        await self.until_depth(0)
        await self.broker.stop()
        await self.reopen()
        again = await self.consume()
        await self.received(again, 6)
        self.assertEqual(sorted(again.ids), [1, 3, 4, 8, 9, 10])

    async def test_acking_twice_is_harmless(self) -> None:
        inbox = await self.consume()
        await self.broker.publish(self.queue, messages(1, 3))
        deliveries = await self.received(inbox, 3)
        for _ in range(2):
            inbox.consumer.ack([deliveries[0], deliveries[2], deliveries[0]])
        inbox.consumer.requeue(deliveries[2:])
        inbox.consumer.ack([])
        inbox.consumer.requeue([])
        await self.broker.publish(self.queue, messages(4, 4))
        await self.received(inbox, 4)
        self.assertEqual(inbox.lost, 0)

    async def test_requeued_is_delivered_again(self) -> None:
        inbox = await self.consume(3)
        await self.broker.publish(self.queue, messages(1, 3))
        deliveries = await self.received(inbox, 3)
        self.assertFalse(any(d.redelivered for d in deliveries))
        inbox.consumer.requeue(deliveries[1:])
        await self.received(inbox, 5)
        self.assertEqual(sorted(inbox.ids[3:]), [2, 3])
        self.assertTrue(all(d.redelivered for d in inbox.all[3:]))
        # acking a requeued delivery has no effect
        inbox.consumer.ack(deliveries[1:])
        inbox.consumer.ack([deliveries[0], *inbox.all[3:]])
        await self.broker.stop()
        await self.reopen()
        self.assertEqual(await self.broker.depth(self.queue), 0)

    async def test_requeued_goes_to_any_consumer(self) -> None:
        inbox = await self.consume(3)
        await self.broker.publish(self.queue, messages(1, 3))
        deliveries = await self.received(inbox, 3)
        await inbox.consumer.stop()
        other = await self.consume(broker=await self.another())
        inbox.consumer.requeue(deliveries)
        await self.received(other, 3)
        self.assertTrue(all(d.redelivered for d in other.all))

    # -- the end of a consumer and of a broker

    async def test_a_stopped_consumer_gets_no_more(self) -> None:
        inbox = await self.consume(3)
        await self.broker.publish(self.queue, messages(1, 10))
        taken = await self.received(inbox, 3)
        await inbox.consumer.stop()
        self.assertIs(inbox.consumer.ready, False)
        other = await self.consume()
        await self.received(other, 7)
        self.assertEqual(other.ids, list(range(4, 11)))
        # a stopped consumer gets nothing in their place
        inbox.consumer.ack(taken[:2])
        await self.broker.publish(self.queue, messages(11, 20))
        await self.received(other, 17)
        self.assertEqual(len(inbox.all), 3)
        inbox.consumer.ack(taken[2:])
        other.consumer.ack(other.all)
        await self.broker.stop()
        await self.reopen()
        self.assertEqual(await self.broker.depth(self.queue), 0)

    async def test_stopping_a_consumer_loses_nothing(self) -> None:
        inbox = await self.consume(50)
        publishing = Deferred.fromCoroutine(self.broker.publish(self.queue, messages(1, 500)))
        await self.until(lambda: inbox.all, "the first delivery")
        await inbox.consumer.stop()
        await inbox.consumer.stop()
        await publishing
        taken = len(inbox.all)
        other = await self.consume(1000, await self.another())
        await self.until(lambda: len(other.ids) == 500 - taken, "all others")
        self.assertEqual(sorted(inbox.ids + other.ids), list(range(1, 501)))
        self.assertEqual(len(inbox.all), taken)

    async def test_stopping_the_broker_requeues_unacked_deliveries(self) -> None:
        inbox = await self.consume(3)
        await self.broker.publish(self.queue, messages(1, 5))
        deliveries = await self.received(inbox, 3)
        self.assertEqual(inbox.lost, 0)
        await self.broker.stop()
        self.assertEqual(inbox.lost, 1)
        inbox.consumer.ack(deliveries)
        inbox.consumer.requeue(deliveries)
        await self.reopen()
        other = await self.consume()
        await self.received(other, 5)
        self.assertEqual({d.task_id: d.redelivered for d in other.all}, {1: True, 2: True, 3: True, 4: False, 5: False})

    async def test_depth_counts_ready_messages(self) -> None:
        self.assertEqual(await self.broker.depth(self.queue), 0)
        await self.broker.publish(self.queue, messages(1, 7))
        await self.until_depth(7)
        inbox = await self.consume(2)
        await self.received(inbox, 2)
        await self.until_depth(5)

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

    async def test_topics_are_independent(self) -> None:
        orders: list[bytes] = []
        changes: list[bytes] = []
        self.broker.subscribe(orders.append, lambda: None, ORDERS)
        self.broker.subscribe(changes.append, lambda: None)
        await self.until(lambda: self.broker.announce(b"order", ORDERS) or orders)
        await self.until(lambda: self.broker.announce(b"change") or changes)
        await self.pass_time()
        self.assertEqual((set(orders), set(changes)), ({b"order"}, {b"change"}))

    async def test_events_are_not_delivered_inside_the_call(self) -> None:
        received: list[bytes] = []
        self.broker.subscribe(received.append, lambda: None)
        self.broker.announce(b"x")
        self.assertEqual(received, [])

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
