"""What a worker does whose watchdog gives back, in its place, what it has not begun. The tests play the watchdog."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from twisted.logger import LogEvent

from taskd.model.tasks import NewTask
from taskd.ports.attempts import Held
from taskd.watchdog.board import Board
from taskd.worker.worker import Worker
from tests.unit.worker_stage import Stage, events, notes, stage

__all__ = ["events", "stage"]


@pytest.fixture
def board() -> Board:
    """What worker and watchdog share."""
    return Board(0)


def give_back(stage: Stage, ids: Iterable[int], dispatch: int = 1) -> list[int]:
    """The watchdog's statement."""
    released = stage.done(stage.real_store.release("w", [Held(n, dispatch) for n in ids]))
    return sorted(task.id for task in released)


def one_slot(stage: Stage, board: Board, seconds: float = 100) -> tuple[Worker, int, list[int]]:
    """A worker with one slot: it runs one task, and two wait for it."""
    worker = stage.worker(slots=1, board=board)
    [runs] = stage.simulate(seconds)
    waiting = stage.simulate(0, 2)
    assert stage.running(worker) == [runs]
    return worker, runs, waiting


def test_a_task_is_noted_from_its_begin_until_its_outcome_is_stored(stage: Stage, board: Board) -> None:
    worker, runs, waiting = one_slot(stage, board, seconds=0.3)
    assert board.begun() == [(runs, 1)]
    answer = stage.store.delay("finish")
    stage.advance(0.4)
    assert (runs, 1) in (board.begun() or ())
    answer.callback(None)
    stage.advance(0.5)
    assert (worker.busy, board.begun()) == (0, [])
    assert stage.states(waiting) == [("completed", 1)] * 2


def test_a_begin_that_is_stored_first_is_noted_before(stage: Stage, board: Board) -> None:
    worker = stage.worker(board=board)
    answer = stage.store.delay("begin")
    [task] = stage.submit(NewTask(1, "t", payload='{"seconds":100}', max_attempts=1))
    assert (stage.running(worker), board.begun()) == ([], [(task, 1)])
    answer.callback(None)
    stage.advance(0)
    assert (stage.running(worker), board.begun()) == ([task], [(task, 1)])


def test_what_does_not_begin_after_all_is_not_noted(stage: Stage, board: Board) -> None:
    stage.worker(board=board)
    answer = stage.store.delay("begin")
    [task] = stage.submit(NewTask(1, "t", max_attempts=1))
    assert board.begun() == [(task, 1)]
    stage.store.away = {"release"}
    stage.cancel(task)
    answer.callback(None)
    stage.advance(0.1)
    # its return is under way
    assert board.begun() == []


def test_what_was_taken_back_is_not_noted(stage: Stage, board: Board) -> None:
    worker, runs, _ = one_slot(stage, board)
    assert board.begun() == [(runs, 1)]
    stage.fence()
    stage.advance(1.1)
    assert (worker.name, board.begun()) == ("w2", [])


def test_nothing_that_waits_begins_after_the_gate_was_raised(stage: Stage, board: Board) -> None:
    worker, runs, waiting = one_slot(stage, board, seconds=0.2)
    # the reactor stands still now
    board.raise_gate()
    assert give_back(stage, waiting) == waiting
    stage.clock.advance(5)
    stage.advance(3)
    assert stage.begun(worker) == [runs]
    assert stage.states([runs, *waiting]) == [("completed", 1), ("waiting", 0), ("waiting", 0)]
    assert board.gate_seen
    assert (worker.busy, board.begun()) == (0, [])


def test_what_the_watchdog_could_not_give_back_goes_back_too(
    stage: Stage, board: Board, events: list[LogEvent]
) -> None:
    worker, runs, waiting = one_slot(stage, board)
    board.raise_gate()
    stage.advance(0.3)
    assert stage.states(waiting) == [("waiting", 0)] * 2
    assert [line for line in notes(events) if "was blocked" in line]
    assert stage.running(worker) == [runs]


def test_what_is_assigned_again_begins(stage: Stage, board: Board) -> None:
    worker = stage.worker(slots=1, board=board)
    [runs] = stage.simulate(0.2)
    [task] = stage.simulate(100)
    board.raise_gate()
    give_back(stage, [task])
    stage.advance(1.2)
    assert stage.assign_again() == [task]
    stage.advance(0.2)
    assert stage.runner_of(worker).begun == [(runs, 1), (task, 2)]
    assert board.begun() == [(task, 2)]


def raise_at_the_next_begin(board: Board) -> None:
    """The watchdog raises the gate between the note of the next begin and the look at the gate."""
    begins = board.begins

    def raised_meanwhile(task_id: int, dispatch: int) -> int:
        at = begins(task_id, dispatch)
        board.begins = begins  # type: ignore[method-assign]
        board.raise_gate()
        return at

    board.begins = raised_meanwhile  # type: ignore[method-assign]


def test_the_gate_is_looked_at_after_the_note(stage: Stage, board: Board) -> None:
    """At the last moment before a handler is called."""
    worker = stage.worker(board=board)
    raise_at_the_next_begin(board)
    ids = stage.simulate(100, 3)
    stage.advance(0.1)
    assert (stage.begun(worker), board.begun()) == ([], [])
    assert stage.states(ids) == [("waiting", 0)] * 3
    # their slots are free again
    stage.advance(1.2)
    stage.assign_again()
    assert stage.running(worker) == ids


def test_a_suspect_that_does_not_begin_leaves_its_place(stage: Stage, board: Board) -> None:
    """With four slots, one task with a loss runs at a time."""
    worker = stage.worker(slots=4, board=board)
    raise_at_the_next_begin(board)
    [task] = stage.simulate(100, losses=1)
    stage.advance(1.2)
    assert (stage.begun(worker), stage.states([task])) == ([], [("waiting", 0)])
    stage.assign_again()
    assert stage.running(worker) == [task]


def test_an_answer_from_before_the_gate_was_raised_is_thrown_away(stage: Stage, board: Board) -> None:
    worker = stage.worker(board=board)
    answer = stage.store.delay("look")
    ids = stage.simulate(100, 2)
    board.raise_gate()
    give_back(stage, ids)
    answer.callback(None)
    stage.advance(3)
    assert (stage.begun(worker), worker.busy) == ([], 0)
    assert stage.states(ids) == [("waiting", 0)] * 2


def test_it_looks_only_when_a_beat_that_was_sent_since_is_accepted(stage: Stage, board: Board) -> None:
    """The watchdog's statement may come late: it has no effect after that beat."""
    worker = stage.worker(board=board)
    stage.advance(0.5)
    board.raise_gate()
    answer = stage.store.delay("beat")
    [task] = stage.simulate(100, hint=False)
    stage.advance(0.3)
    stage.broker.hint(["w"])
    stage.advance(0.3)
    assert stage.begun(worker) == []
    assert give_back(stage, [task]) == [task]
    answer.callback(None)
    stage.advance(0.1)
    assert (stage.begun(worker), worker.busy) == ([], 0)
    [later] = stage.simulate(100)
    assert stage.begun(worker) == [later]


def test_a_beat_that_was_sent_before_does_not_count(stage: Stage, board: Board) -> None:
    worker = stage.worker(board=board)
    answer = stage.store.delay("beat")
    stage.advance(1.1)
    board.raise_gate()
    stage.store.away = {"beat"}
    [task] = stage.simulate(100, hint=False)
    stage.advance(0.3)
    answer.callback(None)
    stage.advance(1)
    assert stage.begun(worker) == []
    stage.store.away = set()
    stage.advance(1.5)
    assert stage.begun(worker) == [task]


def test_a_worker_that_drains(stage: Stage, board: Board) -> None:
    worker, runs, waiting = one_slot(stage, board, seconds=2)
    board.raise_gate()
    ended = stage.drain(worker, 10)
    stage.advance(4)
    assert ended and board.begun() == []
    assert stage.states([runs, *waiting]) == [("completed", 1), ("waiting", 0), ("waiting", 0)]


def test_more_than_the_board_has_room_for(stage: Stage, board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "_next_begun", board._size)
    worker = stage.worker(board=board)
    ids = stage.simulate(0.5, 3)
    assert (stage.running(worker), board.begun()) == (ids, None)
    stage.advance(1)
    assert (stage.states(ids), board.begun()) == ([("completed", 1)] * 3, [])
