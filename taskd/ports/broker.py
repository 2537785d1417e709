"""The broker: how hints and events travel between processes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from zope.interface import Attribute, Interface


class IHints(Interface):
    """The hints for one worker. They survive reconnects."""

    ready: bool = Attribute("True while hints can arrive")

    def stop() -> None:
        """Receive no more."""


class IBroker(Interface):
    """Sends hints to workers, and event batches to all subscribers.

    It is only there for speed: the store is the truth, so a message may come late, twice or never.
    """

    ready: bool = Attribute("True while messages can be sent")

    consuming: bool = Attribute("True while every receiver of hints and every subscription can receive something")

    def start() -> Awaitable[None]:
        """Start connecting. Returns at once; the broker retries until ``ready`` is True. The store has been started: a
        broker may need the id of the installation."""

    def stop() -> Awaitable[None]:
        """Close the connections."""

    def hint(workers: Iterable[str], orders: bool = False) -> None:
        """Tell these workers, by name, to look into the store now: something was assigned to them; or, with ``orders``,
        something that they hold is to be stopped. It is dropped while the broker cannot be reached. It is not
        confirmed, and nothing depends on it."""

    def receive_hints(worker: str, on_hint: Callable[[bool], None], on_lost: Callable[[], None]) -> IHints:
        """Call ``on_hint(orders)`` for hints to this worker from now on; several that wait are one, which has
        ``orders`` if one of them has. ``on_lost`` is called each time that hints may have been lost: when they can
        arrive again, and when they cannot any more."""

    def announce(batch: bytes) -> None:
        """Send an event batch, which must not be empty, to every subscriber, also to those of this process.

        It is dropped while the broker cannot be reached. All subscribers then get a gap as soon as it can be.
        """

    def flush() -> None:
        """Send at once what was announced in this turn of the reactor. Without it, it is sent in the next turn."""

    def subscribe(on_batch: Callable[[bytes], None], on_gap: Callable[[], None]) -> None:
        """Call ``on_batch`` with every event batch from now on.

        ``on_gap`` is called each time that event batches may have been lost.
        """
