"""What one connection has subscribed to: a watch, waits and followed logs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from taskd.api.log_follow import LogFollow
from taskd.events.watch_hub import DRAINING, GAP, Send, Wait, Watch

SESSION_ENDED = b'{"event":"session_ended"}'


class Subscriptions:
    """``send`` sends encoded events. Actions build a large reply inside ``large_reply``, which waits while the client
    has too many of them to read. ``admit`` is called with the user who is about to log in: it raises RateLimited if the
    user has too many connections."""

    def __init__(
        self,
        send: Send,
        large_reply: AbstractAsyncContextManager[Any],
        admit: Callable[[int], None] = lambda user_id: None,
    ) -> None:
        self.admit = admit
        self.send = send
        self.large_reply = large_reply
        self.watch: Watch | None = None
        self.told_watching = False
        """A reply has told the client that it is watching, and no ``gap`` event since that it is not."""
        self.waits: set[Wait] = set()
        self.follows: set[LogFollow] = set()
        self.closed = False
        self.ended = False
        """The session has ended while requests were under way: they are answered with an error."""
        self.on_end: Callable[[], None] | None = None
        """Called when the session has ended elsewhere."""
        self.on_close: set[Callable[[Subscriptions], None]] = set()
        """Called at the end of the connection."""

    @property
    def active(self) -> bool:
        """Whether the client gets events or waits for some."""
        return bool(self.watch is not None or self.follows or self.waits)

    def unwatch(self) -> None:
        """End the watch. Followed logs go on."""
        if self.watch is not None:
            self.watch.close()
            self.watch = None

    def end_watch_with_gap(self) -> None:
        """The client does not read its events: end the watch, if there is one, and send one ``gap``."""
        if self.watch is not None and not self.watch.closed:
            self.told_watching = False
            self.watch.close()  # it stays here: a reply that still says that it watches needs another gap after it
            self.send((GAP,))

    def notify_watch_lost(self) -> None:
        """Nothing is watched any more: send a ``gap`` event if the client was told that it is watching."""
        if self.told_watching:
            self.told_watching = False
            self.send((GAP,))

    def cancel_subscriptions(self) -> None:
        """Send no more events."""
        self.told_watching = False
        self.unwatch()
        for follow in tuple(self.follows):
            follow.close()

    def begin_session(self) -> None:
        """Somebody has logged in: nothing of an earlier login goes on."""
        self.cancel_subscriptions()
        self.ended = False

    def end_session(self) -> None:
        """The session has ended elsewhere: send no more events, but one that says so, and answer waits at once."""
        self.ended = True
        if self.active and not self.closed:
            self.send((SESSION_ENDED,))
        self.cancel_subscriptions()
        for wait in tuple(self.waits):
            wait.wake()
        if self.on_end is not None:
            self.on_end()

    def suspend(self) -> None:
        """Nobody knows for too long whether the session is still valid: end the watch. Followed logs are read from the
        store, which is away."""
        self.end_watch_with_gap()

    def keep_only(self, user_id: int) -> None:
        """End the followed logs of tasks of other users: the client is no operator any more."""
        for follow in tuple(self.follows):
            if follow.user_id != user_id:
                follow.refuse()

    def drain(self) -> None:
        """The server is stopping: tell a client that gets events or has asked for them, and close."""
        # A watch that has failed counts: the reply to an earlier one may still come, and say that the client watches.
        if self.follows or self.watch is not None:
            self.cancel_subscriptions()
            self.send((DRAINING,))
        self.close()

    def close(self) -> None:
        """The connection is lost or about to close: end everything, and answer waits at once."""
        self.closed = True
        self.cancel_subscriptions()
        for wait in tuple(self.waits):
            wait.wake()
        closing, self.on_close = self.on_close, set()
        for call in closing:
            call(self)
