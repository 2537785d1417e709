"""taskd.scheduling.liveness: only the dead lose their tasks. Every rule by which a server counts beats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import structs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from taskd.model.errors import Unavailable
from taskd.ports.workers import KindInfo, WorkerInfo, WorkerPoll, WorkerState, WorkerStatus
from taskd.scheduling.liveness import CUT_OFF, INTERVAL, ORPHANED, QUIET, QUIET_POLLS, SOON_FOR, Liveness

LEASE = 10
STEP = INTERVAL

OPEN, CLOSED = True, False


def worker(name: str = "w") -> WorkerStatus:
    """A worker that serves one kind and beats over an open connection."""
    info = WorkerInfo(name, ["tasks"], [KindInfo("render", "thread")], {"thread": 3})
    return WorkerStatus(info, WorkerState.SERVING, 1, OPEN, {})


class FakeStore:
    """A store with the workers that a test puts into it. ``answers`` are the next answers to polls; a poll that finds
    none there is answered at once with the workers as they are."""

    def __init__(self) -> None:
        self.ready = True
        self.epoch = "1"
        self.workers: dict[str, WorkerStatus] = {}
        self.answers: list[Any] = []
        self.polls = 0
        self.taken: list[dict[str, int]] = []
        self.take_back_answers: list[Any] = []

    def poll(self) -> WorkerPoll:
        """What a poll sees now."""
        return WorkerPoll(self.epoch, list(self.workers.values()))

    def poll_workers(self) -> Any:
        self.polls += 1
        if not self.answers:
            return succeed(self.poll())
        answer = self.answers.pop(0)
        return fail(answer) if isinstance(answer, Exception) else answer

    def take_back(self, dead: Mapping[str, int]) -> Any:
        self.taken.append(dict(dead))
        if not self.take_back_answers:
            for name, beat in dead.items():
                if self.workers[name].beat == beat:
                    self.set(name, state=WorkerState.FENCED)
            return succeed([])
        answer = self.take_back_answers.pop(0)
        return fail(answer) if isinstance(answer, Exception) else answer

    def set(self, name: str = "w", **fields: Any) -> None:
        """Change a worker."""
        self.workers[name] = structs.replace(self.workers[name], **fields)

    def beat(self, name: str = "w") -> None:
        """The worker beats."""
        self.set(name, beat=self.workers[name].beat + 1)

    @property
    def fenced(self) -> list[dict[str, int]]:
        """Every taking back that named somebody."""
        return [dead for dead in self.taken if dead]


class FakeDispatcher:
    """A dispatcher that remembers the living workers."""

    def __init__(self) -> None:
        self.workers: list[str] = []
        self.paused = False
        self.last: Sequence[WorkerStatus] = ()
        self.error: Exception | None = None
        self.gaps = 0

    def gap(self) -> None:
        self.gaps += 1

    def serve(self, workers: Sequence[WorkerStatus], paused: bool) -> None:
        self.paused = paused
        if self.error is not None:
            raise self.error
        self.last = workers
        self.workers = [status.info.name for status in workers]


class FakeTakeBack:
    """Remembers why tasks were taken back."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def taken(self, tasks: Sequence[Any], why: str) -> None:
        self.reasons.append(why)


class LivenessCase(SynchronousTestCase):
    lease: float | None = LEASE

    def setUp(self) -> None:
        self.clock = Clock()
        self.store, self.dispatcher, self.take_back = FakeStore(), FakeDispatcher(), FakeTakeBack()
        self.store.workers["w"] = worker()
        self.liveness = self.make()
        self.logged: list[LogEvent] = []
        observer: Any = self.logged.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def make(self) -> Liveness:
        """A server's liveness over the fakes."""
        return Liveness(self.clock, self.store, self.dispatcher, self.take_back, self.lease)  # type: ignore[arg-type]

    def lines(self, word: str) -> list[str]:
        """The lines of the log that have this word."""
        return [line for line in map(formatEvent, self.logged) if word in line]

    def start(self) -> None:
        self.liveness.start()
        self.addCleanup(self.liveness.stop)

    def pass_time(self, seconds: float, beating: Sequence[str] = ()) -> None:
        """Let time pass; these workers beat once a second meanwhile."""
        for n in range(round(seconds / STEP)):
            if n % 2 == 0:
                for name in beating:
                    self.store.beat(name)
            self.clock.advance(STEP)

    def assertDead(self, dead: bool = True) -> None:
        self.assertEqual((self.dispatcher.workers, bool(self.store.fenced)), ([] if dead else ["w"], dead))


class Silence(LivenessCase):
    """A worker without beats is dead after as many counted polls as the lease has seconds."""

    def test_a_worker_that_beats_lives(self) -> None:
        self.start()
        self.pass_time(10 * LEASE, ["w"])
        self.assertDead(False)

    def test_a_worker_is_dead_after_a_lease_of_silence(self) -> None:
        self.start()
        self.pass_time(LEASE - STEP)
        self.assertDead(False)
        self.pass_time(STEP)
        self.assertDead()
        self.assertEqual(self.store.fenced, [{"w": 1}])
        self.assertEqual(self.take_back.reasons[-1], "worker w: silent for 10 s")
        self.assertEqual(len(self.lines("worker w is dead: silent for 10 s")), 1)

    def test_a_beat_in_between_sets_the_count_to_0(self) -> None:
        self.start()
        self.pass_time(LEASE - 1)
        self.store.beat()
        self.pass_time(LEASE)
        self.assertDead(False)
        self.pass_time(STEP)
        self.assertDead()

    def test_a_short_silence_costs_nothing_however_often_a_worker_event_asks_for_polls(self) -> None:
        self.start()
        for _ in range((LEASE - 1) * 20):
            self.clock.advance(0.05)
            self.liveness.on_event()
        self.assertDead(False)

    def test_a_loop_that_is_called_late_counts_every_second(self) -> None:
        self.start()
        for n in range(2 * LEASE + 1):
            self.clock.advance(STEP + (0.003 if n % 2 else -0.003))
        self.assertDead()

    def test_an_old_beat_takes_nothing(self) -> None:
        """The worker beats after the poll and before it is fenced: the store takes nothing, and it is alive again."""
        self.start()
        self.pass_time(LEASE - STEP)
        answer: Deferred[WorkerPoll] = Deferred()
        self.store.answers = [answer]
        seen = self.store.poll()
        self.pass_time(STEP)
        self.store.beat()
        answer.callback(seen)
        self.assertEqual(self.store.fenced, [{"w": 1}])
        self.assertIs(self.store.workers["w"].state, WorkerState.SERVING)
        self.pass_time(LEASE, ["w"])
        self.assertEqual(self.dispatcher.workers, ["w"])
        self.pass_time(LEASE + 1)
        self.assertEqual(len(self.lines("is dead")), 2)

    def test_only_the_silent_one_is_dead(self) -> None:
        self.store.workers["v"] = worker("v")
        self.start()
        self.pass_time(LEASE + 1, ["v"])
        self.assertEqual(self.dispatcher.workers, ["v"])
        self.assertEqual([list(dead) for dead in self.store.fenced], [["w"]])

    def test_a_fraction_of_a_lease_counts_as_a_whole_poll(self) -> None:
        self.lease = 1.5
        self.liveness = self.make()
        self.start()
        self.pass_time(1.5)
        self.assertDead(False)
        self.pass_time(STEP)
        self.assertDead()

    def test_a_silent_worker_gets_nothing_new_until_it_beats(self) -> None:
        self.start()
        self.pass_time(QUIET_POLLS - STEP)
        self.assertIsNone(self.dispatcher.last[0].stalled)
        self.pass_time(1)
        self.assertEqual(self.dispatcher.last[0].stalled, QUIET)
        self.assertEqual(len(self.lines(f"worker w is blocked: {QUIET}")), 1)
        self.store.beat()
        self.pass_time(STEP)
        self.assertIsNone(self.dispatcher.last[0].stalled)
        self.assertEqual(len(self.lines("worker w is not blocked any more")), 1)
        # what its watchdog says of it says more
        self.store.set(stalled="task 7")
        self.pass_time(QUIET_POLLS + 1)
        self.assertEqual(self.dispatcher.last[0].stalled, "task 7")

    def test_a_worker_whose_connection_was_closed_gets_nothing_new_until_it_beats(self) -> None:
        self.start()
        self.store.set(connected=False)
        self.pass_time(INTERVAL)
        self.assertEqual(self.dispatcher.last[0].stalled, CUT_OFF)
        self.store.beat()
        self.store.set(connected=True)
        self.pass_time(INTERVAL)
        self.assertIsNone(self.dispatcher.last[0].stalled)

    def test_nobody_gets_anything_new_before_all_have_said_what_they_hold(self) -> None:
        self.store.workers["v"] = structs.replace(worker("v"), asserted=False)
        self.store.workers["u"] = structs.replace(worker("u"), stalled="task 7")
        self.start()
        self.assertEqual((self.dispatcher.paused, self.liveness.waits_for), (True, "v"))
        self.assertEqual(len(self.lines("worker v has not yet")), 1)
        self.pass_time(LEASE - 1)
        self.store.set("v", asserted=True)
        self.pass_time(INTERVAL)
        self.assertEqual((self.dispatcher.paused, self.liveness.waits_for), (False, None))
        self.assertEqual(len(self.lines("tasks are assigned again")), 2)
        self.assertEqual(self.store.fenced, [])

    def test_who_does_not_say_what_it_holds_is_waited_for_as_long_as_the_lease(self) -> None:
        self.store.set(asserted=False)
        self.start()
        for _ in range(LEASE):
            self.store.beat()
            self.pass_time(1)
        self.assertEqual(len(self.store.fenced), 1)
        self.assertEqual(len(self.lines(f"worker w is dead: it has not said for {LEASE} s what it holds")), 1)

    def test_turns_are_taken_when_another_database_answers(self) -> None:
        """One that came before may have found that nobody may get anything."""
        self.start()
        self.pass_time(1)
        gaps = self.dispatcher.gaps
        self.store.epoch = "2"
        self.pass_time(INTERVAL)
        self.assertEqual(self.dispatcher.gaps, gaps + 1)

    def test_the_dead_are_not_waited_for(self) -> None:
        self.store.workers["v"] = structs.replace(worker("v"), asserted=False, state=WorkerState.GONE)
        self.start()
        self.assertEqual((self.dispatcher.workers, self.dispatcher.paused), (["w"], False))

    def test_a_draining_worker_takes_nothing_new_and_dies_like_any_other(self) -> None:
        self.store.set(state=WorkerState.DRAINING)
        self.start()
        self.assertEqual((self.dispatcher.last[0].state, len(self.liveness.alive)), (WorkerState.DRAINING, 1))
        self.pass_time(LEASE)
        self.assertEqual(self.store.fenced, [{"w": 1}])


class Doubt(LivenessCase):
    """What may be the fault of the database or of this server sets all counts to 0."""

    def doubt(self) -> None:
        """Count nearly to the end, let a test cause a doubt, and check that the count began again after it."""
        self.start()
        self.pass_time(LEASE - STEP)
        self.cause()
        self.assertDead(False)
        self.pass_time(LEASE - STEP)
        self.assertDead(False)
        self.pass_time(1)
        self.assertDead()

    def cause(self) -> None:
        raise NotImplementedError

    def test_a_failed_poll(self) -> None:
        self.cause = lambda: self._answer(Unavailable("gone"))  # type: ignore[method-assign]
        self.doubt()

    def test_a_defect(self) -> None:
        self.cause = lambda: self._answer(ZeroDivisionError())  # type: ignore[method-assign]
        self.doubt()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def _answer(self, error: Exception) -> None:
        self.store.answers = [error]
        self.pass_time(STEP)

    def test_a_store_that_was_not_ready(self) -> None:
        def away() -> None:
            self.store.ready = False
            polls = self.store.polls
            self.pass_time(STEP)
            self.assertEqual(self.store.polls, polls)
            self.store.ready = True

        self.cause = away  # type: ignore[method-assign]
        self.doubt()

    def test_a_restart_or_failover_of_the_database(self) -> None:
        def restart() -> None:
            self.store.epoch = "2"
            self.pass_time(STEP)

        self.cause = restart  # type: ignore[method-assign]
        self.doubt()

    def test_while_the_store_is_away_the_last_known_workers_count(self) -> None:
        self.start()
        self.store.ready = False
        self.pass_time(10 * LEASE)
        self.assertEqual(self.dispatcher.workers, ["w"])

    def test_slow_answers_count_for_nothing(self) -> None:
        self.start()
        for _ in range(3 * LEASE):
            answer: Deferred[WorkerPoll] = Deferred()
            self.store.answers = [answer]
            self.pass_time(2)
            answer.callback(self.store.poll())
        self.assertDead(False)

    def test_the_beat_of_a_slow_answer_is_seen(self) -> None:
        self.start()
        self.pass_time(LEASE - STEP)
        answer: Deferred[WorkerPoll] = Deferred()
        self.store.answers = [answer]
        self.pass_time(2)
        self.store.beat()
        answer.callback(self.store.poll())
        self.pass_time(LEASE - 1)
        self.assertDead(False)


class Connections(LivenessCase):
    """A connection that was seen open and then closed speaks for death, with 3 counted polls without a beat."""

    def test_a_worker_whose_connection_is_gone_is_dead_after_three_polls(self) -> None:
        self.start()
        self.store.set(connected=CLOSED)
        self.pass_time(2.5)
        self.assertDead(False)
        self.pass_time(1)
        self.assertDead()
        self.assertEqual(self.take_back.reasons[-1], "worker w: its database connection is gone")

    def test_a_beat_over_another_connection_sets_the_count_to_0(self) -> None:
        self.start()
        for _ in range(LEASE):
            self.store.set(connected=CLOSED)
            self.pass_time(2.5)
            self.store.set(connected=OPEN)
            self.store.beat()
            self.pass_time(STEP)
        self.assertDead(False)

    def test_a_connection_that_is_open_again_speaks_for_life(self) -> None:
        self.start()
        self.store.set(connected=CLOSED)
        self.pass_time(2)
        self.store.set(connected=OPEN)
        self.pass_time(1)
        self.store.set(connected=CLOSED)
        self.pass_time(2)
        self.assertDead(False)

    def test_a_connection_that_was_never_seen_open_says_nothing(self) -> None:
        """A pooler may hide it, or this server may not be allowed to see it."""
        self.store.set(connected=CLOSED)
        self.start()
        self.pass_time(LEASE - STEP)
        self.assertDead(False)
        self.pass_time(STEP)
        self.assertDead()

    def test_a_doubt_makes_the_connection_unseen(self) -> None:
        self.start()
        self.store.set(connected=CLOSED)
        self.pass_time(2)
        self.store.answers = [Unavailable("gone")]
        self.pass_time(LEASE - 1)
        self.assertDead(False)

    def test_a_worker_that_beat_just_before_its_connection_was_lost_is_found(self) -> None:
        self.start()
        self.store.beat()
        self.store.set(connected=CLOSED)
        self.pass_time(4)
        self.assertDead()


class Deaths(LivenessCase):
    """What else takes tasks back, and when."""

    def test_a_worker_that_its_watchdog_calls_gone_loses_its_tasks_with_the_next_poll(self) -> None:
        self.start()
        self.store.set(state=WorkerState.GONE)
        self.pass_time(STEP)
        self.assertEqual((self.dispatcher.workers, self.store.taken[-1]), ([], {"w": 1}))
        self.assertEqual(self.take_back.reasons[-1], "worker w: killed")
        self.assertEqual(len(self.lines("worker w is dead: killed")), 1)

    def test_the_log_names_what_had_blocked_a_killed_worker(self) -> None:
        self.start()
        self.store.set(state=WorkerState.GONE, stalled="render of task 12 at lab.py:7")
        self.pass_time(5)
        self.assertEqual(
            self.lines("is dead"), ["worker w is dead: killed while it was blocked: render of task 12 at lab.py:7"]
        )

    def test_orphans_are_searched_every_five_seconds(self) -> None:
        """After a start once a second."""
        self.start()
        self.store.taken.clear()
        self.pass_time(SOON_FOR, ["w"])
        self.assertEqual(self.store.taken, [{}] * 15)
        self.pass_time(20, ["w"])
        self.assertEqual(self.store.taken, [{}] * 19)
        self.assertEqual(set(self.take_back.reasons), {ORPHANED})

    def searched_in(self, seconds: float) -> int:
        """How often orphans are searched in this time."""
        before = len(self.store.taken)
        self.pass_time(seconds, ["w"])
        return len(self.store.taken) - before

    def test_orphans_are_searched_once_a_second_when_there_may_be_some(self) -> None:
        """A turn that is committed with its worker's end comes too late for the search that this begins."""
        self.start()
        self.pass_time(2 * SOON_FOR, ["w"])

        def end_other(**how: Any) -> None:
            self.store.workers["other"] = worker("other")
            self.pass_time(STEP)
            self.store.set("other", **how)

        def stop() -> None:
            end_other()
            del self.store.workers["other"]

        def outage() -> None:
            self.store.ready = False
            self.pass_time(STEP)
            self.store.ready = True

        def lock() -> None:
            self.store.take_back_answers.append(Unavailable("locked"))
            self.pass_time(5, ["w"])

        causes: list[Callable[[], object]] = [
            stop,
            outage,
            lambda: end_other(state=WorkerState.GONE),
            lambda: end_other(state=WorkerState.FENCED),
            lambda: setattr(self.store, "epoch", "2"),
            lock,
        ]
        for cause in causes:
            cause()
            self.assertGreaterEqual(self.searched_in(10), 9)
            self.pass_time(SOON_FOR, ["w"])
            self.assertEqual(self.searched_in(10), 2)

    def test_a_worker_that_has_stopped_leaves_orphans_for_the_same_poll(self) -> None:
        self.start()
        del self.store.workers["w"]
        self.liveness.on_event()
        self.assertEqual(self.take_back.reasons, [ORPHANED, "worker w: stopped"])

    def test_tasks_are_looked_for_after_a_take_back_that_may_have_been_committed(self) -> None:
        self.start()
        del self.store.workers["w"]
        self.store.take_back_answers.append(Unavailable("the connection was lost"))
        before = self.dispatcher.gaps
        self.liveness.on_event()
        self.assertEqual((self.take_back.reasons, self.dispatcher.gaps), ([ORPHANED], before + 1))

    def test_a_fenced_worker_is_left_alone(self) -> None:
        self.store.set(state=WorkerState.FENCED)
        self.start()
        self.pass_time(2 * LEASE)
        self.assertEqual((self.store.fenced, self.dispatcher.workers, self.lines("is dead")), ([], [], []))

    def test_who_could_not_be_taken_back_gets_half_a_lease_to_beat(self) -> None:
        """A read-only database answers polls and takes no beats. When it takes them again, all beat within seconds."""
        self.start()
        self.pass_time(LEASE - STEP)
        for error in (Unavailable("read-only"), ZeroDivisionError()):
            self.store.take_back_answers = [error]
            taken = len(self.store.taken)
            self.pass_time(LEASE / 2)
            self.assertEqual(self.store.taken[taken], {"w": 1})
            self.assertEqual([dead for dead in self.store.taken[taken + 1 :] if dead], [])
        self.assertEqual(self.dispatcher.workers, ["w"])
        self.pass_time(LEASE / 2)
        self.assertDead()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_database_that_is_read_only_for_long_ages_nobody(self) -> None:
        self.start()
        self.store.take_back_answers = [Unavailable("read-only")] * 200
        self.store.set(connected=CLOSED)
        self.pass_time(100)
        self.store.take_back_answers.clear()
        self.pass_time(2)
        self.pass_time(LEASE, ["w"])
        self.assertDead(False)

    def test_polls_go_on_while_the_tasks_are_locked_and_one_taking_back_runs_at_a_time(self) -> None:
        self.start()
        locked: Deferred[Any] = Deferred()
        self.store.take_back_answers = [locked]
        polls, taken = self.store.polls, len(self.store.taken)
        self.pass_time(35, ["w"])
        self.assertEqual((self.store.polls, len(self.store.taken)), (polls + 70, taken + 1))
        locked.callback([])
        self.pass_time(STEP)
        self.assertEqual(len(self.store.taken), taken + 2)


class Polls(LivenessCase):
    """When a server polls."""

    def test_it_polls_at_its_start_and_every_half_second(self) -> None:
        self.start()
        self.assertEqual((self.store.polls, self.dispatcher.workers), (1, ["w"]))
        self.pass_time(5)
        self.assertEqual(self.store.polls, 11)

    def test_an_event_causes_a_poll_at_once(self) -> None:
        self.start()
        self.store.workers["v"] = worker("v")
        self.liveness.on_event()
        self.assertEqual(self.dispatcher.workers, ["w", "v"])

    def test_never_two_polls_run_at_a_time(self) -> None:
        self.start()
        answer: Deferred[WorkerPoll] = Deferred()
        self.store.answers = [answer]
        self.pass_time(20)
        self.assertEqual(self.store.polls, 2)
        for _ in range(50):
            self.liveness.on_event()
        answer.callback(self.store.poll())
        self.assertEqual(self.store.polls, 3)

    def test_it_survives_a_defect_behind_it(self) -> None:
        self.start()
        self.dispatcher.error = ZeroDivisionError("a defect")
        self.pass_time(1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.dispatcher.error = None
        self.pass_time(LEASE + 1)
        self.assertDead()

    def test_after_the_stop_nothing_is_polled_or_taken_back(self) -> None:
        self.start()
        answer: Deferred[WorkerPoll] = Deferred()
        self.store.answers = [answer]
        self.pass_time(STEP)
        self.liveness.stop()
        self.liveness.stop()
        taken = len(self.store.taken)
        self.store.set(state=WorkerState.GONE)
        answer.callback(self.store.poll())
        self.liveness.on_event()
        self.pass_time(5)
        self.assertEqual((self.store.polls, len(self.store.taken)), (2, taken))
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Stalls(LivenessCase):
    """Blocked reactors and hung slots."""

    BLOCK = "render of task 12 at lab.py:7"

    def test_a_new_stall_is_logged_once_and_its_end_too(self) -> None:
        self.start()
        self.store.set(stalled=self.BLOCK)
        self.pass_time(5, ["w"])
        self.assertEqual(self.lines("is blocked"), [f"worker w is blocked: {self.BLOCK}"])
        self.store.set(stalled="render of task 13 at lab.py:7")
        self.pass_time(1, ["w"])
        self.assertEqual(len(self.lines("is blocked")), 2)
        self.store.set(stalled=None)
        self.pass_time(5, ["w"])
        self.assertEqual(len(self.lines("not blocked any more")), 1)

    def test_the_dispatcher_learns_of_stalled_workers_and_hung_slots(self) -> None:
        self.start()
        self.store.set(stalled=self.BLOCK, hung={"thread": 2})
        self.pass_time(1, ["w"])
        [status] = self.dispatcher.last
        self.assertEqual((status.stalled, status.hung), (self.BLOCK, {"thread": 2}))


class GivenBack(LivenessCase):
    """What the watchdog of a blocked worker gives back is announced by nobody."""

    def gaps_within(self, seconds: float) -> int:
        """How often turns were asked for while time passes."""
        before = self.dispatcher.gaps
        self.pass_time(seconds, ["w"])
        return self.dispatcher.gaps - before

    def test_turns_are_taken_with_each_poll_while_somebody_is_blocked_and_once_more(self) -> None:
        self.start()
        self.assertEqual(self.gaps_within(10), 0)
        self.store.set(stalled=Stalls.BLOCK)
        self.assertEqual(self.gaps_within(10), 20)
        self.store.set(stalled=None)
        self.assertEqual(self.gaps_within(10), 1)

    def test_once_more_after_its_death(self) -> None:
        self.start()
        self.store.set(stalled=Stalls.BLOCK)
        self.pass_time(2, ["w"])
        self.store.set(state=WorkerState.GONE)
        self.assertGreaterEqual(self.gaps_within(5), 1)

    def test_at_once_when_somebody_is_blocked(self) -> None:
        self.start()
        self.pass_time(3, ["w"])
        self.store.set(stalled=Stalls.BLOCK)
        self.assertEqual(self.gaps_within(STEP), 1)


class Embedded(LivenessCase):
    """Without a lease nobody is dead, and nothing is taken back."""

    lease = None

    def test_a_silent_worker_lives_and_its_hung_slots_are_known(self) -> None:
        self.start()
        self.store.set(connected=CLOSED)
        self.pass_time(100)
        self.store.set(hung={"thread": 1})
        self.pass_time(1)
        self.assertEqual((self.dispatcher.workers, self.store.taken), (["w"], []))
        self.assertEqual(self.dispatcher.last[0].hung, {"thread": 1})
