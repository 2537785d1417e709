"""The settings of the bare processes, their batches, and how they run and fail."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred

reactor: Any = installed_reactor
T = TypeVar("T")


class Job:
    """What the two processes are told; see :mod:`bench.floor`."""

    def __init__(self, path: str) -> None:
        told = json.loads(Path(path).read_text())
        self.dsn: dict[str, Any] = told["dsn"]
        self.amqp: dict[str, Any] = told["amqp"]
        self.queue: str = told["queue"]
        self.tasks: int = told["tasks"]
        self.users: int = told["users"]
        self.sequential: bool = told["sequential"]
        self.create = max(1, round(told["create"]))
        self.dispatch = max(1, round(told["dispatch"]))
        self.claim = max(1, round(told["claim"]))
        self.finish = max(1, round(told["finish"]))
        self.backlog: float = told["backlog"]


class Gather(Generic[T]):
    """Batches of one size; a smaller one when no more come for a moment."""

    def __init__(self, size: int, seconds: float, flush: Callable[[list[T]], Awaitable[None]]) -> None:
        self._size = size
        self._seconds = seconds
        self._flush = flush
        self._items: list[T] = []
        self._timer: Any = None

    def add(self, item: T) -> None:
        """One more."""
        self._items.append(item)
        if len(self._items) >= self._size:
            self._go()
        elif self._timer is None:
            self._timer = reactor.callLater(self._seconds, self._late)

    def _late(self) -> None:
        self._timer = None
        if self._items:
            self._go()

    def _go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        items, self._items = self._items, []
        run(self._flush(items))


def run(coroutine: Awaitable[None]) -> None:
    """Start it; its failure ends the process."""
    Deferred.fromCoroutine(coroutine).addErrback(fail)  # type: ignore[arg-type]


def fail(failure: Any) -> None:
    """End the process with status 1."""
    print(failure.getTraceback(), flush=True)
    # Not sys.exit: a Deferred would keep the SystemExit to itself.
    os._exit(1)
