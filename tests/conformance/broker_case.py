"""What the tests of brokers share: a ready broker, consumers that record what they get, and time that passes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from taskd.ports.broker import Delivery
from taskd.ports.scheduling import Dispatch


def messages(first: int, last: int, dispatch: int = 1) -> list[Dispatch]:
    """One message for each task id, ``last`` included."""
    return [Dispatch(task_id, dispatch) for task_id in range(first, last + 1)]


class Inbox:
    """A consumer's callbacks, and all that they were told. ``consumer`` is set by BrokerTests.consume."""

    consumer: Any

    def __init__(self) -> None:
        self.turns: list[list[Delivery]] = []
        self.lost = 0

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        """on_deliveries."""
        self.turns.append(list(deliveries))

    def lose(self) -> None:
        """on_lost."""
        self.lost += 1

    @property
    def all(self) -> list[Delivery]:
        """Every delivery, in order."""
        return [delivery for turn in self.turns for delivery in turn]

    @property
    def ids(self) -> list[int]:
        """Their task ids."""
        return [delivery.task_id for delivery in self.all]


class BrokerCase(TestCase):
    """A ready ``broker`` and an unused ``queue``, and what is needed to look at them."""

    timeout = 120
    broker: Any

    def make(self) -> Any:
        """A broker over this case's queues that is not started; the case stops it."""
        raise NotImplementedError

    async def another(self) -> Any:
        """A ready broker such as another process would have; where there are no others, ``broker`` itself."""
        raise NotImplementedError

    async def reopen(self) -> None:
        """Let ``broker`` be a ready one, after ``broker`` was stopped."""
        raise NotImplementedError

    def pass_time(self) -> Awaitable[None]:
        """Let a moment pass."""
        raise NotImplementedError

    def seconds(self) -> float:
        """The time that passes."""
        raise NotImplementedError

    def unique_queue(self) -> str:
        """The name of a queue that no other test uses."""
        raise NotImplementedError

    async def setUp(self) -> None:  # type: ignore[override]
        self.queue = self.unique_queue()
        self.broker = self.make()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.broker.stop()))
        await self.broker.start()
        await self.until(lambda: self.broker.ready, "the broker is ready")

    # -- helpers

    async def until(self, predicate: Callable[[], object], what: str = "", seconds: float = 10.0) -> None:
        """Let time pass until ``predicate()`` is true; fails after so many seconds."""
        deadline = self.seconds() + seconds
        while not predicate():
            if self.seconds() > deadline:
                self.fail(f"not within {seconds} s: {what or 'see the traceback'}")
            await self.pass_time()

    async def until_depth(self, expected: int, queue: str | None = None) -> None:
        """Let time pass until so many messages are ready."""
        deadline = self.seconds() + 10
        while (found := await self.broker.depth(queue or self.queue)) != expected:
            if self.seconds() > deadline:
                self.fail(f"{found} messages are ready, not {expected}")
            await self.pass_time()

    async def consume(self, prefetch: int = 100, broker: Any = None, queue: str | None = None) -> Inbox:
        """A consumer that is ready."""
        inbox = Inbox()
        inbox.consumer = (broker or self.broker).consume(queue or self.queue, prefetch, inbox.deliver, inbox.lose)
        await self.until(lambda: inbox.consumer.ready, "the consumer is ready")
        return inbox

    async def received(self, inbox: Inbox, count: int) -> list[Delivery]:
        """The inbox's deliveries, once there are so many, and not one more."""
        await self.until(lambda: len(inbox.all) >= count, f"{count} deliveries", 20)
        self.assertEqual(len(inbox.all), count)
        return inbox.all
