"""taskd.scheduling.window: how much a server believes to be in the broker, and who waits behind it."""

from __future__ import annotations

from datetime import timedelta

from taskd.events.publisher import changes_of
from taskd.events.records import TaskChange
from taskd.model.states import State
from taskd.model.tasks import Route, Task
from taskd.scheduling.window import Window, Windows
from tests.unit.stage import NOON

ANA, EVA = 1, 2


def known(limit: int = 3) -> Window:
    """A window after its first clean round."""
    window = Window(limit)
    window.clear_backlogged(window.backlogged_users())
    return window


def change(
    state: State, user_id: int = ANA, queue: str = "tasks", kind: str = "simulate", run_in: float = 0
) -> TaskChange:
    run_at = NOON + timedelta(seconds=run_in)
    return changes_of([Task(1, user_id, "t", kind, queue, state, NOON, run_at)], NOON)[0]


def test_nothing_goes_past_a_backlog_that_is_not_known_yet() -> None:
    window = Window(3)
    assert (window.has_backlog, window.admit(ANA)) == (True, False)
    window.clear_backlogged(window.backlogged_users())
    assert (window.has_backlog, window.admit(ANA)) == (False, True)


def test_it_admits_as_many_as_it_holds() -> None:
    window = known(3)
    assert [window.admit(ANA) for _ in range(5)] == [True, True, True, False, False]
    assert window.room == 0
    window.take(-2)
    assert window.room == 2 and window.admit(EVA)


def test_who_has_something_waiting_waits_behind_it() -> None:
    window = known()
    window.mark_backlogged(ANA)
    assert not window.admit(ANA) and window.admit(EVA)
    assert window.has_backlog


def test_a_clean_round_clears_those_it_began_with() -> None:
    window = known()
    window.mark_backlogged(ANA)
    suspects = window.backlogged_users()
    window.mark_backlogged(EVA)
    window.clear_backlogged(suspects)
    assert window.admit(ANA) and not window.admit(EVA)


def test_who_gets_something_new_while_it_goes_round_stays_suspected() -> None:
    """The round may have passed the user already."""
    window = known()
    window.mark_backlogged(ANA)
    suspects = window.backlogged_users()
    window.mark_backlogged(ANA)
    window.clear_backlogged(suspects)
    assert not window.admit(ANA)
    window.clear_backlogged(window.backlogged_users())
    assert window.admit(ANA)


def test_it_follows_the_news() -> None:
    window = known(10)
    window.apply(change(State.QUEUED))
    window.apply(change(State.QUEUED))
    assert window.room == 8
    window.apply(change(State.RUNNING))
    assert window.room == 9
    window.apply(change(State.COMPLETED))
    assert window.room == 9
    window.apply(change(State.WAITING, EVA))
    assert window.has_backlog and not window.admit(EVA)


def test_what_is_not_due_yet_is_no_backlog() -> None:
    window = known()
    window.apply(change(State.WAITING, run_in=0.1))
    assert not window.has_backlog and window.admit(ANA)


def test_it_never_believes_in_less_than_nothing() -> None:
    window = known(10)
    window.apply(change(State.RUNNING))
    window.take(-5)
    assert window.room == 10
    window.correct(50)
    assert window.room == 0


TASKS, SLOW = Route("tasks", "simulate"), Route("slow", "simulate")
RENDER = Route("tasks", "render")


def opened(*routes: Route) -> Windows:
    """Windows of these routes, after their first clean rounds."""
    windows = Windows(10)
    for route in routes:
        window = windows.open(route)
        window.clear_backlogged(window.backlogged_users())
    return windows


def test_the_windows_of_other_routes_do_not_move() -> None:
    windows = opened(TASKS, SLOW, RENDER)
    windows.apply([change(State.QUEUED, queue="slow"), change(State.QUEUED, kind="render")])
    windows.apply([change(State.QUEUED, queue="slow"), change(State.QUEUED, queue="elsewhere")])
    assert [(window.room, window.queued) for window in windows.by_route.values()] == [(10, 0), (8, 2), (9, 1)]
    windows.correct({TASKS: 4, Route("elsewhere", "simulate"): 7})
    assert [window.room for window in windows.by_route.values()] == [6, 10, 10]
    windows.mark_backlogged(RENDER, ANA)
    assert [window.has_backlog for window in windows.by_route.values()] == [False, False, True]


def test_what_concerns_no_open_window_leaves_nothing() -> None:
    windows = opened(TASKS)
    for n in range(1000):
        windows.apply([change(State.WAITING, kind=f"kind{n}")])
        windows.mark_backlogged(Route("tasks", f"kind{n}"), ANA)
    windows.correct({Route("tasks", f"kind{n}"): 5 for n in range(1000)})
    assert list(windows.by_route) == [TASKS] and not windows.by_route[TASKS].has_backlog


def test_one_that_is_opened_again_knows_nothing_of_its_backlog() -> None:
    windows = opened(TASKS)
    windows.close(TASKS)
    assert windows.by_route == {}
    assert windows.open(TASKS).has_backlog
