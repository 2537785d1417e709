"""taskd.scheduling.window: how many tasks are queued in the broker, and which users have a backlog."""

from __future__ import annotations

from datetime import timedelta

from taskd.events.publisher import changes_of
from taskd.events.records import TaskChange
from taskd.model.states import State
from taskd.model.tasks import Route, Task
from taskd.scheduling.window import Window, Windows
from tests.unit.stage import NOON

ANA, EVA = 1, 2


def new_window(limit: int = 3) -> Window:
    """A window after its first complete round: no user is backlogged."""
    window = Window(limit)
    window.clear_backlogged(window.backlogged_users())
    return window


def change(
    state: State, user_id: int = ANA, queue: str = "tasks", kind: str = "simulate", run_in: float = 0
) -> TaskChange:
    run_at = NOON + timedelta(seconds=run_in)
    return changes_of([Task(1, user_id, "t", kind, queue, state, NOON, run_at)], NOON)[0]


def test_a_new_window_admits_nobody_until_its_backlog_is_known() -> None:
    window = Window(3)
    assert (window.has_backlog, window.admit(ANA)) == (True, False)
    window.clear_backlogged(window.backlogged_users())
    assert (window.has_backlog, window.admit(ANA)) == (False, True)


def test_a_window_admits_as_many_tasks_as_it_has_room_for() -> None:
    window = new_window(3)
    assert [window.admit(ANA) for _ in range(5)] == [True, True, True, False, False]
    assert window.room == 0
    window.take(-2)
    assert window.room == 2 and window.admit(EVA)


def test_a_backlogged_user_is_not_admitted() -> None:
    window = new_window()
    window.mark_backlogged(ANA)
    assert not window.admit(ANA) and window.admit(EVA)
    assert window.has_backlog


def test_a_round_clears_the_users_that_it_began_with() -> None:
    window = new_window()
    window.mark_backlogged(ANA)
    backlogged = window.backlogged_users()
    window.mark_backlogged(EVA)
    window.clear_backlogged(backlogged)
    assert window.admit(ANA) and not window.admit(EVA)


def test_a_user_marked_again_during_a_round_stays_backlogged() -> None:
    """The round may have passed this user already."""
    window = new_window()
    window.mark_backlogged(ANA)
    backlogged = window.backlogged_users()
    window.mark_backlogged(ANA)
    window.clear_backlogged(backlogged)
    assert not window.admit(ANA)
    window.clear_backlogged(window.backlogged_users())
    assert window.admit(ANA)


def test_a_window_follows_the_changes_of_tasks() -> None:
    window = new_window(10)
    window.apply(change(State.QUEUED))
    window.apply(change(State.QUEUED))
    assert window.room == 8
    window.apply(change(State.RUNNING))
    assert window.room == 9
    window.apply(change(State.COMPLETED))
    assert window.room == 9
    window.apply(change(State.WAITING, EVA))
    assert window.has_backlog and not window.admit(EVA)


def test_tasks_that_are_not_due_are_no_backlog() -> None:
    window = new_window()
    window.apply(change(State.WAITING, run_in=0.1))
    assert not window.has_backlog and window.admit(ANA)


def test_the_count_of_queued_tasks_stays_within_its_bounds() -> None:
    window = new_window(10)
    window.apply(change(State.RUNNING))
    window.take(-5)
    assert window.room == 10
    window.correct(50)
    assert window.room == 0


TASKS, SLOW = Route("tasks", "simulate"), Route("slow", "simulate")
RENDER = Route("tasks", "render")


def open_windows(*routes: Route) -> Windows:
    """Windows of these routes, after their first complete rounds."""
    windows = Windows(10, lambda route: None)
    for route in routes:
        window = windows.open(route)
        window.clear_backlogged(window.backlogged_users())
    return windows


def test_a_change_moves_only_the_window_of_its_route() -> None:
    windows = open_windows(TASKS, SLOW, RENDER)
    windows.apply([change(State.QUEUED, queue="slow"), change(State.QUEUED, kind="render")])
    windows.apply([change(State.QUEUED, queue="slow"), change(State.QUEUED, queue="elsewhere")])
    assert [(window.room, window.queued) for window in windows.by_route.values()] == [(10, 0), (8, 2), (9, 1)]
    windows.correct({TASKS: 4, Route("elsewhere", "simulate"): 7})
    assert [window.room for window in windows.by_route.values()] == [6, 10, 10]
    windows.mark_backlogged(RENDER, ANA)
    assert [window.has_backlog for window in windows.by_route.values()] == [False, False, True]


def test_changes_of_routes_without_a_window_leave_nothing() -> None:
    windows = open_windows(TASKS)
    for n in range(1000):
        windows.apply([change(State.WAITING, kind=f"kind{n}")])
        windows.mark_backlogged(Route("tasks", f"kind{n}"), ANA)
    windows.correct({Route("tasks", f"kind{n}"): 5 for n in range(1000)})
    assert list(windows.by_route) == [TASKS] and not windows.by_route[TASKS].has_backlog


def test_a_window_that_is_opened_again_does_not_know_its_backlog() -> None:
    windows = open_windows(TASKS)
    windows.close(TASKS)
    assert windows.by_route == {}
    assert windows.open(TASKS).has_backlog
