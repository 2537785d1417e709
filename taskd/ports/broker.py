"""The broker: how messages and events travel between processes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from zope.interface import Attribute, Interface

from taskd.ports.scheduling import Dispatch

CHANGES = "changes"
"""The topic of what servers tell their clients: changes of state, progress, log lines, workers that come and go."""

ORDERS = "orders"
"""The topic of what workers must hear: cancelled tasks. Few, so that a worker need not read all changes."""


class Delivery(msgspec.Struct, eq=False):
    """A message in a consumer's hands until it is acked. ``tag`` is the adapter's own."""

    task_id: int
    dispatch: int
    redelivered: bool
    tag: Any


class IConsumer(Interface):
    """One subscription to a work queue. It survives reconnects; deliveries of a lost channel do not."""

    ready: bool = Attribute("True while messages can arrive")

    def ack(deliveries: Sequence[Delivery]) -> None:
        """Settle deliveries for good. Those of a lost channel are ignored: the broker redelivers them."""

    def requeue(deliveries: Sequence[Delivery]) -> None:
        """Give deliveries back unworked, for any consumer."""

    def stop() -> Awaitable[None]:
        """Take no more deliveries; those taken can still be acked."""


class IBroker(Interface):
    """Distributes task ids to workers, and news of changes to all servers. Promises nothing but speed: the store is
    the truth, so a message may come late, twice or never."""

    ready: bool = Attribute("True while messages can be published")

    def start() -> Awaitable[None]:
        """Begin connecting; returns at once and keeps trying. Readiness is in ``ready``."""

    def stop() -> Awaitable[None]:
        """Close the connections; unacked deliveries go back to their queues."""

    # a queue here is a name that Route.name gave

    def publish(queue: str, messages: Sequence[Dispatch]) -> Awaitable[None]:
        """Hand messages over; done when each is confirmed and routed. Raises BrokerUnavailable."""

    def consume(
        queue: str,
        prefetch: int,
        on_deliveries: Callable[[Sequence[Delivery]], None],
        on_lost: Callable[[], None],
    ) -> IConsumer:
        """Deliver messages in lists of up to ``prefetch`` unacked ones. ``on_lost`` tells that every delivery so far is
        void, as the channel is gone."""

    def depth(queue: str) -> Awaitable[int]:
        """Messages ready in the queue. Raises BrokerUnavailable."""

    def announce(news: bytes, topic: str = CHANGES) -> None:
        """Send news, which are not empty, to every subscriber of a topic, this process's own included. Dropped when the
        broker is away; every subscriber is told of a gap when it is back."""

    def subscribe(on_news: Callable[[bytes], None], on_gap: Callable[[], None], topic: str = CHANGES) -> None:
        """Hear all news of a topic from now on. ``on_gap`` tells that some may have been missed, each time it may be
        so."""
