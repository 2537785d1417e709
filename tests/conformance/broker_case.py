"""What the tests of brokers share: a ready broker, receivers that record what they get, and time that passes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from tests.services import unique


class Inbox:
    """The callbacks of a receiver of hints; it records their calls. BrokerCase.receive sets ``hints``."""

    hints: Any

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self.got: list[bool] = []
        self.lost = 0

    def hint(self, orders: bool) -> None:
        """The callback on_hint."""
        self.got.append(orders)

    def lose(self) -> None:
        """The callback on_lost."""
        self.lost += 1


class BrokerCase(TestCase):
    """A ready ``broker``, the unused name of a ``worker``, and helpers to observe them.

    Nothing sleeps: ``until`` lets time pass in small steps until the expected state is reached. Subclasses define what
    time is.
    """

    timeout = 120
    broker: Any

    def make(self) -> Any:
        """A broker that is not started. All brokers of a test reach each other; the test stops them."""
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

    def unique_worker(self) -> str:
        """The name of a worker that no other test uses."""
        return unique("worker")

    async def setUp(self) -> None:  # type: ignore[override]
        self.worker = self.unique_worker()
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

    async def receive(self, worker: str | None = None, broker: Any = None) -> Inbox:
        """Receive the hints for a worker, and wait until they can arrive."""
        inbox = Inbox(worker or self.worker)
        inbox.hints = (broker or self.broker).receive_hints(inbox.worker, inbox.hint, inbox.lose)
        await self.until(lambda: inbox.hints.ready, "hints can arrive")
        return inbox
