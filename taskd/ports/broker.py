"""The broker: how messages and events travel between processes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from zope.interface import Attribute, Interface

from taskd.ports.scheduling import Dispatch

CHANGES = "changes"
"""The topic of events for clients: changes of state, progress, log lines, workers that start and stop."""

ORDERS = "orders"
"""The topic of events for workers: cancelled tasks. It is separate so that workers need not read all changes."""


class Delivery(msgspec.Struct, eq=False):
    """A message that a consumer has received and not acked yet. Only the broker uses ``tag``."""

    task_id: int
    dispatch: int
    redelivered: bool
    tag: Any


class IConsumer(Interface):
    """A consumer of one work queue. It survives reconnects; the deliveries of a lost channel do not."""

    ready: bool = Attribute("True while messages can arrive")

    def ack(deliveries: Sequence[Delivery]) -> None:
        """Remove deliveries from the queue. Those of a lost channel are ignored: the broker redelivers them."""

    def requeue(deliveries: Sequence[Delivery]) -> None:
        """Give deliveries back without having worked on them, for any consumer."""

    def stop() -> Awaitable[None]:
        """Take no more deliveries. Earlier ones can still be acked."""


class IBroker(Interface):
    """Sends task ids to workers, and event batches to all subscribers.

    It is only there for speed: the store is the truth, so a message may come late, twice or never.
    """

    ready: bool = Attribute("True while messages can be published")
    consuming: bool = Attribute("True while every consumer and every subscription can receive something")

    def start() -> Awaitable[None]:
        """Start connecting. Returns at once; the broker retries until ``ready`` is True."""

    def stop() -> Awaitable[None]:
        """Close the connections. Unacked deliveries go back to their queues."""

    # ``queue`` is a Route.name

    def publish(queue: str, messages: Sequence[Dispatch]) -> Awaitable[None]:
        """Publish messages and wait until each is routed and confirmed. Raises BrokerUnavailable."""

    def consume(
        queue: str,
        prefetch: int,
        on_deliveries: Callable[[Sequence[Delivery]], None],
        on_lost: Callable[[], None],
    ) -> IConsumer:
        """Consume a queue with up to ``prefetch`` unacked deliveries.

        ``on_deliveries`` gets lists of them. ``on_lost`` is called when the channel is lost: all earlier deliveries are
        then void.
        """

    def depth(queue: str) -> Awaitable[int]:
        """The number of ready messages in the queue. Raises BrokerUnavailable."""

    def announce(batch: bytes, topic: str = CHANGES) -> None:
        """Send an event batch, which must not be empty, to every subscriber of a topic, also to those of this process.

        It is dropped while the broker cannot be reached. All subscribers then get a gap as soon as it can be.
        """

    def subscribe(on_batch: Callable[[bytes], None], on_gap: Callable[[], None], topic: str = CHANGES) -> None:
        """Call ``on_batch`` with every event batch of a topic from now on.

        ``on_gap`` is called each time that event batches may have been lost.
        """
