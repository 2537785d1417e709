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
    """The callbacks of a consumer; it records their calls. BrokerCase.consume sets ``consumer``."""

    consumer: Any

    def __init__(self) -> None:
        self.turns: list[list[Delivery]] = []
        self.lost = 0

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        """The callback on_deliveries."""
        self.turns.append(list(deliveries))

    def lose(self) -> None:
        """The callback on_lost."""
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
    """A ready ``broker``, an unused ``queue``, and helpers to observe them.

    Nothing sleeps: ``until`` lets time pass in small steps until the expected state is reached. Subclasses define what
    time is.
    """

    timeout = 120
    broker: Any

    def make(self) -> Any:
        """A broker that is not started. All brokers of a test share their queues; the test stops them."""
        raise NotImplementedError

    async def another(self) -> Any:
        """A ready broker as in another process; ``broker`` itself if there is only one process."""
        raise NotImplementedError

    async def reopen(self) -> None:
        """Make ``broker`` a ready broker again after it was stopped."""
        raise NotImplementedError

    def pass_time(self) -> Awaitable[None]:
        """Let a short time pass."""
        raise NotImplementedError

    def seconds(self) -> float:
        """The current time in seconds."""
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
        """Let time pass until ``predicate()`` is true; the test fails after ``seconds``."""
        deadline = self.seconds() + seconds
        while not predicate():
            if self.seconds() > deadline:
                self.fail(f"not within {seconds} s: {what or 'see the traceback'}")
            await self.pass_time()

    async def until_depth(self, expected: int, queue: str | None = None) -> None:
        """Let time pass until the queue has this number of ready messages."""
        deadline = self.seconds() + 10
        while (found := await self.broker.depth(queue or self.queue)) != expected:
            if self.seconds() > deadline:
                self.fail(f"{found} messages are ready, not {expected}")
            await self.pass_time()

    async def consume(self, prefetch: int = 100, broker: Any = None, queue: str | None = None) -> Inbox:
        """Start a consumer and wait until it is ready."""
        inbox = Inbox()
        inbox.consumer = (broker or self.broker).consume(queue or self.queue, prefetch, inbox.deliver, inbox.lose)
        await self.until(lambda: inbox.consumer.ready, "the consumer is ready")
        return inbox

    async def received(self, inbox: Inbox, count: int) -> list[Delivery]:
        """Wait for exactly ``count`` deliveries, and return them."""
        await self.until(lambda: len(inbox.all) >= count, f"{count} deliveries", 20)
        self.assertEqual(len(inbox.all), count)
        return inbox.all
