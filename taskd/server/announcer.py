"""Tells this server's hub and all other servers what this process has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from taskd.model import Task
from taskd.ports import ORDERS, IBroker
from taskd.server.hub import Hub
from taskd.server.window import Windows
from taskd.wire.changes import Change, changes_of, decode_news, encode_news, encode_order, news_prefix

MAX_NEWS_BYTES = 256 * 1024
"""About as much goes into one message of the fan-out: brokers refuse messages of several megabytes."""


class Announcer:
    """``node`` is this process's id: news of its own come back over the fan-out and are passed over.
    ``moved`` is called when others' news may have made room in a window or added to a backlog, ``workers`` when they
    tell of a worker that has come or gone."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        broker: IBroker,
        hub: Hub,
        windows: Windows,
        node: str,
        moved: Callable[[], None] = lambda: None,
        workers: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._broker = broker
        self._hub = hub
        self._windows = windows
        self._node = node
        self._own_prefix = news_prefix(node)
        self._moved = moved
        self._workers = workers
        self._own: list[Change] = []
        self._deaf = False

    def now(self) -> datetime:
        """The clock's time in UTC."""
        return datetime.fromtimestamp(self._clock.seconds(), timezone.utc)

    def start(self) -> None:
        """Begin to hear the others' news."""
        self._broker.subscribe(self._heard, self._hub.gap)

    def announce(self, tasks: Sequence[Task]) -> None:
        """These tasks have changed, by our hand. Call it before their messages are published, so that nobody hears of
        a claim before the creation.

        This server's watchers hear of it in the reactor's next turn: who asked for the change gets the reply first.
        """
        if not tasks:
            return
        changes = changes_of(tasks, self.now())
        if not self._own:
            self._clock.callLater(0, self._tell)
        self._own += changes
        for some in _pieces(changes):
            self._broker.announce(encode_news(self._node, some))

    def order_to_stop(self, task_ids: Sequence[int]) -> None:
        """These tasks were cancelled while they ran: whoever runs them must hear of it."""
        self._broker.announce(encode_order(task_ids), ORDERS)

    def _tell(self) -> None:
        own, self._own = self._own, []
        self._hub.publish(own)

    def _heard(self, body: bytes) -> None:
        if body.startswith(self._own_prefix):
            return
        try:
            news = decode_news(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as e:
            # another version of taskd, or somebody else's message: the store has the truth all the same
            if not self._deaf:
                self._deaf = True
                self._log.warn("news cannot be read, live views may be late: {why}", why=str(e))
            return
        if news.workers:
            self._workers()
        if news.said:
            self._hub.pass_on(news.said)
        if news.changes:
            self._windows.heard(news.changes)
            self._hub.publish(news.changes)
            self._moved()


def _pieces(changes: Sequence[Change]) -> Iterator[Sequence[Change]]:
    start = size = 0
    for n, change in enumerate(changes):
        size += len(bytes(change.view))
        if size >= MAX_NEWS_BYTES:
            yield changes[start : n + 1]
            start, size = n + 1, 0
    if start < len(changes):
        yield changes[start:]
