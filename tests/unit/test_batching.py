"""taskd.batching: which items form a batch, when it starts, and what each caller gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taskd.batching import Batcher, ItemBatcher
from taskd.model.errors import Unavailable


class Flushes:
    """Batches that end when the test ends them. Each returns its items doubled, or raises."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self._ends: list[Deferred[None]] = []
        self.at_once = False
        self.poison: dict[int, Exception] = {}

    async def __call__(self, batch: list[int]) -> Sequence[int]:
        self.batches.append(batch)
        if not self.at_once:
            end: Deferred[None] = Deferred()
            self._ends.append(end)
            await end
        for item in batch:
            if item in self.poison:
                raise self.poison[item]
        return [item * 2 for item in batch]

    @property
    def running(self) -> int:
        return len(self._ends)

    def end(self, error: Exception | None = None) -> None:
        """End the oldest running batch."""
        end = self._ends.pop(0)
        if error is None:
            end.callback(None)
        else:
            end.errback(error)


class BatcherTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.flushes = Flushes()
        self.results: dict[int, Any] = {}
        self.order: list[int] = []

    def batcher(self, **options: Any) -> Batcher[int, int]:
        return Batcher(self.clock, self.flushes, **options)

    def submit(self, batcher: Batcher[int, int], *items: int) -> None:
        def note(item: int) -> Callable[[Any], None]:
            def noted(result: Any) -> None:
                self.results[item] = getattr(result, "value", result)
                self.order.append(item)

            return noted

        for item in items:
            batcher.submit(item).addBoth(note(item))

    def test_an_item_may_go_at_once_and_others_gather_meanwhile(self) -> None:
        batcher = self.batcher(at_once=True, concurrency=1)
        self.submit(batcher, 1)
        self.assertEqual(self.flushes.batches, [[1]])
        self.submit(batcher, 2, 3)
        self.clock.advance(1)
        self.assertEqual(self.flushes.batches, [[1]])
        self.flushes.end()
        self.clock.advance(0)
        self.assertEqual(self.flushes.batches, [[1], [2, 3]])
        self.flushes.end()
        self.assertEqual(self.results, {1: 2, 2: 4, 3: 6})

    def test_items_of_one_reactor_turn_form_one_batch(self) -> None:
        batcher = self.batcher()
        self.submit(batcher, 1, 2, 3)
        self.assertEqual(self.flushes.batches, [])
        self.clock.advance(0)
        self.assertEqual(self.flushes.batches, [[1, 2, 3]])
        self.assertEqual(self.results, {})
        self.flushes.end()
        self.assertEqual(self.results, {1: 2, 2: 4, 3: 6})
        self.assertEqual(self.order, [1, 2, 3])

    def test_a_flush_waits_for_no_others_but_for_a_running_batch(self) -> None:
        batcher = self.batcher()
        batcher.flush()
        self.submit(batcher, 1, 2)
        batcher.flush()
        self.assertEqual(self.flushes.batches, [[1, 2]])
        self.submit(batcher, 3)
        batcher.flush()
        self.assertEqual(self.flushes.batches, [[1, 2]])
        self.flushes.end()
        self.clock.advance(0)
        self.assertEqual(self.flushes.batches, [[1, 2], [3]])

    def test_items_gather_while_a_batch_is_running(self) -> None:
        batcher = self.batcher()
        self.submit(batcher, 1)
        self.clock.advance(0)
        self.submit(batcher, 2)
        self.clock.advance(0.0005)
        self.submit(batcher, 3)
        self.flushes.end()
        self.clock.advance(0)
        self.assertEqual(self.flushes.batches, [[1], [2, 3]])

    def test_an_item_waits_two_milliseconds_at_most(self) -> None:
        batcher = self.batcher()
        self.submit(batcher, 1)
        self.clock.advance(0)
        self.submit(batcher, 2)
        self.clock.advance(0.0019)
        self.submit(batcher, 3)
        self.assertEqual(self.flushes.batches, [[1]])
        self.clock.advance(0.0001)
        self.assertEqual(self.flushes.batches, [[1], [2, 3]])

    def test_concurrency_limits_running_batches(self) -> None:
        batcher = self.batcher(concurrency=2)
        for item in (1, 2, 3, 4):
            self.submit(batcher, item)
            self.clock.advance(0.01)
        self.assertEqual(self.flushes.batches, [[1], [2]])
        self.flushes.end()
        self.clock.advance(0)
        self.assertEqual(self.flushes.batches, [[1], [2], [3, 4]])
        self.assertEqual(self.flushes.running, 2)

    def test_a_batch_has_a_maximum_weight(self) -> None:
        batcher = self.batcher(max_weight=10, weigh=lambda item: item, concurrency=1)
        self.submit(batcher, 4, 6, 1, 9, 50, 2, 2)
        self.flushes.at_once = True
        self.clock.advance(0.1)
        self.clock.advance(0.1)
        self.assertEqual(self.flushes.batches, [[4, 6], [1, 9], [50], [2, 2]])
        self.assertEqual(self.order, [4, 6, 1, 9, 50, 2, 2])

    def test_a_batch_has_a_maximum_number_of_items(self) -> None:
        batcher = self.batcher(max_weight=2)
        self.flushes.at_once = True
        self.submit(batcher, 1, 2, 3, 4, 5)
        for _ in range(5):
            self.assertLessEqual(len(self.clock.getDelayedCalls()), 1)
            self.clock.advance(0.002)
        self.assertEqual(self.flushes.batches, [[1, 2], [3, 4], [5]])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_bad_item_fails_alone(self) -> None:
        batcher = self.batcher()
        self.flushes.at_once = True
        self.flushes.poison[5] = error = ValueError("bad")
        self.submit(batcher, *range(9))
        self.clock.advance(0)
        self.assertEqual(self.results, {**{n: n * 2 for n in range(9)}, 5: error})

    def test_two_bad_items_fail_each_with_their_own_error(self) -> None:
        batcher = self.batcher()
        self.flushes.at_once = True
        self.flushes.poison.update({0: ValueError("first"), 7: KeyError("last")})
        self.submit(batcher, *range(8))
        self.clock.advance(0)
        self.assertEqual({n: type(e) for n, e in self.results.items() if n in (0, 7)}, {0: ValueError, 7: KeyError})
        self.assertEqual({n for n, e in self.results.items() if e == n * 2}, set(range(1, 7)))

    def test_an_item_that_the_flush_refuses_fails_without_another_try(self) -> None:
        error, batches = ValueError("bad"), []

        async def flush(batch: list[int]) -> Sequence[int | Exception]:
            batches.append(batch)
            return [error if item == 5 else item * 2 for item in batch]

        self.submit(Batcher(self.clock, flush), *range(9))
        self.clock.advance(0)
        self.assertEqual(batches, [list(range(9))])
        self.assertEqual(self.results, {**{n: n * 2 for n in range(9)}, 5: error})

    def test_each_item_that_fails_is_told_before_its_caller_hears_of_it(self) -> None:
        told: list[tuple[int, bool]] = []

        async def flush(batch: list[int]) -> Sequence[int | Exception]:
            if 7 in batch:
                raise ValueError("seven")
            return [ValueError("odd") if item % 2 else item for item in batch]

        batcher = Batcher(self.clock, flush, failed=lambda item: told.append((item, item in self.results)))
        self.submit(batcher, 2, 3, 7, 4)
        self.clock.advance(0)
        self.assertEqual(told, [(3, False), (7, False)])
        self.assertEqual((self.results[2], self.results[4]), (2, 4))

    def test_unavailable_fails_all_without_trying_them_one_by_one(self) -> None:
        batcher = self.batcher()
        self.flushes.at_once = True
        self.flushes.poison[5] = error = Unavailable("the store is down")
        self.submit(batcher, *range(9))
        self.clock.advance(0)
        self.assertEqual(self.flushes.batches, [list(range(9))])
        self.assertEqual(self.results, dict.fromkeys(range(9), error))

    def test_a_failure_does_not_stop_the_next_batch(self) -> None:
        batcher = self.batcher(concurrency=1)
        self.submit(batcher, 1)
        self.clock.advance(0)
        self.submit(batcher, 2)
        self.flushes.end(ValueError("bad"))
        self.clock.advance(0)
        self.flushes.end()
        self.assertEqual(self.results[2], 4)

    def test_too_few_results_confirm_nothing(self) -> None:
        async def short(batch: list[int]) -> Sequence[int]:
            return batch[1:]

        batcher: Batcher[int, int] = Batcher(self.clock, short)
        self.submit(batcher, 1)
        self.clock.advance(0)
        self.assertIsInstance(self.results[1], RuntimeError)

    def test_a_callback_may_submit_again(self) -> None:
        batcher = self.batcher()
        self.flushes.at_once = True
        batcher.submit(1).addCallback(lambda result: self.submit(batcher, result + 1))
        self.clock.advance(0)
        self.clock.advance(0.002)
        self.assertEqual(self.results, {3: 6})

    def test_a_callback_that_raises_or_cancels_harms_no_other(self) -> None:
        batcher = self.batcher()
        failing = batcher.submit(1).addCallback(lambda _: 1 / 0)
        given_up = batcher.submit(2)
        self.submit(batcher, 3)
        self.clock.advance(0)
        given_up.cancel()
        self.failureResultOf(given_up, CancelledError)
        self.flushes.end()
        self.failureResultOf(failing, ZeroDivisionError)
        self.assertEqual(self.results, {3: 6})

    def test_items_without_deferreds(self) -> None:
        """What follows the failure of one item harms no other."""
        stored: list[int] = []
        failed: list[tuple[int, type[Exception]]] = []

        async def flush(batch: list[int]) -> None:
            if 2 in batch:
                raise ValueError(batch)
            stored.extend(batch)

        def note(failure: Any, item: int) -> None:
            failed.append((item, failure.type))
            raise ZeroDivisionError

        batcher = ItemBatcher(self.clock, flush, note)
        for item in range(4):
            batcher.add(item)
        self.clock.advance(0)
        self.assertEqual((stored, failed), ([0, 1, 3], [(2, ValueError)]))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_drained(self) -> None:
        batcher = self.batcher()
        self.successResultOf(batcher.drained())
        self.submit(batcher, 1)
        self.clock.advance(0)
        self.submit(batcher, 2)
        drained = batcher.drained()
        self.flushes.end()
        self.assertNoResult(drained)
        self.clock.advance(0)
        self.flushes.end()
        self.successResultOf(drained)

    def test_drained_also_after_a_failure(self) -> None:
        batcher = self.batcher()
        self.submit(batcher, 1)
        drained = batcher.drained()
        self.clock.advance(0)
        self.assertNoResult(drained)
        self.flushes.end(Unavailable("the store is down"))
        self.successResultOf(drained)
