"""Who is at the other end of a connection, and what an action answers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from taskd.model import User
from taskd.server.follow import Follow
from taskd.server.hub import GAP, Wait, Watch
from taskd.wire import messages as m


@dataclass
class Peer:
    """``send`` takes event lines; what may give a large reply is made inside ``reading``, which waits while the peer
    has too many of them to read."""

    send: Callable[[bytes], None]
    reading: AbstractAsyncContextManager[Any] = field(default_factory=nullcontext)
    user: User | None = None
    token: str | None = None
    watch: Watch | None = None
    believes: bool = False
    """A reply has said that it watches, and no gap since that it does not."""
    waits: set[Wait] = field(default_factory=set)
    follows: set[Follow] = field(default_factory=set)
    leaving: bool = False

    @property
    def hears(self) -> bool:
        """Whether it still gets events."""
        return bool(self.follows) or (self.watch is not None and not self.watch.closed)

    def disillusion(self) -> None:
        """Nothing is watched: tell it, if it believes that something is."""
        if self.believes:
            self.believes = False
            self.send(GAP)

    def unwatch(self) -> None:
        """End the watch. Follows go on."""
        if self.watch is not None:
            self.watch.close()
            self.watch = None

    def hush(self) -> None:
        """Send no more events at all."""
        self.believes = False
        self.unwatch()
        for follow in tuple(self.follows):
            follow.close()

    def gone(self) -> None:
        """The connection is lost or about to close: nobody waits any more."""
        self.leaving = True
        self.hush()
        for wait in tuple(self.waits):
            wait.wake()


class Then(NamedTuple):
    """A reply, and what is to be done once it has been sent."""

    reply: m.Reply
    after: Callable[[], None]


Answer = m.Reply | Then
SUCCESS: m.Reply = {"status": "success"}
