"""Who is at the other end of a connection, and what an action answers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from taskd.api.log_follow import Follow
from taskd.events.hub import GAP, Wait, Watch
from taskd.model.users import User
from taskd.protocol import messages as m


@dataclass
class Peer:
    """``send`` takes event lines; what may give a large reply is made inside ``reading``, which waits while the peer
    has too many of them to read."""

    send: Callable[[bytes], None]
    reading: AbstractAsyncContextManager[Any] = field(default_factory=nullcontext)
    user: User | None = None
    token: str | None = None
    watch: Watch | None = None
    told_watching: bool = False
    """A reply has said that it watches, and no gap since that it does not."""
    waits: set[Wait] = field(default_factory=set)
    follows: set[Follow] = field(default_factory=set)
    leaving: bool = False

    @property
    def has_subscriptions(self) -> bool:
        """Whether it still gets events."""
        return bool(self.follows) or (self.watch is not None and not self.watch.closed)

    def notify_watch_lost(self) -> None:
        """Nothing is watched: tell it, if it told_watching that something is."""
        if self.told_watching:
            self.told_watching = False
            self.send(GAP)

    def unwatch(self) -> None:
        """End the watch. Follows go on."""
        if self.watch is not None:
            self.watch.close()
            self.watch = None

    def cancel_subscriptions(self) -> None:
        """Send no more events at all."""
        self.told_watching = False
        self.unwatch()
        for follow in tuple(self.follows):
            follow.close()

    def gone(self) -> None:
        """The connection is lost or about to close: nobody waits any more."""
        self.leaving = True
        self.cancel_subscriptions()
        for wait in tuple(self.waits):
            wait.wake()


class Then(NamedTuple):
    """A reply, and what is to be done once it has been sent."""

    reply: m.Reply
    after: Callable[[], None]


Answer = m.Reply | Then
SUCCESS: m.Reply = {"status": "success"}
