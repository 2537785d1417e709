"""What the watchdog decides: on a clock, with a process and a store of the test's own."""

from __future__ import annotations

import contextlib
import itertools
import unittest
from collections.abc import Callable, Mapping, Sequence

from twisted.internet.task import Clock

from taskd.watchdog.board import Board, Note
from taskd.watchdog.culprit import Suspicion, Usage, suspect
from taskd.watchdog.watch import CUT_OFF, STOPPED, Watch

REACTOR, THREAD, OTHER = 100, 101, 102
STACK = 'Stack (most recent call first):\n  File "/srv/lab.py", line 12 in work\n'
PLACE = "/srv/lab.py:12 in work()"


class FakeProcess:
    """A process whose threads use what the test says, each second."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.is_stopped = False
        self.cpu = {REACTOR: 0.0}
        self.waits: dict[int, float | None] = {REACTOR: 0.0}
        self.dump = ""
        self.killed = False
        self.stacks: list[int] = []
        self.broken = False

    def stopped(self) -> bool:
        return self.is_stopped

    def usage(self) -> Mapping[int, Usage]:
        if self.broken:
            raise OSError("no /proc")
        now = self.clock.seconds()
        waits = {native: self.waits.get(native, 0.0) for native in self.cpu}
        return {
            n: Usage(now * cpu, None if waits[n] is None else int(now * (waits[n] or 0))) for n, cpu in self.cpu.items()
        }

    def stack(self, native: int) -> str:
        self.stacks.append(native)
        return STACK

    def crash(self) -> str:
        return self.dump

    def stop(self) -> None:
        self.is_stopped = True

    def kill(self) -> None:
        self.killed = True


class FakeStore:
    """Records beats. ``trouble`` is raised."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.vouched: list[tuple[float, str, str | None]] = []
        self.told: list[tuple[str, tuple[int, int, str] | None]] = []
        self.among: list[tuple[int, int]] | None = []
        self.alive = True
        self.trouble: Exception | None = None
        self.tries = 0
        self.given_back: list[tuple[float, list[tuple[int, int]]]] = []
        self.unbegun = 0
        self.stops: list[tuple[float, str, str]] = []
        self._last: tuple[str, int] | None = None
        """The worker and the beat that the watchdog has made or heard of last."""
        self.on_vouch: Callable[[], object] = lambda: None

    def vouch(self, name: str, stalled: str | None) -> int:
        self.tries += 1
        if self.trouble is not None:
            raise self.trouble
        self.vouched.append((self.clock.seconds(), name, stalled))
        self._last = name, len(self.vouched)
        self.on_vouch()
        return len(self.vouched) if self.alive else 0

    def stopped(self, name: str, stalled: str) -> int:
        self.tries += 1
        if self.trouble is not None:
            raise self.trouble
        self.stops.append((self.clock.seconds(), name, stalled))
        self._last = name, 1000
        self.on_vouch()
        return 1000 if self.alive else 0

    def give_back(self, name: str, beat: int, begun: Sequence[tuple[int, int]]) -> int:
        assert (name, beat) == self._last
        self.given_back.append((self.clock.seconds(), list(begun)))
        return self.unbegun

    def gone(
        self, name: str, culprit: tuple[int, int, str] | None, among: Sequence[tuple[int, int]] | None = None
    ) -> bool:
        self.tries += 1
        if self.trouble is not None:
            raise self.trouble
        self.told.append((name, culprit))
        self.among = None if among is None else list(among)
        return True


class FakeBoard(Board):
    """A board whose notes are those of the test."""

    def __init__(self) -> None:
        super().__init__(4)
        self.noted: list[Note] = []

    def notes(self) -> list[Note]:
        return list(self.noted)

    @property
    def reactor_thread(self) -> int:
        return REACTOR


class Case(unittest.TestCase):
    """A worker that is registered, and its watchdog."""

    stall: float | None = 30.0

    def setUp(self) -> None:
        self.clock = Clock()
        self.board = FakeBoard()
        self.board.rename("w")
        self.process = FakeProcess(self.clock)
        self.store = FakeStore(self.clock)
        self.said: list[str] = []
        self.watch = Watch(
            self.board,
            self.process,
            self.store,
            self.clock.seconds,
            lambda level, text: self.said.append(f"{level}: {text}"),
            stall=self.stall,
            lease=10,
        )

    def run_for(self, seconds: float, *each_step: Callable[[], None]) -> None:
        """Let the watchdog look for so long."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end - 1e-9:
            for call in each_step:
                call()
            self.clock.advance(self.watch.step())

    def healthy(self, seconds: float) -> None:
        """The reactor runs, and its beats are accepted."""
        self.run_for(seconds, self.board.tick, self.board.beaten)

    def note(self, native: int, task_id: int = 7, kind: str = "lab.work") -> Note:
        """A handler that has been entered."""
        self.board.noted.append(Note(native * 1000, native, task_id, 2, kind))
        return self.board.noted[-1]


class Beating(Case):
    """When the watchdog beats."""

    def test_it_is_silent_while_the_reactor_beats(self) -> None:
        self.healthy(60)
        assert (self.store.vouched, self.said) == ([], [])

    def test_it_beats_once_a_second_from_1_5_s_on(self) -> None:
        self.healthy(10)
        self.run_for(5, self.board.tick)
        times = [at for at, _, _ in self.store.vouched]
        assert len(times) == 4
        assert 11.3 < times[0] < 11.7
        assert all(0.9 < later - earlier < 1.2 for earlier, later in itertools.pairwise(times))
        # servers assign nothing any more to a worker whose own beats do not arrive
        assert [(name, stalled) for _, name, stalled in self.store.vouched] == [("w", None)] * 2 + [("w", CUT_OFF)] * 2
        self.healthy(10)
        assert len(self.store.vouched) == 4

    def test_a_worker_that_goes_on_has_time_to_beat(self) -> None:
        for stop in (lambda: setattr(self.process, "is_stopped", True), lambda: None):
            self.healthy(5)
            stop()
            self.run_for(5)
            self.process.is_stopped = False
            self.store.vouched.clear()
            self.run_for(2.5, self.board.tick)
            assert {stalled for _, _, stalled in self.store.vouched} == {None}
            self.run_for(2, self.board.tick)
            assert self.store.vouched[-1][2] == CUT_OFF

    def test_it_does_not_beat_for_a_stopped_worker(self) -> None:
        self.healthy(5)
        self.process.is_stopped = True
        self.run_for(20)
        assert (self.store.vouched, self.said, self.process.killed) == ([], [], False)
        # what was stopped does not count as blocked when it goes on
        self.process.is_stopped = False
        self.run_for(0.4)
        self.healthy(5)
        assert self.said == []

    def test_it_does_not_beat_before_the_worker_is_registered(self) -> None:
        self.board.rename("")
        self.run_for(5, self.board.tick)
        assert self.store.vouched == []

    def test_a_fenced_name_is_left_alone(self) -> None:
        self.store.alive = False
        self.run_for(10, self.board.tick)
        assert [name for _, name, _ in self.store.vouched] == ["w"]
        assert len(self.said) == 1
        self.store.alive = True
        self.board.rename("w2")
        self.run_for(3, self.board.tick)
        assert [name for _, name, _ in self.store.vouched][1:] == ["w2"] * 2

    def test_an_accepted_beat_counts_more_than_a_refusal(self) -> None:
        """The name may have been on the board before it was registered."""
        self.store.alive = False
        self.run_for(3, self.board.tick)
        self.store.alive = True
        self.healthy(1)
        self.run_for(3, self.board.tick)
        assert len(self.store.vouched) > 1

    def test_a_store_that_fails_is_tried_again(self) -> None:
        self.store.trouble = RuntimeError("away\nfor now")
        self.run_for(10, self.board.tick)
        assert 8 <= self.store.tries <= 10
        assert self.said == ["warn: the watchdog cannot reach the store: away for now"]
        self.store.trouble = None
        self.run_for(2, self.board.tick)
        assert self.store.vouched
        assert self.said[1:] == ["info: the watchdog has reached the store again"]

    def test_a_pause_of_the_machine_is_no_standstill(self) -> None:
        self.healthy(5)
        self.clock.advance(1000)
        self.watch.paused(1000)
        self.run_for(0.9)
        assert (self.store.vouched, self.said, self.process.killed) == ([], [], False)


class GivingBack(Case):
    """What a blocked worker has not begun."""

    def setUp(self) -> None:
        super().setUp()
        self.healthy(5)
        self.since = self.clock.seconds()

    @property
    def times(self) -> list[float]:
        """When something was given back, in seconds of the standstill."""
        return [at - self.since for at, _ in self.store.given_back]

    def test_it_goes_back_after_2_s_and_then_with_each_beat(self) -> None:
        self.board.begins(7, 2)
        self.run_for(1.9)
        assert (self.board.gate, self.store.given_back) == (0, [])
        self.store.unbegun = 3
        self.run_for(0.4)
        [first] = self.times
        assert 2.0 < first < 2.3
        assert self.store.given_back[0][1] == [(7, 2)]
        assert self.said[-1] == "warn: 3 tasks that the worker has not begun are given back"
        self.store.unbegun = 0
        self.run_for(5)
        assert len(self.times) in (5, 6)
        assert all(later - earlier < 1.2 for earlier, later in itertools.pairwise(self.times))
        # the worker has not run since, so this is still the same gate
        assert self.board.gate == 1

    def test_what_has_begun_is_read_a_while_after_the_gate_was_raised(self) -> None:
        raised: list[float] = []
        raise_gate = self.board.raise_gate

        def begin_late() -> None:
            raise_gate()
            raised.append(self.clock.seconds())
            # was written before, and shows now
            self.board.begins(9, 1)

        self.board.raise_gate = begin_late  # type: ignore[method-assign]
        self.run_for(3)
        assert self.store.given_back[0][0] - raised[0] >= 0.02
        assert self.store.given_back[0][1] == [(9, 1)]

    def test_nothing_before_2_s(self) -> None:
        for _ in range(10):
            self.run_for(1.8)
            self.board.tick()
            self.run_for(0.1)
        assert (self.board.gate, self.store.given_back) == (0, [])

    def test_the_next_standstill_has_a_gate_of_its_own(self) -> None:
        self.run_for(3)
        assert self.board.gate == 1
        self.board.see_gate(1)
        self.healthy(3)
        before = len(self.times)
        self.run_for(1.9)
        assert (self.board.gate, len(self.times)) == (1, before)
        self.run_for(0.4)
        assert (self.board.gate, len(self.times)) == (2, before + 1)

    def test_a_gate_that_the_worker_has_not_seen_serves_again(self) -> None:
        self.run_for(3)
        self.healthy(3)
        self.run_for(2.4)
        assert self.board.gate == 1
        assert 2.0 < self.times[-1] - 6 < 2.4

    def test_a_worker_that_has_run_for_a_moment(self) -> None:
        """It saw the gate between two handlers of the same turn, and what it begins then is not noted yet."""
        self.run_for(2.4)
        self.board.see_gate(1)
        before = len(self.times)
        self.run_for(0.15)
        assert self.board.gate == 2
        self.run_for(1.2)
        assert len(self.times) > before

    def test_nothing_if_the_worker_has_seen_the_gate_since_the_beat(self) -> None:
        self.store.on_vouch = lambda: self.board.see_gate(self.board.gate)
        self.run_for(10)
        assert self.store.given_back == []

    def test_nothing_if_the_reactor_has_run_since_the_beat(self) -> None:
        self.store.on_vouch = self.board.tick
        self.run_for(10)
        assert self.store.given_back == []

    def test_what_a_stopped_worker_has_not_begun_goes_back_without_a_beat(self) -> None:
        self.board.begins(7, 2)
        self.process.is_stopped = True
        began = self.clock.seconds()
        self.run_for(3)
        assert self.store.vouched == []
        assert {(name, stalled) for _, name, stalled in self.store.stops} == {("w", STOPPED)}
        times = [at - began for at, _ in self.store.given_back]
        assert times[0] < 0.6
        assert all(0.45 < later - earlier < 0.7 for earlier, later in itertools.pairwise(times))
        assert [begun for _, begun in self.store.given_back] == [[(7, 2)]] * len(times)
        # it goes on, and is not blocked then
        self.process.is_stopped = False
        before = len(self.store.given_back)
        self.run_for(0.9)
        assert len(self.store.given_back) == before

    def test_nothing_of_a_stopped_worker_that_has_gone_on_since(self) -> None:
        for go_on in (self.board.tick, lambda: self.board.see_gate(self.board.gate)):
            self.process.is_stopped = True
            self.store.on_vouch = go_on
            self.run_for(3)
            assert self.store.stops and self.store.given_back == []

    def test_nothing_of_a_stopped_worker_whose_name_is_dead(self) -> None:
        self.process.is_stopped = True
        self.store.alive = False
        self.run_for(3)
        assert self.store.stops and self.store.given_back == []

    def test_a_store_that_fails_does_not_end_it_while_the_worker_is_stopped(self) -> None:
        self.process.is_stopped = True
        self.store.trouble = OSError("no route")
        self.run_for(2)
        self.store.trouble = None
        self.run_for(1)
        assert self.store.given_back
        assert sum("cannot reach the store: no route" in text for text in self.said) == 1

    def test_nothing_if_more_has_begun_than_the_board_knows(self) -> None:
        self.board.begun = lambda: None  # type: ignore[method-assign]
        self.run_for(10)
        assert self.store.given_back == []

    def test_a_store_that_fails_is_tried_again(self) -> None:
        self.store.trouble = RuntimeError("away")
        self.run_for(5)
        assert self.store.given_back == []
        self.store.trouble = None
        self.run_for(1.2)
        assert self.store.given_back

    def test_nothing_of_the_dead(self) -> None:
        self.store.alive = False
        self.run_for(10)
        assert self.store.given_back == []

    def test_servers_hear_that_it_stands_still_although_nobody_is_named(self) -> None:
        self.process.broken = True
        for _ in range(40):
            with contextlib.suppress(OSError):
                self.watch.step()
            self.clock.advance(0.1)
        assert self.store.vouched[-1][2] == "its reactor stands still"
        assert self.store.given_back

    def test_a_watchdog_that_takes_the_place_of_another(self) -> None:
        """It finds a gate that was raised, and waits all the same."""
        self.run_for(3)
        before = len(self.times)
        self.watch = Watch(
            self.board, self.process, self.store, self.clock.seconds, lambda *_: None, stall=self.stall, lease=10
        )
        self.run_for(1.9)
        assert len(self.times) == before
        self.run_for(0.4)
        assert (len(self.times), self.board.gate) == (before + 1, 1)


class Naming(Case):
    """Whom the watchdog names, and what follows."""

    def test_the_handler_on_the_reactor(self) -> None:
        self.note(REACTOR)
        self.healthy(5)
        self.run_for(1.7)
        what = f"task 7 (lab.work) blocks it at {PLACE}"
        assert self.said == [f"warn: the reactor has stood still for 1 s: {what}"]
        assert self.process.stacks == [REACTOR]
        # stored at once, and again with each beat
        assert self.store.vouched[0][0] < 6.7
        self.run_for(10)
        assert {stalled for _, _, stalled in self.store.vouched} == {what}
        assert len(self.said) == 1
        self.healthy(5)
        assert self.said[1:] == ["info: the reactor runs again after 12 s"]
        assert self.process.stacks == [REACTOR]
        self.run_for(0.9)
        assert len(self.store.vouched) < 13

    def test_nobody(self) -> None:
        self.run_for(2)
        assert self.said == [
            f"warn: the reactor has stood still for 1 s: no handler is known to block it; it is at {PLACE}"
        ]

    def test_a_thread_that_holds_the_gil(self) -> None:
        """The stack that is shown is that thread's."""
        self.note(REACTOR, 7)
        self.note(THREAD, 8)
        self.process.cpu[THREAD] = 1.0
        self.process.waits[REACTOR] = 200
        self.run_for(2)
        assert f"task 8 (lab.work) blocks it at {PLACE}" in self.said[0]
        assert self.process.stacks == [THREAD]

    def test_a_handler_that_is_entered_meanwhile_is_not_named(self) -> None:
        self.run_for(1.2)
        self.note(REACTOR)
        self.run_for(0.5)
        assert "no handler is known" in self.said[0]

    def test_one_handler_after_the_other_in_the_same_turn(self) -> None:
        self.note(REACTOR, 7)
        self.run_for(5)
        self.board.noted.clear()
        self.note(REACTOR, 8)
        self.run_for(5)
        assert ["task 7" in line for line in self.said] == [True, False]
        assert "task 8" in self.said[1]

    def test_a_reactor_that_runs_again_at_the_last_moment_is_not_named(self) -> None:
        self.note(REACTOR)
        self.run_for(1.2)
        self.board.tick()
        self.run_for(0.9)
        assert (self.said, self.store.vouched[0][2]) == ([], None)


class Ending(Case):
    """At the stall time."""

    def test_the_worker_is_ended_with_its_culprit(self) -> None:
        self.note(REACTOR)
        self.healthy(5)
        self.run_for(29.5)
        assert [self.process.killed] == [False]
        self.run_for(1.5)
        assert self.process.stacks and self.process.killed
        assert len(self.store.vouched) > 25
        beats = len(self.store.vouched)
        self.run_for(5)
        assert len(self.store.vouched) == beats
        self.watch.dead()
        assert self.watch.tell() is None
        assert self.store.told == [("w", (7, 2, f"blocked the worker for 30 s at {PLACE}"))]

    def test_the_store_hears_of_it_while_the_worker_is_stopped_and_not_dead(self) -> None:
        told: list[tuple[bool, bool]] = []
        gone = self.store.gone

        def listen(name: str, culprit: tuple[int, int, str] | None, among: Sequence[tuple[int, int]] | None) -> bool:
            told.append((self.process.is_stopped, self.process.killed))
            return gone(name, culprit, among)

        self.store.gone = listen  # type: ignore[method-assign, assignment]
        self.note(REACTOR)
        self.run_for(32)
        assert told == [(True, False)] and self.process.killed

    def test_who_blocks_it_now_is_the_culprit(self) -> None:
        self.note(REACTOR, 7)
        self.run_for(28.8)
        self.board.noted.clear()
        self.note(REACTOR, 8)
        self.run_for(2.5)
        self.watch.dead()
        self.watch.tell()
        [(_, culprit)] = self.store.told
        assert culprit is not None and culprit[0] == 8

    def test_nobody_is_the_culprit(self) -> None:
        self.run_for(32)
        assert self.process.killed
        self.watch.dead()
        self.watch.tell()
        assert self.store.told == [("w", None)]

    def test_a_watchdog_that_can_see_nothing_ends_it_all_the_same(self) -> None:
        self.process.broken = True

        def step() -> None:
            with contextlib.suppress(OSError):
                self.watch.step()
            self.clock.advance(0.1)

        for _ in range(320):
            step()
        assert self.process.killed
        assert len(self.store.vouched) > 25


class NeverEnding(Case):
    """The embedded server is not ended."""

    stall = None

    def test_it_is_named_only(self) -> None:
        self.note(REACTOR)
        self.run_for(1000)
        assert not self.process.killed
        assert len(self.said) == 1


class Dying(Case):
    """What is reported about a worker that has died."""

    crash = (
        "Fatal Python error: Segmentation fault\n\nThread 0x1 (most recent call first):\n"
        f'  File "/srv/lab.py", line 1 in other\n\nCurrent thread {THREAD * 1000:#x} (most recent call first):\n'
        '  File "/srv/lab.py", line 12 in work\n'
    )

    def test_a_killed_worker_has_no_culprit(self) -> None:
        self.note(REACTOR)
        self.watch.dead()
        assert self.watch.tell() is None
        assert self.store.told == [("w", None)]
        assert self.store.among == [(7, 2)]
        assert self.said == ["error: the worker has died in task 7 (lab.work)"]

    def test_a_thread_that_kills_may_work_for_a_handler_that_waits(self) -> None:
        """So it is not only the handlers that were entered in threads."""
        self.note(THREAD, 7)
        self.board.begins(7, 2)
        self.board.begins(8, 3)
        self.watch.dead()
        assert self.watch.tell() is None
        assert self.store.among == [(7, 2), (8, 3)]

    def test_only_what_had_begun_has_a_loss(self) -> None:
        self.board.begins(8, 3)
        self.board.forget(self.board.begins(9, 1))
        self.watch.dead()
        assert self.watch.tell() is None
        assert (self.store.told, self.store.among) == ([("w", None)], [(8, 3)])

    def test_a_worker_that_was_killed_while_it_waited_has_no_suspects(self) -> None:
        self.watch.dead()
        assert self.watch.tell() is None
        assert (self.store.told, self.store.among) == ([("w", None)], [])
        assert self.said == ["error: the worker has died"]

    def test_the_thread_that_crashed_is_the_culprit(self) -> None:
        self.note(REACTOR, 7)
        self.note(THREAD, 8)
        self.process.dump = self.crash
        self.watch.dead()
        self.watch.tell()
        assert self.store.told == [("w", (8, 2, f"crashed with a segmentation fault at {PLACE}"))]
        assert "task 8 (lab.work) crashed" in self.said[0]
        assert self.crash in self.said[0]

    def test_a_crash_outside_of_handlers_has_no_culprit(self) -> None:
        self.note(REACTOR)
        self.process.dump = self.crash
        self.watch.dead()
        self.watch.tell()
        assert self.store.told == [("w", None)]

    def test_it_is_told_until_the_store_is_back(self) -> None:
        self.store.trouble = RuntimeError("away")
        self.watch.dead()
        # a connection that was lost long ago is made again at once
        assert self.watch.tell() == 0
        for _ in range(10):
            pause = self.watch.tell()
            assert pause is not None and 0 < pause < 1
            self.clock.advance(pause)
        self.store.trouble = None
        assert self.watch.tell() is None
        assert self.store.told == [("w", None)]

    def test_it_gives_up_after_a_lease(self) -> None:
        self.store.trouble = RuntimeError("away")
        self.watch.dead()
        pause: float | None = 0.0
        while pause is not None:
            self.clock.advance(pause)
            pause = self.watch.tell()
        assert 10 <= self.clock.seconds() < 11
        assert "could not tell" in self.said[-1]

    def test_a_worker_that_was_never_registered(self) -> None:
        self.board.rename("")
        self.watch.dead()
        assert self.watch.tell() is None
        assert self.store.told == []


class Suspecting(unittest.TestCase):
    """Which thread is suspected, by what all threads have used in half a second."""

    mine = Note(1, REACTOR, 7, 1, "a")
    theirs = Note(2, THREAD, 8, 1, "b")
    others = Note(3, OTHER, 9, 1, "c")

    def suspect(self, cpu: Mapping[int, float], waits: int | None, *notes: Note) -> Suspicion:
        """``cpu`` by thread in seconds; ``waits`` of the reactor's thread."""
        before = {native: Usage(5.0, None if waits is None else 1000) for native in cpu}
        after = {
            native: Usage(5.0 + used, None if waits is None else 1000 + (waits if native == REACTOR else 0))
            for native, used in cpu.items()
        }
        return suspect(REACTOR, notes, before, after, 0.5)

    def test_a_reactor_that_sleeps_blocks_itself(self) -> None:
        cpu = {REACTOR: 0.0, THREAD: 0.5}
        assert self.suspect(cpu, 1, self.mine, self.theirs) == (REACTOR, self.mine, ())
        assert self.suspect(cpu, 1, self.theirs) == (REACTOR, None, ())

    def test_a_reactor_that_computes_blocks_itself(self) -> None:
        cpu = {REACTOR: 0.4, THREAD: 0.45}
        assert self.suspect(cpu, 100, self.mine, self.theirs) == (REACTOR, self.mine, ())

    def test_a_reactor_that_waits_for_the_gil_is_blocked_by_the_busy_thread(self) -> None:
        cpu = {REACTOR: 0.01, THREAD: 0.45, OTHER: 0.01}
        assert self.suspect(cpu, 100, self.mine, self.theirs, self.others) == (THREAD, self.theirs, ())

    def test_a_busy_thread_without_a_handler(self) -> None:
        """Of a handler's own, for example: its place is shown, and nobody is accused."""
        assert self.suspect({REACTOR: 0.0, THREAD: 0.45}, 100, self.mine) == (THREAD, None, ())

    def test_nobody_is_busy(self) -> None:
        """The handler on the reactor sleeps again and again for a moment."""
        assert self.suspect({REACTOR: 0.0, THREAD: 0.0}, 100, self.mine, self.theirs) == (REACTOR, self.mine, ())
        assert self.suspect({REACTOR: 0.0, THREAD: 0.0}, 100, self.theirs) == (REACTOR, None, ())

    def test_two_busy_threads(self) -> None:
        cpu = {REACTOR: 0.0, THREAD: 0.4, OTHER: 0.5}
        assert self.suspect(cpu, 100, self.theirs, self.others) == (OTHER, None, [self.others, self.theirs])

    def test_a_machine_that_is_busy_with_something_else(self) -> None:
        cpu = {REACTOR: 0.01, THREAD: 0.08, OTHER: 0.01}
        assert self.suspect(cpu, 15, self.mine, self.theirs, self.others) == (THREAD, self.theirs, ())

    def test_a_system_that_does_not_count_waits(self) -> None:
        assert self.suspect({REACTOR: 0.0, THREAD: 0.4}, None, self.mine, self.theirs) == (THREAD, self.theirs, ())
        assert self.suspect({REACTOR: 0.0, THREAD: 0.0}, None, self.mine, self.theirs) == (REACTOR, self.mine, ())

    def test_a_system_that_tells_nothing(self) -> None:
        assert suspect(REACTOR, [self.mine], {}, {}, 0.5) == (REACTOR, self.mine, ())
