"""Group commit: many callers, one transaction.

If no batch is running, the next one starts at once. While one is running, items gather. The next batch starts when it
has ended, or when its own first item has waited ``delay`` seconds and fewer than ``concurrency`` batches are running:
a slow batch does not hold up later callers. Source: the group commit of DeWitt et al., "Implementation techniques for
main memory database systems", 1984, section 5.2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from taskd.model.errors import Unavailable

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Gathers items and flushes them in batches.

    ``flush`` gets a list of items and returns as many results in the same order. It commits all items, or raises and
    commits none. If it raises anything but Unavailable, the batch is split in half, again and again, until the faulty
    item fails alone. ``weigh`` gives the weight of an item; a batch weighs at most ``max_weight``, or has one item.
    ``delay`` is in seconds.
    """

    def __init__(
        self,
        clock: IReactorTime,
        flush: Callable[[list[T]], Awaitable[Sequence[R]]],
        *,
        max_weight: int = 500,
        delay: float = 0.002,
        concurrency: int = 2,
        weigh: Callable[[T], int] | None = None,
    ) -> None:
        self._clock = clock
        self._flush = flush
        self._max_weight = max_weight
        self._delay = delay
        self._concurrency = concurrency
        self._weigh = weigh
        self._pending: deque[tuple[T, Deferred[R]]] = deque()
        self._running = 0
        self._timer: IDelayedCall | None = None
        self._timer_is_short = False
        self._drained: list[Deferred[None]] = []

    def submit(self, item: T) -> Deferred[R]:
        """Add an item to the next batch. Fires with its result when that batch is committed; fails as ``flush`` did."""
        done: Deferred[R] = Deferred()
        self._pending.append((item, done))
        if self._timer is None:
            # wait one turn even when idle, so that all requests of one socket read go into the same batch
            self._start_timer(short=not self._running)
        return done

    def drained(self) -> Deferred[None]:
        """Fires when no item is pending and no batch is running."""
        done: Deferred[None] = Deferred()
        if self._pending or self._running:
            self._drained.append(done)
        else:
            done.callback(None)
        return done

    def _start_timer(self, short: bool) -> None:
        if self._timer is not None:
            if self._timer_is_short or not short:
                return
            self._timer.cancel()
        self._timer_is_short = short
        self._timer = self._clock.callLater(0 if short else self._delay, self._start_batch)

    def _start_batch(self) -> None:
        self._timer = None
        if not self._pending or self._running >= self._concurrency:
            return
        batch = self._take()
        self._running += 1
        Deferred.fromCoroutine(self._run(batch)).addBoth(self._ended)
        if self._pending:
            self._start_timer(short=not self._running)

    def _ended(self, _: object) -> None:
        self._running -= 1
        if self._pending:
            self._start_timer(short=True)
        elif not self._running:
            waiting, self._drained = self._drained, []
            for done in waiting:
                done.callback(None)

    def _take(self) -> list[tuple[T, Deferred[R]]]:
        batch: list[tuple[T, Deferred[R]]] = []
        weight = 0
        while self._pending:
            weight += self._weigh(self._pending[0][0]) if self._weigh else 1
            if batch and weight > self._max_weight:
                break
            batch.append(self._pending.popleft())
        return batch

    async def _run(self, batch: list[tuple[T, Deferred[R]]]) -> None:
        try:
            results = await self._flush([item for item, _ in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"a batch of {len(batch)} items got {len(results)} results")
        except Exception as e:
            if len(batch) == 1 or isinstance(e, Unavailable):
                for _, done in batch:
                    done.errback(Failure())
            else:
                middle = len(batch) // 2
                await self._run(batch[:middle])
                await self._run(batch[middle:])
            return
        for (_, done), result in zip(batch, results, strict=True):
            done.callback(result)
