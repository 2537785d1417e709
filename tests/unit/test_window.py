"""taskd.server.window: how much a server believes to be in the broker, and who waits behind it."""

from __future__ import annotations

from taskd.model import State, Task
from taskd.server.window import Window, Windows
from taskd.wire.changes import Change, changes_of
from tests.unit.stage import NOON

ANA, EVA = 1, 2


def known(limit: int = 3) -> Window:
    """A window after its first clean round."""
    window = Window(limit)
    window.cleared(window.suspects())
    return window


def change(state: State, user_id: int = ANA, queue: str = "tasks") -> Change:
    return changes_of([Task(1, user_id, "t", "simulate", queue, state, NOON, NOON)], NOON)[0]


def test_nothing_goes_past_a_backlog_that_is_not_known_yet() -> None:
    window = Window(3)
    assert (window.has_backlog, window.admit(ANA)) == (True, False)
    window.cleared(window.suspects())
    assert (window.has_backlog, window.admit(ANA)) == (False, True)


def test_it_admits_as_many_as_it_holds() -> None:
    window = known(3)
    assert [window.admit(ANA) for _ in range(5)] == [True, True, True, False, False]
    assert window.room == 0
    window.take(-2)
    assert window.room == 2 and window.admit(EVA)


def test_who_has_something_waiting_waits_behind_it() -> None:
    window = known()
    window.suspect(ANA)
    assert not window.admit(ANA) and window.admit(EVA)
    assert window.has_backlog


def test_a_clean_round_clears_those_it_began_with() -> None:
    window = known()
    window.suspect(ANA)
    suspects = window.suspects()
    window.suspect(EVA)
    window.cleared(suspects)
    assert window.admit(ANA) and not window.admit(EVA)


def test_who_gets_something_new_while_it_goes_round_stays_suspected() -> None:
    """The round may have passed the user already."""
    window = known()
    window.suspect(ANA)
    suspects = window.suspects()
    window.suspect(ANA)
    window.cleared(suspects)
    assert not window.admit(ANA)
    window.cleared(window.suspects())
    assert window.admit(ANA)


def test_it_follows_the_news() -> None:
    window = known(10)
    window.heard(change(State.QUEUED))
    window.heard(change(State.QUEUED))
    assert window.room == 8
    window.heard(change(State.RUNNING))
    assert window.room == 9
    window.heard(change(State.COMPLETED))
    assert window.room == 9
    window.heard(change(State.WAITING, EVA))
    assert window.has_backlog and not window.admit(EVA)


def test_it_never_believes_in_less_than_nothing() -> None:
    window = known(10)
    window.heard(change(State.RUNNING))
    window.take(-5)
    assert window.room == 10
    window.correct(50)
    assert window.room == 0


def test_the_windows_of_other_queues_do_not_move() -> None:
    windows = Windows(["tasks", "slow"], 10)
    windows.heard([change(State.QUEUED, queue="slow"), change(State.QUEUED, queue="elsewhere")])
    assert [window.room for window in windows.by_queue.values()] == [10, 9]
    windows.correct({"tasks": 4, "elsewhere": 7})
    assert [window.room for window in windows.by_queue.values()] == [6, 10]
