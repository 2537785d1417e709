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
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.model.errors import Unavailable

T = TypeVar("T")
R = TypeVar("R")

MAX_WEIGHT = 500
DELAY = 0.002
CONCURRENCY = 2


class ItemBatcher(Generic[T]):
    """Gathers items and flushes them in batches, without a Deferred for each item: for the path of each task.

    ``flush`` gets a list of items. It commits all items, or raises and commits none; what it does after the commit must
    not raise. If it raises anything but Unavailable, the batch is split in half, again and again, until the faulty item
    fails alone. ``failed`` is called with the failure and each item that failed; what it raises is logged. ``weigh``
    gives the weight of an item; a batch weighs at most ``max_weight``, or has one item. ``delay`` is in seconds. With
    ``at_once``, an item that finds no batch running does not wait for others of the same turn of the reactor.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        flush: Callable[[list[T]], Awaitable[None]],
        failed: Callable[[Failure, T], None],
        *,
        max_weight: int = MAX_WEIGHT,
        delay: float = DELAY,
        concurrency: int = CONCURRENCY,
        weigh: Callable[[T], int] | None = None,
        at_once: bool = False,
    ) -> None:
        self._at_once = at_once
        self._clock = clock
        self._flush = flush
        self._failed = failed
        self._max_weight = max_weight
        self._delay = delay
        self._concurrency = concurrency
        self._weigh = weigh
        self._pending: deque[T] = deque()
        self._running = 0
        self._timer: IDelayedCall | None = None
        self._timer_is_short = False
        self._drained: list[Deferred[None]] = []

    def add(self, item: T) -> None:
        """Add an item to the next batch."""
        self._pending.append(item)
        if self._timer is not None:
            return
        if self._at_once and not self._running:
            self._start_batch()
        else:
            # wait one turn even when idle, so that all requests of one socket read go into the same batch
            self._start_timer(short=not self._running)

    def flush(self) -> None:
        """Let no item wait for others, if no batch is running: what belongs together has been added."""
        if self._pending and not self._running:
            if self._timer is not None:
                self._timer.cancel()
            self._start_batch()

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

    def _take(self) -> list[T]:
        pending = self._pending
        if self._weigh is None:
            return [pending.popleft() for _ in range(min(len(pending), self._max_weight))]
        batch: list[T] = []
        weight = 0
        while pending:
            weight += self._weigh(pending[0])
            if batch and weight > self._max_weight:
                break
            batch.append(pending.popleft())
        return batch

    async def _run(self, batch: list[T]) -> None:
        try:
            await self._flush(batch)
        except Exception as e:
            if len(batch) == 1 or isinstance(e, Unavailable):
                for item in batch:
                    failure = Failure()
                    with self._log.failuresHandled("what follows a failed batch has failed too"):
                        self._failed(failure, item)
            else:
                middle = len(batch) // 2
                await self._run(batch[:middle])
                await self._run(batch[middle:])


class Batcher(ItemBatcher[tuple[T, Deferred[R]]]):
    """An :class:`ItemBatcher` whose callers wait. ``flush`` returns as many results as it gets items, in the same
    order. If it knows faulty items, it commits the others and returns an exception as the result of each faulty one.
    ``failed`` is called with each item that fails, before its caller gets the failure; it must not raise."""

    def __init__(
        self,
        clock: IReactorTime,
        flush: Callable[[list[T]], Awaitable[Sequence[R | Exception]]],
        *,
        max_weight: int = MAX_WEIGHT,
        delay: float = DELAY,
        concurrency: int = CONCURRENCY,
        weigh: Callable[[T], int] | None = None,
        failed: Callable[[T], object] | None = None,
        at_once: bool = False,
    ) -> None:
        super().__init__(
            clock,
            self._flush_items,
            lambda failure, pair: self._fail(failure, *pair),
            max_weight=max_weight,
            delay=delay,
            concurrency=concurrency,
            weigh=None if weigh is None else lambda pair: weigh(pair[0]),
            at_once=at_once,
        )
        self._flush_results = flush
        self._item_failed = failed

    def submit(self, item: T) -> Deferred[R]:
        """Add an item to the next batch. Fires with its result when that batch is committed; fails as ``flush`` did."""
        done: Deferred[R] = Deferred()
        self.add((item, done))
        return done

    async def _flush_items(self, pairs: list[tuple[T, Deferred[R]]]) -> None:
        results = await self._flush_results([item for item, _ in pairs])
        if len(results) != len(pairs):
            raise RuntimeError(f"a batch of {len(pairs)} items got {len(results)} results")
        for (item, done), result in zip(pairs, results, strict=True):
            if isinstance(result, Exception):
                self._fail(result, item, done)
            else:
                done.callback(result)

    def _fail(self, why: Failure | Exception, item: T, done: Deferred[R]) -> None:
        if self._item_failed is not None:
            self._item_failed(item)
        done.errback(why)
