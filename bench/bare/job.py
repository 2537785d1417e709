"""The settings of the bare processes, their batches, and how they run and fail."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred

WORKER = "floor"
"""The name of the bare worker."""

reactor: Any = installed_reactor
T = TypeVar("T")


class Job:
    """The settings of the two processes, from a JSON file that :mod:`bench.floor` writes."""

    def __init__(self, path: str) -> None:
        settings = json.loads(Path(path).read_text())
        self.dsn: dict[str, Any] = settings["dsn"]
        self.amqp: dict[str, Any] = settings["amqp"]
        self.queue: str = settings["queue"]
        self.tasks: int = settings["tasks"]
        self.users: int = settings["users"]
        self.sequential: bool = settings["sequential"]
        self.create = max(1, round(settings["create"]))
        self.finish = max(1, round(settings["finish"]))


class Gather(Generic[T]):
    """Collects items into batches of ``size``, and flushes a smaller batch after ``seconds``."""

    def __init__(self, size: int, seconds: float, flush: Callable[[list[T]], Awaitable[None]]) -> None:
        self._size = size
        self._seconds = seconds
        self._flush = flush
        self._items: list[T] = []
        self._timer: Any = None

    def add(self, item: T) -> None:
        """Add an item. The batch is flushed if it is full."""
        self._items.append(item)
        if len(self._items) >= self._size:
            self._flush_now()
        elif self._timer is None:
            self._timer = reactor.callLater(self._seconds, self._timeout)

    def _timeout(self) -> None:
        self._timer = None
        if self._items:
            self._flush_now()

    def _flush_now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        items, self._items = self._items, []
        run(self._flush(items))


def run(coroutine: Awaitable[None]) -> None:
    """Start a coroutine. If it fails, the process ends."""
    Deferred.fromCoroutine(coroutine).addErrback(fail)  # type: ignore[arg-type]


def fail(failure: Any) -> None:
    """Print a failure and end the process with status 1."""
    print(failure.getTraceback(), flush=True)
    # Not sys.exit(): the Deferred would catch the SystemExit.
    os._exit(1)
