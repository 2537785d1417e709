"""The pool of connections, with a fake clock and fake connections."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, cast

import psycopg2
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from taskd.model.errors import Unavailable
from taskd.store.opening import MAX_DELAY, MIN_DELAY
from taskd.store.postgres.connection import PostgresConnection
from taskd.store.postgres.pool import OutcomeUnknown, Pool

WAIT = 5.0


class Dead(psycopg2.OperationalError):
    """Raised by work whose connection has died."""


class Connection(PostgresConnection):
    """Opens, fails and dies when the test says so. There is no database."""

    def __init__(self) -> None:
        self.opened: Deferred[None] = Deferred()
        self.closed = False
        self.on_lost: Callable[[BaseException], None] = lambda e: None

    async def open(self, on_lost: Callable[[BaseException], None]) -> None:
        self.on_lost = on_lost
        await self.opened

    def close(self) -> None:
        self.closed = True
        if not self.opened.called:
            self.opened.errback(Dead("closed while opening"))

    def succeed(self) -> None:
        """Report that it is open."""
        self.opened.callback(None)

    def fail(self, why: str = "refused") -> None:
        """Report that it could not be opened."""
        self.opened.errback(Dead(why))

    def die(self) -> None:
        """Die while idle."""
        self.on_lost(Dead("the other side hung up"))


class PoolTests(SynchronousTestCase):
    """A pool of three connections, without jitter unless a test sets it."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.made: list[Connection] = []
        self.kind = Connection
        self.jitter = 0.0
        self.lines: list[tuple[LogLevel, str]] = []
        observer = cast(ILogObserver, self._observe)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.patch(random, "random", lambda: self.jitter)
        self.pool = Pool(self.clock, self._make, name="db", size=3, wait=WAIT)

    def _observe(self, event: Any) -> None:
        if event["log_namespace"] == "taskd.store.postgres.pool.Pool":
            self.lines.append((event["log_level"], event["log_format"].format(**event)))

    def _make(self) -> Connection:
        self.made.append(self.kind())
        return self.made[-1]

    def open_all(self) -> None:
        """Start, and open every connection."""
        self.pool.start()
        for i in range(3):
            self.made[i].succeed()

    def run_work(self, work: Callable[[Any], Deferred[Any]]) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._run_work(work))

    async def _run_work(self, work: Callable[[Any], Deferred[Any]]) -> Any:
        connection = await self.pool.acquire()
        try:
            result = await work(connection)
        except BaseException as e:
            self.pool.release_failed(connection, e)
            raise
        self.pool.release(connection)
        return result

    def use(self) -> tuple[Connection, Deferred[str], Deferred[Any]]:
        """Start work: its connection, a Deferred that ends it, the Deferred of its result."""
        got: list[Connection] = []
        ends: Deferred[str] = Deferred()

        def work(connection: Connection) -> Deferred[str]:
            got.append(connection)
            return ends

        answer = self.run_work(work)
        self.assertEqual(len(got), 1)
        return got[0], ends, answer

    def prove(self) -> None:
        """Do some work on every connection."""
        for _, ends, answer in [self.use() for _ in range(self.pool.live)]:
            ends.callback("done")
            self.successResultOf(answer)

    # -- lending

    def test_opens_one_at_a_time_up_to_its_size(self) -> None:
        self.pool.start()
        for i in range(3):
            self.assertEqual((len(self.made), self.pool.live), (i + 1, i))
            self.made[i].succeed()
        self.assertEqual((len(self.made), self.pool.live), (3, 3))

    def test_gives_the_result_and_the_errors_of_the_work(self) -> None:
        self.open_all()
        _, ends, answer = self.use()
        ends.callback("result")
        self.assertEqual(self.successResultOf(answer), "result")
        _, ends, answer = self.use()
        ends.errback(ValueError("a refusal"))
        self.failureResultOf(answer, ValueError)
        self.assertEqual((self.pool.live, len(self.made)), (3, 3))

    def test_a_connection_does_one_thing_at_a_time(self) -> None:
        self.open_all()
        uses = [self.use() for _ in range(3)]
        self.assertEqual(len({id(connection) for connection, _, _ in uses}), 3)
        waiting = self.run_work(lambda connection: succeed(connection))
        self.assertNoResult(waiting)
        uses[1][1].callback("done")
        self.assertIs(self.successResultOf(waiting), uses[1][0])

    def test_callers_are_served_in_the_order_in_which_they_came(self) -> None:
        self.pool.start()
        order: list[str] = []

        def work(name: str) -> Deferred[None]:
            order.append(name)
            return succeed(None)

        for name in "abcd":
            self.run_work(lambda connection, name=name: work(name))  # type: ignore[misc]
        self.made[0].succeed()
        self.assertEqual(order, ["a", "b", "c", "d"])

    def test_waiting_for_a_connection_is_bounded(self) -> None:
        self.pool.start()
        answer = self.run_work(lambda connection: succeed(None))
        self.clock.advance(WAIT - 0.1)
        self.assertNoResult(answer)
        self.clock.advance(0.1)
        failure = self.failureResultOf(answer, Unavailable)
        self.assertIn("the database cannot be reached now; try again: db", str(failure.value))
        self.assertEqual(failure.value.retry_after, MAX_DELAY)
        # the caller that gave up gets no connection
        self.made[0].succeed()
        self.assertEqual(self.pool.live, 1)

    def test_the_error_tells_busy_from_unreachable(self) -> None:
        self.open_all()
        uses = [self.use() for _ in range(3)]
        answer = self.run_work(lambda connection: succeed(None))
        self.clock.advance(WAIT)
        self.assertIn("the database has no connection free", self.failureResultOf(answer, Unavailable).value.message)
        for _, ends, _ in uses:
            ends.callback("done")

    def test_a_served_caller_leaves_no_timer(self) -> None:
        self.pool.start()
        answer = self.run_work(lambda connection: succeed("served"))
        self.made[0].succeed()
        self.assertEqual(self.successResultOf(answer), "served")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelled_while_waiting(self) -> None:
        self.pool.start()
        answer = self.run_work(lambda connection: succeed(None))
        answer.cancel()
        self.failureResultOf(answer, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.made[0].succeed()
        self.assertEqual(self.pool.live, 1)

    def test_cancelled_while_working_closes_the_connection_and_logs_nothing(self) -> None:
        self.open_all()
        connection, _, answer = self.use()
        answer.cancel()
        self.failureResultOf(answer, CancelledError)
        self.assertTrue(connection.closed)
        # replaced at once: the database was not at fault
        self.assertEqual((self.pool.live, len(self.made)), (2, 4))
        self.assertEqual(self.lines, [])

    # -- death

    def test_a_connection_that_dies_during_work_is_never_used_again(self) -> None:
        self.open_all()
        self.prove()
        connection, ends, answer = self.use()
        ends.errback(Dead("server closed the connection\nunexpectedly"))
        failure = self.failureResultOf(answer, OutcomeUnknown)
        self.assertEqual(str(failure.value), "server closed the connection")
        self.assertTrue(connection.closed)
        self.assertEqual(len(self.made), 4)
        self.made[3].succeed()
        self.assertNotIn(connection, [self.use()[0] for _ in range(3)])

    def test_a_caller_waits_for_the_replacement(self) -> None:
        self.open_all()
        self.prove()
        for _, ends, answer in [self.use() for _ in range(3)]:
            ends.errback(Dead("closed"))
            self.failureResultOf(answer, OutcomeUnknown)
        self.assertEqual(self.pool.live, 0)
        answer = self.run_work(lambda connection: succeed(connection))
        self.made[3].succeed()
        self.assertIs(self.successResultOf(answer), self.made[3])

    def test_death_while_idle(self) -> None:
        self.open_all()
        self.prove()
        self.made[1].die()
        self.assertTrue(self.made[1].closed)
        self.assertEqual((self.pool.live, len(self.made)), (2, 4))
        self.made[3].succeed()
        self.assertNotIn(self.made[1], [self.use()[0] for _ in range(3)])

    def test_a_death_reported_twice_counts_once(self) -> None:
        self.open_all()
        self.prove()
        connection, ends, answer = self.use()
        connection.die()
        ends.errback(Dead("closed"))
        self.failureResultOf(answer, OutcomeUnknown)
        connection.die()
        self.assertEqual((self.pool.live, len(self.made)), (2, 4))

    # -- backing off

    def delays(self, attempts: int) -> list[float]:
        """Seconds between failing attempts to connect."""
        found = []
        for _ in range(attempts):
            self.made[-1].fail()
            [call] = self.clock.getDelayedCalls()
            found.append(call.getTime() - self.clock.seconds())
            self.clock.advance(found[-1])
        return found

    def test_delays_between_failed_attempts_grow(self) -> None:
        self.pool.start()
        expected = [min(MAX_DELAY, MIN_DELAY * 2**i) for i in range(9)]
        for delay, wanted in zip(self.delays(9), expected, strict=True):
            self.assertAlmostEqual(delay, wanted)

    def test_jitter_takes_up_to_a_half(self) -> None:
        self.pool.start()
        self.jitter = 1.0
        self.assertAlmostEqual(self.delays(1)[0], MIN_DELAY / 2)
        self.jitter = 0.5
        self.assertAlmostEqual(self.delays(1)[0], 2 * MIN_DELAY * 0.75)

    def test_successful_work_resets_the_backoff(self) -> None:
        self.pool.start()
        self.delays(5)
        self.made[-1].succeed()
        self.prove()
        self.assertAlmostEqual(self.delays(1)[0], MIN_DELAY)

    def test_connections_that_open_but_fail_at_work_back_off(self) -> None:
        # a server that has become a standby accepts connections and refuses all work
        self.pool.start()
        for i in range(4):
            self.made[-1].succeed()
            _, ends, answer = self.use()
            ends.errback(Dead("cannot execute UPDATE in a read-only transaction"))
            self.failureResultOf(answer, OutcomeUnknown)
            # the connection that is being opened meanwhile fails too
            self.made[-1].fail()
            [call] = self.clock.getDelayedCalls()
            self.assertAlmostEqual(call.getTime() - self.clock.seconds(), MIN_DELAY * 2**i)
            self.clock.advance(MIN_DELAY * 2**i)

    def test_never_opens_two_at_once(self) -> None:
        self.open_all()
        self.prove()
        for connection in self.made[:3]:
            connection.die()
        self.assertEqual(len(self.made), 4)
        self.made[3].fail()
        self.assertEqual(len(self.made), 4)
        self.clock.advance(MIN_DELAY)
        self.assertEqual(len(self.made), 5)

    # -- one log line for an outage

    def test_an_outage_is_two_lines(self) -> None:
        self.open_all()
        self.prove()
        for connection in self.made[:3]:
            connection.die()
        for _ in range(5):
            self.made[-1].fail()
            self.clock.advance(MAX_DELAY)
        for _ in range(3):
            self.made[-1].succeed()
        expected = [
            (LogLevel.warn, "db: connection lost, reconnecting: the other side hung up"),
            (LogLevel.info, "db: all 3 connections are open again"),
        ]
        self.assertEqual(self.lines, expected)
        self.made[-1].die()
        self.assertEqual(len(self.lines), 3)

    def test_failing_first_attempts_are_logged_once(self) -> None:
        self.pool.start()
        self.delays(4)
        self.assertEqual(self.lines, [(LogLevel.warn, "db: cannot connect, retrying: refused")])

    # -- start and stop

    def test_not_yet_started(self) -> None:
        failure = self.failureResultOf(self.run_work(lambda connection: succeed(None)), Unavailable)
        self.assertIn("the database cannot be reached yet", failure.value.message)

    def test_stop_closes_all_connections_and_fails_waiting_callers(self) -> None:
        self.pool.start()
        self.made[0].succeed()
        connection, ends, busy = self.use()
        waiting = self.run_work(lambda connection: succeed(None))
        self.pool.stop()
        self.assertEqual([c.closed for c in self.made], [True, True])
        self.assertEqual(self.failureResultOf(waiting, Unavailable).value.message, "the store is closed")
        ends.errback(Dead("closed"))
        self.failureResultOf(busy, OutcomeUnknown)
        self.assertTrue(connection.closed)
        self.assertEqual((self.pool.live, len(self.made)), (0, 2))
        late = self.run_work(lambda connection: succeed(None))
        self.assertEqual(self.failureResultOf(late, Unavailable).value.message, "the store is closed")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_while_backing_off(self) -> None:
        self.pool.start()
        self.made[0].fail()
        self.pool.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.pool.start()
        self.assertEqual(len(self.made), 1)

    def test_a_connection_that_opens_after_the_stop_is_closed(self) -> None:
        class Slow(Connection):
            def close(self) -> None:
                self.closed = True

        self.kind = Slow
        self.pool.start()
        self.pool.stop()
        self.made[0].closed = False
        self.made[0].succeed()
        self.assertTrue(self.made[0].closed)
        self.assertEqual(self.pool.live, 0)
