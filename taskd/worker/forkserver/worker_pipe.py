"""The two pipes between the fork server and its worker. Neither reading nor writing blocks."""

from __future__ import annotations

import contextlib
import os
import selectors
from collections.abc import Callable, Iterator

from taskd.worker.forkserver.messages import Event, LineBuffer, Order, decode_order, encode

MAX_ORDER_BYTES = 8 * 1024 * 1024

_CHUNK = 64 * 1024


class WorkerPipe:
    """Reads orders and writes events. ``read`` is called when there are orders; ``closed`` is set when the worker has
    hung up."""

    def __init__(self, orders: int, events: int, selector: selectors.BaseSelector, read: Callable[[], None]) -> None:
        self.fds = (orders, events)
        self.closed = False
        self._orders = orders
        self._events = events
        self._selector = selector
        self._lines = LineBuffer(MAX_ORDER_BYTES)
        self.unsent = bytearray()
        """What waits because the worker does not read."""
        for fd in self.fds:
            os.set_blocking(fd, False)
        selector.register(orders, selectors.EVENT_READ, read)

    def read(self) -> Iterator[tuple[Order, bytes]]:
        """The orders that are there, each with its line."""
        try:
            data = os.read(self._orders, _CHUNK)
        except BlockingIOError:
            return
        if not data:
            self.closed = True
        for line in self._lines.feed(data):
            yield decode_order(line), line

    def send(self, event: Event) -> None:
        """Send an event, now or when the worker reads again."""
        was_empty = not self.unsent
        self.unsent += encode(event)
        if was_empty:
            self._write()
            if self.unsent:
                self._selector.register(self._events, selectors.EVENT_WRITE, self._write)

    def _write(self) -> None:
        try:
            while self.unsent:
                del self.unsent[: os.write(self._events, self.unsent[:_CHUNK])]
        except BlockingIOError:
            return
        except OSError:
            # the worker has ended
            self.unsent.clear()
            self.closed = True
        with contextlib.suppress(KeyError):
            self._selector.unregister(self._events)
