"""Tells this server's hub and all other servers what this process has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone

from twisted.internet.interfaces import IReactorTime

from taskd.model import Task
from taskd.ports import IBroker
from taskd.server.hub import Hub
from taskd.server.window import Windows
from taskd.wire.changes import changes_of, decode_news, encode_news


class Announcer:
    """``node`` is this process's id: news of its own come back over the fan-out and are passed over.
    ``moved`` is called when others' news may have made room in a window or added to a backlog."""

    def __init__(
        self,
        clock: IReactorTime,
        broker: IBroker,
        hub: Hub,
        windows: Windows,
        node: str,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._broker = broker
        self._hub = hub
        self._windows = windows
        self._node = node
        self._moved = moved

    def now(self) -> datetime:
        """The clock's time in UTC."""
        return datetime.fromtimestamp(self._clock.seconds(), timezone.utc)

    def start(self) -> None:
        """Begin to hear the others' news."""
        self._broker.subscribe(self._heard, self._hub.gap)

    def announce(self, tasks: Sequence[Task]) -> None:
        """These tasks have changed, by our hand. Call it before their messages are published, so that nobody hears of
        a claim before the creation."""
        if not tasks:
            return
        changes = changes_of(tasks, self.now())
        self._hub.publish(changes)
        self._broker.announce(encode_news(self._node, changes))

    def _heard(self, body: bytes) -> None:
        news = decode_news(body)
        if news.origin != self._node:
            self._windows.heard(news.changes)
            self._hub.publish(news.changes)
            self._moved()
