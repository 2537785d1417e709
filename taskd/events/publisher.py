"""Tells this server's hub and all other servers what this process has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from taskd.events.hub import Hub
from taskd.events.records import TaskChange, batch_prefix, changes_of, decode_batch, encode_batch, encode_cancel_order
from taskd.model.tasks import Task
from taskd.ports.broker import ORDERS, IBroker

MAX_BATCH_BYTES = 256 * 1024
"""About as much goes into one message of the fan-out: brokers refuse messages of several megabytes."""


class Publisher:
    """``node`` is this process's id: news of its own come back over the fan-out and are passed over.
    ``changed`` is called with the changes that others made, ``workers`` when a worker has come or gone."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        broker: IBroker,
        hub: Hub,
        node: str,
        changed: Callable[[Sequence[TaskChange]], None],
        workers: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._broker = broker
        self._hub = hub
        self._node = node
        self._own_prefix = batch_prefix(node)
        self._changed = changed
        self._workers = workers
        self._own: list[TaskChange] = []
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
            self._broker.announce(encode_batch(self._node, some))

    def publish_cancel_order(self, task_ids: Sequence[int]) -> None:
        """These tasks were cancelled while they ran: whoever runs them must hear of it."""
        self._broker.announce(encode_cancel_order(task_ids), ORDERS)

    def _tell(self) -> None:
        own, self._own = self._own, []
        self._hub.publish(own)

    def _heard(self, body: bytes) -> None:
        if body.startswith(self._own_prefix):
            return
        try:
            news = decode_batch(body)
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
            self._changed(news.changes)
            self._hub.publish(news.changes)


def _pieces(changes: Sequence[TaskChange]) -> Iterator[Sequence[TaskChange]]:
    start = size = 0
    for n, change in enumerate(changes):
        size += len(bytes(change.view))
        if size >= MAX_BATCH_BYTES:
            yield changes[start : n + 1]
            start, size = n + 1, 0
    if start < len(changes):
        yield changes[start:]
