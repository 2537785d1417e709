"""Running an attempt, in memory: what a handler does, and the outcome that comes of it."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from taskd.model.backoff import Backoff
from taskd.model.errors import BadRequest
from taskd.model.limits import (
    MAX_DELAY_SECONDS,
    MAX_ERROR_CHARS,
    MAX_LINE_CHARS,
    MAX_NOTE_CHARS,
    MAX_RESULT_BYTES,
    MAX_TRACE_CHARS,
)
from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.ports.attempts import Outcome
from taskd.ports.handler import ITaskContext, ITaskHandler
from taskd.ports.workers import KindInfo
from taskd.worker import Reject, Retry, handler
from taskd.worker.attempt import Attempt, AttemptStopped
from taskd.worker.context import MAX_LOG_CHARS, TaskContext
from taskd.worker.executors.thread import OutputRelay
from taskd.worker.executors.thread_pool import IThreads
from taskd.worker.forkserver.messages import Died, Exited
from taskd.worker.forkserver.output_buffer import QUEUE_BYTES
from taskd.worker.handler_results import Fault, Success
from taskd.worker.programs import TEMPORARY, Command, Section
from taskd.worker.runner import Runner
from taskd.worker.simulate import Simulate
from tests.unit.running import FakeForkServer, FakeJob, FakeThreads, RecordingListener, make_task


class Stage(SynchronousTestCase):
    """A runner with fakes around it. Every handler serves the kind ``k``."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.threads = FakeThreads()
        self.forkserver = FakeForkServer()
        self.listener = RecordingListener()

    def runner(self, *handlers: ITaskHandler, programs: Sequence[Command] = (), chance: float = 0.0) -> Runner:
        forkserver: Any = self.forkserver
        self.entries = RecordingEntries()
        return Runner(
            self.clock,
            handlers,
            threads=self.threads,
            forkserver=forkserver,
            programs=programs,
            entries=self.entries,
            chance=lambda: chance,
        )

    def begin(self, function: Callable[[Any], Any], task: Task | None = None, **options: Any) -> Attempt:
        """Run a function as an attempt."""
        runner = self.runner(handler("k", **options)(function))
        return runner.run(task or make_task(), "ana", self.listener)

    def outcome(self, attempt: Attempt) -> Outcome:
        """How it ended. Its slot must be free."""
        self.successResultOf(attempt.freed)
        return self.successResultOf(attempt.done)

    def result(self, function: Callable[[Any], Any], task: Task | None = None, **options: Any) -> Outcome:
        """How an attempt that ends at once has ended."""
        outcome = self.outcome(self.begin(function, task, **options))
        self.flushLoggedErrors()
        return outcome

    def assert_stopped(self, attempt: Attempt) -> None:
        self.failureResultOf(attempt.done, AttemptStopped)


class AsyncTests(Stage):
    """Handlers on the reactor."""

    def test_what_it_returns_is_the_result(self) -> None:
        async def work(task: ITaskContext) -> Any:
            await wait
            return {"user": task.user, "n": task.payload["n"], "left": task.max_attempts - task.attempt}

        wait: Deferred[None] = Deferred()
        attempt = self.begin(work, make_task(payload='{"n":[1]}'))
        self.assertNoResult(attempt.done)
        wait.callback(None)
        expected = Outcome(7, 2, 1, State.COMPLETED, '{"user":"ana","n":[1],"left":2}')
        self.assertEqual(self.outcome(attempt), expected)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_context_has_all_attributes(self) -> None:
        async def work(task: ITaskContext) -> Any:
            assert verifyObject(ITaskContext, task)
            return [task.id, task.attempt, task.max_attempts, task.user, task.task, task.kind, task.queue]

        outcome = self.result(work, make_task(attempt=2, max_attempts=9))
        self.assertEqual(outcome.result, '[7,2,9,"ana","work","k","q"]')

    def test_a_deferred_that_it_returns_is_waited_for(self) -> None:
        async def work(task: ITaskContext) -> Any:
            return succeed(3)

        self.assertEqual(self.result(work).result, "3")

    def test_whatever_it_raises_ends_the_attempt_alone(self) -> None:
        for kind in (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, RecursionError, CancelledError):

            async def work(task: ITaskContext, kind: type[BaseException] = kind) -> None:
                raise kind("no")

            outcome = self.result(work)
            self.assertEqual((outcome.state, outcome.error), (State.WAITING, f"{kind.__name__}: no"))

    def test_stop_iteration(self) -> None:
        async def work(task: ITaskContext) -> None:
            raise StopIteration

        self.assertIn("RuntimeError: coroutine raised StopIteration", self.result(work).error or "")

    def test_a_returned_coroutine(self) -> None:
        async def inner() -> None: ...

        async def work(task: ITaskContext) -> Any:
            return inner()

        self.assertIn("returned a coroutine that was not awaited", self.result(work).error or "")

    def test_a_handler_of_another_class(self) -> None:
        self.assertEqual(
            self.outcome(self.runner(Plain(succeed(1))).run(make_task(), "ana", self.listener)).result, "1"
        )
        wrong = self.outcome(self.runner(Plain(1)).run(make_task(), "ana", self.listener))
        self.assertEqual(wrong.error, "Plain() is served as async and returned nothing that can be awaited")

    def test_stop_raises_at_its_await(self) -> None:
        seen: list[object] = []

        async def work(task: ITaskContext) -> None:
            try:
                await Deferred()
            except CancelledError:
                seen.append(task.cancelled)
                raise

        attempt = self.begin(work, make_task(timeout=60.0))
        attempt.stop()
        self.assertEqual((seen, attempt.stopped), ([True], True))
        self.assert_stopped(attempt)
        self.successResultOf(attempt.freed)
        attempt.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_result_of_a_stopped_handler_is_dropped(self) -> None:
        async def work(task: ITaskContext) -> Any:
            try:
                await Deferred()
            except CancelledError:
                return "done all the same"

        attempt = self.begin(work)
        attempt.stop()
        self.assert_stopped(attempt)

    def test_it_may_cause_its_own_stop(self) -> None:
        attempts: list[Attempt] = []
        go: Deferred[None] = Deferred()

        async def work(task: ITaskContext) -> None:
            await go
            attempts[0].stop()
            await Deferred()

        attempts.append(self.begin(work))
        go.callback(None)
        self.assertNoResult(attempts[0].done)
        self.clock.advance(0)
        self.assert_stopped(attempts[0])

    def test_one_that_ignores_its_cancellation_keeps_its_slot(self) -> None:
        last: Deferred[None] = Deferred()

        async def work(task: ITaskContext) -> Any:
            try:
                await Deferred()
            except CancelledError:
                await last

        attempt = self.begin(work, timeout=60)
        self.clock.advance(60)
        self.assertNoResult(attempt.done)
        self.clock.advance(4.9)
        self.assertNoResult(attempt.done)
        self.clock.advance(0.1)
        outcome = self.successResultOf(attempt.done)
        self.assertEqual((outcome.state, outcome.error), (State.WAITING, "took longer than 60 s"))
        self.assertIn("await last", outcome.trace or "")
        [line] = self.listener.received
        self.assertIn("work() at", line)
        self.assertIn("test_runner.py", line)
        self.assertIn("ignores its cancellation", line)
        self.assertNoResult(attempt.freed)
        last.callback(None)
        self.successResultOf(attempt.freed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopping_does_not_wait_forever(self) -> None:
        last: Deferred[None] = Deferred()

        async def work(task: ITaskContext) -> Any:
            try:
                await Deferred()
            except CancelledError:
                await last

        attempt = self.begin(work)
        attempt.stop()
        self.assertNoResult(attempt.done)
        self.clock.advance(5)
        self.assert_stopped(attempt)
        self.assertNoResult(attempt.freed)
        last.callback(None)
        self.successResultOf(attempt.freed)

    def test_a_canceller_that_fails(self) -> None:
        def canceller(_: object) -> None:
            raise RuntimeError("no")

        wait: Deferred[None] = Deferred(canceller)

        async def work(task: ITaskContext) -> None:
            await wait

        attempt = self.begin(work)
        attempt.stop()
        self.clock.advance(5)
        self.assert_stopped(attempt)
        wait.callback(None)
        self.flushLoggedErrors()


class TimeLimitTests(Stage):
    """The smaller of the handler's limit and the task's."""

    def limit(self, mine: float | None, the_tasks: float | None) -> str | None:
        async def work(task: ITaskContext) -> None:
            await Deferred()

        attempt = self.begin(work, make_task(timeout=the_tasks), timeout=mine)
        self.clock.advance(1000)
        if attempt.done.called:
            return self.outcome(attempt).error
        attempt.stop()
        self.assert_stopped(attempt)
        return None

    def test_the_smaller_one_counts(self) -> None:
        self.assertEqual(self.limit(60, None), "took longer than 60 s")
        self.assertEqual(self.limit(None, 2.5), "took longer than 2.5 s")
        self.assertEqual(self.limit(60, 300.0), "took longer than 60 s")
        self.assertEqual(self.limit(300, 60.0), "took longer than 60 s")
        self.assertEqual(self.limit(None, None), None)

    def test_a_stop_counts_more_than_a_limit(self) -> None:
        last: Deferred[None] = Deferred()

        async def work(task: ITaskContext) -> None:
            try:
                await Deferred()
            except CancelledError:
                await last

        attempt = self.begin(work, timeout=1)
        self.clock.advance(1)
        attempt.stop()
        last.callback(None)
        self.assert_stopped(attempt)

    def test_a_late_result_does_not_count(self) -> None:
        async def work(task: ITaskContext) -> Any:
            try:
                await Deferred()
            except CancelledError:
                return "late"

        attempt = self.begin(work, timeout=1)
        self.clock.advance(1)
        self.assertEqual(self.outcome(attempt).error, "took longer than 1 s")

    def test_in_time(self) -> None:
        attempt = self.runner(Simulate(self.clock)).run(
            make_task("simulate", '{"seconds":1}', timeout=2.0), "ana", self.listener
        )
        self.clock.advance(1)
        self.assertEqual(self.outcome(attempt).result, '{"seconds":1}')
        self.assertEqual(self.clock.getDelayedCalls(), [])


class FailureTests(Stage):
    """What is stored about a failed attempt, and whether the task is tried again."""

    def test_an_exception_is_tried_again_until_attempts_are_spent(self) -> None:
        async def work(task: ITaskContext) -> None:
            raise ValueError("bad\n  luck")

        backoff = Backoff(first=10, factor=3, longest=50, jitter=0.5)
        seen = []
        for attempt in (1, 2, 3, 4):
            outcome = self.result(work, make_task(attempt=attempt, max_attempts=4), backoff=backoff)
            self.assertEqual(outcome.error, "ValueError: bad luck")
            seen.append((outcome.state, outcome.delay))
        self.assertEqual(seen, [(State.WAITING, 10), (State.WAITING, 30), (State.WAITING, 50), (State.FAILED, 0)])

    def test_jitter(self) -> None:
        @handler("k", backoff=Backoff(first=10, jitter=0.5))
        async def work(task: ITaskContext) -> None:
            raise Retry

        attempt = self.runner(work, chance=0.5).run(make_task(), "ana", self.listener)
        self.assertEqual(self.outcome(attempt).delay, 7.5)

    def test_max_attempts_of_the_kind_is_the_default(self) -> None:
        async def work(task: ITaskContext) -> None:
            raise ValueError(task.max_attempts)

        self.assertIs(self.result(work, make_task(max_attempts=0), max_attempts=1).state, State.FAILED)
        outcome = self.result(work, make_task(max_attempts=0), max_attempts=2)
        self.assertEqual((outcome.state, outcome.error), (State.WAITING, "ValueError: 2"))
        self.assertIs(self.result(work, make_task(max_attempts=1), max_attempts=2).state, State.FAILED)

    def test_the_trace_begins_with_the_handlers_code_and_has_its_causes(self) -> None:
        def deeper() -> None:
            raise KeyError("x")

        def work(task: ITaskContext) -> None:
            try:
                deeper()
            except KeyError as e:
                raise ValueError("y") from e

        async def later(task: ITaskContext) -> None:
            work(task)

        for function in (work, later):
            trace = self.result(function).trace or ""
            self.assertIn("in deeper", trace)
            self.assertIn("The above exception was the direct cause", trace)
            self.assertTrue(trace.endswith("ValueError: y"))
            self.assertNotIn(os.path.join("taskd", "worker"), trace)
            self.assertNotIn("twisted", trace)

    def test_a_long_trace_loses_its_middle(self) -> None:
        async def work(task: ITaskContext) -> None:
            raise ValueError("x" * 1_000_000 + "end")

        outcome = self.result(work)
        assert outcome.trace is not None and outcome.error is not None
        self.assertLessEqual(len(outcome.trace), MAX_TRACE_CHARS)
        self.assertTrue(outcome.trace.startswith("Traceback"))
        self.assertTrue(outcome.trace.endswith("end"))
        self.assertIn("\n  ...\n", outcome.trace)
        self.assertEqual(len(outcome.error), MAX_ERROR_CHARS)

    def test_what_cannot_be_stored_or_shown_is_replaced(self) -> None:
        class Broken(Exception):
            def __str__(self) -> str:
                raise RuntimeError

        async def odd(task: ITaskContext) -> None:
            raise ValueError("a\0b\ud800c\x1b[1m")

        async def broken(task: ITaskContext) -> None:
            raise Broken

        outcome = self.result(odd)
        self.assertEqual(outcome.error, "ValueError: a\ufffdb\ufffdc\ufffd[1m")
        self.assertTrue((outcome.trace or "").endswith("ValueError: a\ufffdb\ufffdc\ufffd[1m"))
        self.assertEqual(self.result(broken).error, "Broken: (its message cannot be shown)")

    def test_the_delay_of_retry(self) -> None:
        cases: list[tuple[Any, float]] = [
            (30, 30.0),
            (0, 0.0),
            (-5, 0.0),
            (math.nan, 0.0),
            ("soon", 0.0),
            (True, 0.0),
            (math.inf, MAX_DELAY_SECONDS),
            (1e300, MAX_DELAY_SECONDS),
            (None, 2.0),
        ]
        for after, delay in cases:

            async def work(task: ITaskContext, after: Any = after) -> None:
                raise Retry("not yet", after=after)

            outcome = self.result(work)
            expected = Outcome(7, 2, 1, State.WAITING, error="not yet", delay=delay)
            self.assertEqual(outcome, expected)
            self.assertIs(self.result(work, make_task(attempt=3)).state, State.FAILED)

    def test_reject_and_wrong_payloads_fail_for_good(self) -> None:
        for error in (Reject("no such\npicture"), BadRequest("no such picture", field="picture")):

            async def work(task: ITaskContext, error: Exception = error) -> None:
                raise error

            self.assertEqual(self.result(work), Outcome(7, 2, 1, State.FAILED, error="no such picture"))

    def test_results_that_cannot_be_stored(self) -> None:
        class Odd:
            pass

        deep: list[Any] = []
        for _ in range(200):
            deep = [deep]
        cases = [
            (object(), "cannot be written as JSON"),
            (Odd(), "cannot be written as JSON"),
            ("x" * MAX_RESULT_BYTES, f"at most {MAX_RESULT_BYTES} bytes"),
            ({"a": [math.nan]}, "NaN or Infinity"),
            (-math.inf, "NaN or Infinity"),
            (["a\0b"], "NUL"),
            ({"a\0b": 1}, "NUL"),
            ("\ud800", "surrogates"),
            (deep, "nested"),
            ({"a": [{1}]}, "type set"),
            ([b"a"], "type bytes"),
            ({"at": datetime.now(timezone.utc)}, "type datetime"),
        ]
        for value, why in cases:
            outcome = self.result(returns(value))
            self.assertIs(outcome.state, State.WAITING)
            self.assertTrue((outcome.error or "").startswith("the result cannot be stored: "), outcome.error)
            self.assertIn(why, outcome.error or "")
        for good in ([None, 1.5], "null", "\\u0000", {"1": None}, 2**70, {"a": (1, (None,))}, {1: True, 2.5: -0.0}):
            self.assertIs(self.result(returns(good)).state, State.COMPLETED)

    def test_whatever_an_exception_says_can_be_stored(self) -> None:
        class Odd(Exception):
            def __str__(self) -> str:
                raise SystemExit("\0")

        odd = "\0 \ud800 \x1b"
        noted = ValueError("x")
        noted.__notes__ = [odd]  # type: ignore[attr-defined]
        errors = [ValueError(odd), KeyError(odd), Reject(odd), Reject("\0"), Retry(odd), BadRequest(odd), Odd(), noted]
        for error in [*errors, OSError(1, odd, odd), SystemExit(odd)]:

            def work(task: ITaskContext, error: BaseException = error) -> None:
                raise error from ValueError(odd)

            async def later(task: ITaskContext, error: BaseException = error) -> None:
                raise error from ValueError(odd)

            for function in (work, later):
                outcome = self.result(function)
                self.assertIsNone(outcome.result)
                self.assertTrue(outcome.error)
                for text in (outcome.error or "", outcome.trace or ""):
                    self.assertNotIn("\0", text)
                    self.assertEqual(text.encode().decode(), text)

    def test_a_handler_hides_nul_in_no_result(self) -> None:
        for value in ("\0", ["a\0"], {"\0": 1}, {1: {"a": ("\0",)}}, {"a": {"b\0c": [None]}}):

            async def later(task: ITaskContext, value: Any = value) -> Any:
                return value

            for function in (returns(value), later):
                outcome = self.result(function, make_task(max_attempts=1))
                self.assertIs(outcome.state, State.FAILED)
                self.assertEqual(
                    outcome.error, "the result cannot be stored: result must not contain the NUL character"
                )

    def test_every_failure_is_a_line_in_the_log(self) -> None:
        events: list[LogEvent] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            events.append(event)

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

        def fails(task: ITaskContext) -> None:
            raise ValueError

        def rejects(task: ITaskContext) -> None:
            raise Reject("no")

        self.result(fails)
        self.result(rejects)
        seen = [(e["log_level"], e["id"], e["kind"], e["attempt"]) for e in events if "attempt" in e]
        self.assertEqual(seen, [(LogLevel.critical, 7, "k", 1), (LogLevel.warn, 7, "k", 1)])

    def test_an_unknown_kind_and_an_unreadable_payload(self) -> None:
        runner = self.runner()
        outcome = self.outcome(runner.run(make_task("strange"), "ana", self.listener))
        self.assertEqual(
            (outcome.state, outcome.error), (State.WAITING, "this worker does not serve the kind 'strange'")
        )
        outcome = self.outcome(runner.run(make_task(payload="[1]"), "ana", self.listener))
        self.assertIs(outcome.state, State.FAILED)
        self.assertIn("the payload cannot be read", outcome.error or "")


class OutputTests(Stage):
    """Progress and log lines."""

    def test_on_the_reactor_it_is_passed_on_at_once(self) -> None:
        async def work(task: ITaskContext) -> None:
            await task.progress(0.5, "half\n\x1bway\t" + "x" * 1000)
            self.assertEqual(self.listener.progresses, [(0.5, ("half  way " + "x" * 1000)[:MAX_NOTE_CHARS])])
            task.progress(-1)
            task.progress(math.inf, "")
            task.progress(1)
            task.log("a\tb\x00\x1b[1mc\r\nd\n\ud800" + "y" * 10_000)
            task.log("")

        self.assertIs(self.result(work).state, State.COMPLETED)
        self.assertEqual(self.listener.progresses[1:], [(0, ""), (1, ""), (1, "")])
        self.assertEqual(self.listener.received, ["a\tb[1mc", "d", ("\ufffd" + "y" * 10_000)[:MAX_LINE_CHARS], ""])

    def test_progress_must_be_a_number(self) -> None:
        for value in ("0.5", None, True, math.nan, 1j):

            async def work(task: ITaskContext, value: Any = value) -> None:
                task.progress(value)

            self.assertIn("progress takes a number from 0 to 1, not", self.result(work).error or "")
        self.assertEqual(self.listener.progresses, [])

    def test_output_after_the_end_is_ignored(self) -> None:
        kept: list[ITaskContext] = []

        async def work(task: ITaskContext) -> None:
            kept.append(task)

        self.result(work)
        kept[0].log("still here")
        kept[0].progress(0.1)
        self.assertTrue(kept[0].cancelled)
        self.assertEqual((self.listener.received, self.listener.progresses), ([], []))

    def test_a_very_long_text_is_cut(self) -> None:
        context = TaskContext({}, self.listener)
        context.log("line\n" * 1_000_000)
        self.assertLessEqual(len("\n".join(self.listener.received)), MAX_LOG_CHARS)
        self.assertAlmostEqual(len(self.listener.received) + self.listener.dropped, 1_000_000, delta=1)

    def test_what_a_long_text_drops_is_counted_before_all_lines_that_stay(self) -> None:
        threads = FakeThreads(held=True)
        relay = OutputRelay(self.listener, threads.wake)
        relay.lines(["old"], 0)
        relay.lines(["new"], 5)
        threads.run_in_reactor()
        self.assertEqual((self.listener.received, self.listener.dropped), (["new"], 6))

    def test_a_flood_from_a_thread_is_bounded_and_wakes_once(self) -> None:
        threads = FakeThreads(held=True)
        relay = OutputRelay(self.listener, threads.wake)
        context = TaskContext({}, relay)
        for n in range(20_000):
            context.log(f"line {n}")
            context.progress(n / 20_000, str(n))
        self.assertEqual(threads.wakeups, 1)
        threads.run_in_reactor()
        self.assertEqual(self.listener.times, 1)
        self.assertEqual(self.listener.progresses, [(19_999 / 20_000, "19999")])
        self.assertLessEqual(sum(len(line) + 1 for line in self.listener.received), QUEUE_BYTES)
        self.assertEqual(self.listener.received[-1], "line 19999")
        self.assertEqual(len(self.listener.received) + self.listener.dropped, 20_000)
        context.log("more")
        self.assertEqual(threads.wakeups, 1)


class ThreadTests(Stage):
    """Handlers that block."""

    def test_the_output_of_a_thread_arrives_before_its_end(self) -> None:
        self.threads.held = True

        def work(task: ITaskContext) -> int:
            task.log("one")
            task.progress(0.5, "half")
            return 1

        attempt = self.begin(work)
        self.threads.run()
        self.assertNoResult(attempt.done)
        self.threads.run_in_reactor()
        self.assertEqual(self.outcome(attempt).result, "1")
        self.assertEqual((self.listener.received, self.listener.progresses), (["one"], [(0.5, "half")]))

    def test_whatever_it_raises_ends_the_attempt_alone(self) -> None:
        for kind in (KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration, CancelledError):

            def work(task: ITaskContext, kind: type[BaseException] = kind) -> None:
                raise kind

            self.assertEqual(self.result(work).error, kind.__name__)

    def test_a_returned_coroutine_and_a_returned_deferred(self) -> None:
        async def inner() -> None: ...

        coroutine = self.result(lambda task: inner())
        self.assertIn("returned a coroutine", coroutine.error or "")
        failed: Deferred[None] = Deferred()
        deferred = self.result(lambda task: failed)
        self.assertIn("returned a Deferred", deferred.error or "")
        failed.errback(ValueError("nobody looks"))

    def test_out_of_time_the_outcome_comes_at_once_and_the_slot_stays_taken(self) -> None:
        self.threads.held = True
        attempt = self.begin(lambda task: "late", timeout=60)
        self.clock.advance(60)
        self.assertEqual(self.successResultOf(attempt.done).error, "took longer than 60 s")
        self.assertNoResult(attempt.freed)
        self.assertIn("does not return, and its thread cannot be ended", self.listener.received[0])
        self.threads.run()
        self.threads.run_in_reactor()
        self.successResultOf(attempt.freed)
        self.assertEqual(len(self.listener.received), 1)

    def test_a_handler_stopped_before_it_has_a_thread_never_runs(self) -> None:
        self.threads.held = True
        ran: list[object] = []
        attempt = self.begin(ran.append)
        attempt.stop()
        self.assert_stopped(attempt)
        self.assertNoResult(attempt.freed)
        self.clock.advance(5)
        self.threads.run()
        self.threads.run_in_reactor()
        self.successResultOf(attempt.freed)
        self.assertEqual(ran, [])


class ProcessTests(Stage):
    """Handlers in child processes."""

    def start(self, task: Task | None = None, **options: Any) -> tuple[Attempt, FakeJob]:
        def work(task: ITaskContext) -> None:
            raise AssertionError("not here")

        attempt = self.begin(work, task, isolation="process", **options)
        return attempt, self.forkserver.jobs[-1]

    def test_the_child_gets_all_of_the_task(self) -> None:
        attempt, job = self.start(make_task(payload='{"a":1}', max_attempts=0), max_attempts=5)
        context = {"id": 7, "attempt": 1, "max_attempts": 5, "user": "ana", "task": "work", "kind": "k"}
        self.assertEqual(job.what, ("k", {**context, "queue": "q", "payload": {"a": 1}}))
        job.listener.lines(["hello"], 0)
        job.listener.progress(0.5, "half")
        job.done.callback(Success('{"b":2}'))
        self.assertEqual(self.outcome(attempt).result, '{"b":2}')
        job.listener.lines(["too late"], 0)
        self.assertEqual((self.listener.received, self.listener.progresses), (["hello"], [(0.5, "half")]))

    def test_how_it_may_end(self) -> None:
        cases: list[tuple[Any, Outcome]] = [
            (
                Fault("ValueError: no\nway", "Traceback"),
                Outcome(7, 2, 1, State.WAITING, error="ValueError: no way", trace="Traceback", delay=2.0),
            ),
            (Fault("no", final=True), Outcome(7, 2, 1, State.FAILED, error="no")),
            (
                Fault("later", after=9.0),
                Outcome(7, 2, 1, State.WAITING, error="later", delay=9.0),
            ),
            (
                Fault("later", after=-9),
                Outcome(7, 2, 1, State.WAITING, error="later", delay=0.0),
            ),
            (
                Died("killed by SIGSEGV"),
                Outcome(7, 2, 1, State.WAITING, error="the child process ended: killed by SIGSEGV", delay=2.0),
            ),
        ]
        for ending, expected in cases:
            attempt, job = self.start()
            job.done.callback(ending)
            self.assertEqual(self.outcome(attempt), expected)

    def test_a_result_that_is_not_json(self) -> None:
        for raw in (b"", b"{", b"\xff", b'"\\u0000"', b"NaN", b'"' + b"x" * MAX_RESULT_BYTES + b'"', b"[" * 9999):
            attempt, job = self.start()
            job.done.callback(Success(raw.decode(errors="surrogateescape")))
            outcome = self.outcome(attempt)
            self.assertIs(outcome.state, State.WAITING)
            self.assertIn("the result cannot be stored: ", outcome.error or "")

    def test_out_of_time_it_is_ended_first(self) -> None:
        attempt, job = self.start(timeout=60)
        self.clock.advance(60)
        self.assertEqual(job.stopped, 1)
        self.assertNoResult(attempt.done)
        job.done.callback(Died("killed by SIGTERM"))
        self.assertEqual(self.outcome(attempt).error, "took longer than 60 s")

    def test_stop(self) -> None:
        attempt, job = self.start(timeout=60)
        attempt.stop()
        attempt.stop()
        self.assertEqual(job.stopped, 1)
        self.assertNoResult(attempt.done)
        job.done.callback(Success("1"))
        self.assert_stopped(attempt)
        self.successResultOf(attempt.freed)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class ProgramTests(Stage):
    """Programs of a file."""

    def start(self, payload: str = "{}", cwd: str = "/", args: list[Any] | None = None) -> Attempt:
        command = Command(
            "echo",
            Section("/bin/echo", args=args or [], cwd=cwd, memory=1, processes=2, max_output=3),
        )
        runner = self.runner(programs=[command])
        return runner.run(make_task("command:echo", payload), "ana", self.listener)

    def test_what_it_is_run_with(self) -> None:
        self.start('{"text":"hi"}', args=["--", "{text}"])
        program = self.forkserver.jobs[0].what
        self.assertEqual(program.argv, ["/bin/echo", "--", "hi"])
        self.assertEqual((program.cwd, program.env), ("/", {"PATH": "/usr/local/bin:/usr/bin:/bin"}))
        self.assertEqual((program.memory, program.processes, program.max_output), (1, 2, 3))

    def test_a_payload_that_does_not_fit_is_rejected(self) -> None:
        outcome = self.outcome(self.start('{"x":1}'))
        self.assertEqual(
            outcome, Outcome(7, 2, 1, State.FAILED, error="the payload must not have a field 'x'; there are: none")
        )
        self.assertEqual(self.forkserver.jobs, [])

    def test_a_new_folder_for_each_run(self) -> None:
        attempt = self.start(cwd=TEMPORARY)
        [job] = self.forkserver.jobs
        folder = job.what.cwd
        self.assertTrue(os.path.isdir(folder))
        os.mkdir(os.path.join(folder, "left"))
        job.done.callback(Exited(0, None, 0.1, []))
        self.outcome(attempt)
        self.assertFalse(os.path.exists(folder))

    def test_no_room_for_a_folder(self) -> None:
        self.patch(tempfile, "tempdir", os.path.join(self.mktemp(), "missing"))
        outcome = self.outcome(self.start(cwd=TEMPORARY))
        self.assertIn("FileNotFoundError", outcome.error or "")

    def test_its_last_output_is_the_result(self) -> None:
        attempt = self.start()
        self.forkserver.jobs[0].done.callback(Exited(0, None, 1.23456, ["one", "two"]))
        self.assertEqual(self.outcome(attempt).result, '{"status":0,"seconds":1.235,"output":"one\\ntwo"}')
        attempt = self.start()
        self.forkserver.jobs[1].done.callback(Exited(0, None, 1.0, ["ñ" * 4000] * 9 + ["x" * 3000, "end"]))
        result = self.outcome(attempt).result or ""
        self.assertIn('"output":"xxx', result)
        self.assertIn("end", result)
        attempt = self.start()
        self.forkserver.jobs[2].done.callback(Exited(0, None, 1.0, ["ñ" * 4000 + "."]))
        result = self.outcome(attempt).result or ""
        self.assertIn("ñ.", result)
        self.assertLess(len(result.encode()), 4200)

    def test_how_it_may_fail(self) -> None:
        cases: list[tuple[Exited | Died, str]] = [
            (Exited(3, None, 1, ["a", "no such file", " "]), "exited with status 3: no such file"),
            (Exited(1, None, 1, []), "exited with status 1"),
            (Exited(None, 11, 1, []), "killed by SIGSEGV"),
            (Exited(None, 99, 1, ["x"]), "killed by signal 99: x"),
            (Exited(0, None, 1, ["x"], "wrote more than 3 bytes"), "wrote more than 3 bytes: x"),
            (Died("the fork server ended"), "the child process ended: the fork server ended"),
        ]
        for ending, error in cases:
            attempt = self.start()
            self.forkserver.jobs[-1].done.callback(ending)
            outcome = self.outcome(attempt)
            self.assertEqual((outcome.state, outcome.error), (State.WAITING, error))
            if isinstance(ending, Exited):
                self.assertEqual(outcome.trace, "\n".join(ending.tail) or None)


class RunnerTests(Stage):
    """The kinds of a runner, its start and its stop."""

    def test_kinds(self) -> None:
        @handler("thumb", timeout=60, max_attempts=5)
        def thumb(task: ITaskContext) -> None:
            """Make it small."""

        runner = self.runner(
            Simulate(self.clock), thumb, programs=[Command("x", Section("/bin/x", args=["{a}"], timeout=9))]
        )
        self.assertEqual(list(runner.kinds), ["simulate", "thumb", "command:x"])
        self.assertEqual(runner.kinds["thumb"], KindInfo("thumb", "thread", 60, 5, "Make it small."))
        self.assertEqual(runner.kinds["command:x"], KindInfo("command:x", "program", 9, 3, "Runs x with a"))

    def test_a_kind_without_its_executor_is_an_error(self) -> None:
        @handler("a")
        def a(task: ITaskContext) -> None: ...

        @handler("b", isolation="process")
        def b(task: ITaskContext) -> None: ...

        for each in (a, b):
            self.assertRaises(ValueError, Runner, self.clock, [each])

    def test_your_own_simulate_wins(self) -> None:
        @handler("simulate")
        async def mine(task: ITaskContext) -> str:
            return "mine"

        attempt = self.runner(Simulate(self.clock), mine).run(make_task("simulate"), "ana", self.listener)
        self.assertEqual(self.outcome(attempt).result, '"mine"')

    def test_slots_of_handlers_that_should_have_ended(self) -> None:
        last: Deferred[None] = Deferred()

        @handler("stubborn", timeout=1)
        async def stubborn(task: ITaskContext) -> None:
            try:
                await Deferred()
            except CancelledError:
                await last

        @handler("busy")
        async def busy(task: ITaskContext) -> None:
            await Deferred()

        @handler("blocked", timeout=1)
        def blocked(task: ITaskContext) -> None: ...

        self.threads.held = True
        runner = self.runner(stubborn, busy, blocked)
        attempts = [runner.run(make_task(k), "ana", self.listener) for k in ("stubborn", "busy", "blocked", "blocked")]
        self.assertEqual(runner.hung, {})
        self.clock.advance(1)
        self.assertEqual(runner.hung, {"thread": 2})
        self.clock.advance(5)
        self.assertEqual(runner.hung, {"thread": 2, "async": 1})
        last.callback(None)
        self.assertEqual(runner.hung, {"thread": 2})
        self.threads.run()
        self.threads.run_in_reactor()
        self.assertEqual(runner.hung, {})
        attempts[1].stop()
        self.assert_stopped(attempts[1])
        self.assertEqual(runner.hung, {})

    def test_a_stopped_thread_takes_its_slot_for_a_while_before_it_counts_as_hung(self) -> None:
        self.threads.held = True
        runner = self.runner(handler("k")(lambda task: None))
        attempt = runner.run(make_task(), "ana", self.listener)
        attempt.stop()
        self.assert_stopped(attempt)
        self.assertEqual(runner.hung, {})
        self.clock.advance(5)
        self.assertEqual(runner.hung, {"thread": 1})

    def test_no_thread_can_be_started(self) -> None:
        def fails(function: Callable[[], None]) -> None:
            raise RuntimeError("can't start new thread")

        self.threads.call = fails  # type: ignore[method-assign]
        outcome = self.result(lambda task: None)
        self.assertEqual((outcome.state, outcome.error), (State.WAITING, "RuntimeError: can't start new thread"))

    def test_stop_finishes_whatever_fails(self) -> None:
        async def fails() -> None:
            raise OSError

        class Odd:
            def __call__(self, task: ITaskContext) -> None: ...

            def __getattr__(self, name: str) -> None:
                raise ValueError(name)

        self.threads.held = True
        self.forkserver.stop = fails  # type: ignore[method-assign]
        odd = handler("k")(lambda task: None)
        odd.function = Odd()
        runner = self.runner(odd)
        self.threads.start()
        attempt = runner.run(make_task(timeout=1.0), "ana", self.listener)
        self.clock.advance(1)
        self.assertEqual(self.successResultOf(attempt.done).error, "took longer than 1 s")
        self.successResultOf(Deferred.fromCoroutine(runner.stop()))
        self.assertFalse(self.threads.running)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    def test_start_and_stop(self) -> None:
        runner = self.runner(Simulate(self.clock))
        self.successResultOf(Deferred.fromCoroutine(runner.start()))
        self.assertEqual((self.threads.running, self.forkserver.running), (True, True))
        attempt = runner.run(make_task("simulate"), "ana", self.listener)
        self.successResultOf(Deferred.fromCoroutine(runner.stop()))
        self.assertEqual((self.threads.running, self.forkserver.running), (False, False))
        self.assert_stopped(attempt)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_simulate(self) -> None:
        verifyObject(ITaskHandler, Simulate(self.clock))
        verifyObject(IThreads, self.threads)
        runner = self.runner(Simulate(self.clock))
        attempt = runner.run(make_task("simulate"), "ana", self.listener)
        self.clock.advance(2)
        self.assertEqual(self.outcome(attempt).result, '{"seconds":2.0}')
        attempt = runner.run(make_task("simulate", '{"seconds":"x"}'), "ana", self.listener)
        outcome = self.outcome(attempt)
        self.assertIs(outcome.state, State.FAILED)
        self.assertEqual(outcome.error, "seconds must be a number from 0 to 604800")


class EntriesTests(Stage):
    """What the watchdog learns about the handlers that run."""

    def seen(self) -> list[str]:
        """What was noted since the last call."""
        noted, self.entries.noted = self.entries.noted, []
        return noted

    def test_a_thread_enters_once(self) -> None:
        def work(task: ITaskContext) -> None:
            self.assertEqual(self.seen(), ["enter 7 2 k"])
            raise ValueError

        self.result(work)
        self.assertEqual(self.seen(), ["leave"])

    def test_an_async_handler_enters_with_each_step(self) -> None:
        first: Deferred[None] = Deferred()

        async def work(task: ITaskContext) -> None:
            await first
            self.assertEqual(self.seen(), ["enter 7 2 k"])
            try:
                await Deferred()
            finally:
                self.assertEqual(self.seen(), ["leave", "enter 7 2 k"])

        attempt = self.begin(work)
        self.assertEqual(self.seen(), ["enter 7 2 k", "leave"])
        first.callback(None)
        attempt.stop()
        self.assert_stopped(attempt)
        self.assertEqual(self.seen(), ["leave"])

    def test_one_that_awaits_nothing(self) -> None:
        async def work(task: ITaskContext) -> None: ...

        self.result(work)
        self.assertEqual(self.seen(), ["enter 7 2 k", "leave"])

    def test_entries_do_not_nest_when_a_handler_calls_back_another_one(self) -> None:
        signal: Deferred[None] = Deferred()

        @handler("waits")
        async def waits(task: ITaskContext) -> None:
            await signal

        @handler("calls")
        async def calls(task: ITaskContext) -> None:
            signal.callback(None)

        runner = self.runner(waits, calls)
        for kind in ("waits", "calls"):
            runner.run(make_task(kind), "ana", self.listener)
        entered = [f"enter 7 2 {kind}" for kind in ("waits", "calls", "waits", "calls")]
        self.assertEqual(self.seen(), [each for enter in entered for each in (enter, "leave")])

    def test_children_and_programs_enter_nothing(self) -> None:
        self.begin(lambda task: None, isolation="process")
        self.assertEqual(self.seen(), [])


class RecordingEntries:
    """Records its calls."""

    def __init__(self) -> None:
        self.noted: list[str] = []

    def enter(self, task_id: int, dispatch: int, kind: str) -> None:
        """Write it down."""
        self.noted.append(f"enter {task_id} {dispatch} {kind}")

    def leave(self) -> None:
        """Write it down."""
        self.noted.append("leave")


def returns(value: Any) -> Callable[[Any], Any]:
    """A function that returns this."""
    return lambda task: value


@implementer(ITaskHandler)
class Plain:
    """A handler without the decorator."""

    kind = "k"
    isolation = "async"
    timeout: float | None = None
    max_attempts = 3
    backoff = Backoff()
    summary = ""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def run(self, task: ITaskContext) -> Any:
        return self._answer
