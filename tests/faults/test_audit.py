"""The audit itself: it finds each kind of broken promise."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.audit import (
    Change,
    Killed,
    Records,
    Row,
    Unfit,
    WorkerChange,
    at_once,
    begun_again,
    figures,
    run_again,
)
from tests.faults.load import Confirmation, Load
from tests.faults.worker import Run

A, B = "host:1:a", "host:2:b"


def history(task_id: int, *moves: tuple[str, str | None, float]) -> list[Change]:
    """Changes of one task, from tuples of new state, worker and time."""
    found: list[Change] = []
    for state, worker, at in moves:
        found.append(Change(task_id, found[-1].new if found else None, state, 1, worker, at))
    return found


def judge(
    changes: Sequence[Change],
    rows: Sequence[Row],
    runs: Sequence[Run],
    *confirmed: tuple[str, int],
    workers: Sequence[WorkerChange] = (),
    unfit: Sequence[Unfit] = (),
) -> set[str]:
    """The names of the figures that are not 0, for clients that attempted exactly the confirmed tasks."""
    load = Load([], lambda n: {})
    load.confirmations += [Confirmation("ana", key, task_id, 0.0) for key, task_id in confirmed]
    found = figures(load, Records(changes, workers, rows), runs, unfit)
    counted = ("lost", "run_twice", "finished_twice", "false_confirmations", "illegal_moves", "attempts_doubled")
    return {name for name in (*counted, "never_run", "taken", "at_once", "unexplained") if found[name]}


GOOD = history(1, ("queued", A, 1), ("running", A, 2), ("completed", A, 3))
DONE = Row(1, "ana", "k1", "completed", 1, None, True)
RAN = Run(1, 1, 1, 1, 2.0, 2.9)


def test_a_good_task() -> None:
    """All figures are 0."""
    assert judge(GOOD, [DONE], [RAN], ("k1", 1), ("k1", 1)) == set()


def test_a_confirmed_task_that_is_not_there() -> None:
    """The task is lost, and its confirmation was false."""
    assert judge(GOOD, [DONE], [RAN], ("k1", 1), ("k2", 2)) == {"lost", "false_confirmations"}


def test_a_confirmed_task_that_has_not_ended() -> None:
    """The task counts as lost."""
    assert judge(GOOD[:2], [DONE._replace(state="running", finished=False)], [RAN], ("k1", 1)) == {"lost"}


def test_a_confirmation_with_the_task_of_another_key() -> None:
    """The confirmation is false."""
    assert judge(GOOD, [DONE], [RAN], ("k2", 1)) == {"false_confirmations"}


def test_a_task_that_ends_twice() -> None:
    """The second end is an illegal move too."""
    twice = [*GOOD, Change(1, "completed", "failed", 1, A, 4)]
    assert judge(twice, [DONE], [RAN], ("k1", 1)) == {"finished_twice", "illegal_moves"}


def test_runs() -> None:
    """The audit finds a second attempt, a second run of one attempt, and a completed task that never ran."""
    again = RAN._replace(dispatch=2, attempt=2, at=2.9, until=3.0)
    assert judge(GOOD, [DONE], [RAN, again], ("k1", 1)) == {"run_twice"}
    assert judge(GOOD, [DONE], [RAN, RAN], ("k1", 1)) == {"run_twice", "attempts_doubled", "at_once"}
    assert judge(GOOD, [DONE], [], ("k1", 1)) == {"never_run"}


def test_a_task_that_is_taken_from_a_healthy_worker() -> None:
    """It counts unless the worker was unfit then, had never begun it, or its handler had ended."""
    back = Change(1, "running", "waiting", 0, None, 5.0, dispatch=1, holder=A)
    changes = [*GOOD[:2], back, *history(1, ("queued", B, 6), ("running", B, 7), ("completed", B, 8))[1:]]
    first, second = Run(1, 1, 1, 1, 2.0, 9.0), Run(1, 2, 1, 2, 7.0, 7.9)

    def found(*runs: Run, unfit: Sequence[Unfit] = ()) -> set[str]:
        return judge(changes, [DONE], runs, ("k1", 1), unfit=unfit) - {"run_twice", "illegal_moves"}

    assert found(first, second) == {"taken", "at_once"}
    assert found(first._replace(until=None), second) == {"taken", "at_once"}
    assert found(first._replace(until=4.9), second) == set()
    assert found(second) == set()
    assert found(first, second, unfit=[Unfit(1, 4.0)]) == set()
    assert found(first, second, unfit=[Unfit(1, 4.0, 4.5)]) == {"taken"}
    assert found(first, second, unfit=[Unfit(2, 4.0)]) == {"taken"}


def test_a_task_that_is_marked_as_running() -> None:
    """It is not taken from its worker, unless another worker gets it."""
    queued, running, completed = GOOD
    running = running._replace(at=2.3, holder=A)
    assert judge([queued, running, completed], [DONE], [RAN], ("k1", 1)) == set()
    assert judge([queued, running._replace(worker=B), completed], [DONE], [RAN], ("k1", 1)) == {"taken"}


def test_runs_at_once() -> None:
    """A long run overlaps with each later one."""
    runs = [Run(1, 1, 1, 1, 0.0, 100.0), Run(1, 2, 1, 2, 1.0, 2.0), Run(1, 3, 1, 2, 50.0, None)]
    assert len(at_once(runs, [])) == 2
    assert len(at_once(runs, [Unfit(1, 2.0, 60.0)])) == 1
    assert at_once(runs[1:], []) == []


def test_every_spent_attempt_has_a_culprit() -> None:
    """The culprit, the only suspect, the fourth loss and an only attempt are explained."""
    lost = Change(
        1, "running", "waiting", 1, None, 5.0, 1, A, spent=True, lost=True, losses=1, max_attempts=3, xact="7"
    )
    beside = lost._replace(task_id=2)
    named = WorkerChange(A, "gone", None, 1, 1, "killed", 4.9)

    def found(*changes: Change, workers: Sequence[WorkerChange] = ()) -> bool:
        return "unexplained" in judge(changes, [], [], workers=workers)

    assert not found(lost)
    assert not found(lost, beside._replace(spent=False, losses=0))
    assert found(lost, beside._replace(spent=False))
    assert found(lost._replace(losses=0))
    assert not found(lost._replace(losses=3), beside._replace(spent=False))
    assert not found(lost._replace(losses=0, max_attempts=1))
    assert not found(lost, beside._replace(spent=False), workers=[named])
    assert found(lost._replace(dispatch=2), workers=[named])
    assert found(beside, workers=[named])


def test_how_soon_tasks_of_a_killed_worker_run_again() -> None:
    """The tasks that it had at its death count, also those that it got or finished a moment later."""
    changes = [
        *history(
            1, ("queued", A, 1), ("running", A, 2), ("waiting", None, 11), ("queued", B, 11.5), ("completed", B, 12)
        ),
        # never again
        *history(2, ("queued", A, 1), ("running", A, 2), ("waiting", None, 13)),
        # assigned after the death, before anybody knew of it
        *history(3, ("queued", A, 10.1), ("waiting", None, 13), ("queued", B, 14)),
        # finished by a statement that arrived after the death
        *history(4, ("queued", A, 1), ("completed", A, 10.1)),
        # given back before the death
        *history(5, ("queued", A, 1), ("running", A, 2), ("waiting", None, 5), ("queued", B, 6)),
        *history(6, ("queued", B, 1), ("running", B, 2), ("completed", B, 30)),
    ]
    assert [round(seconds, 3) for seconds in run_again(changes, [Killed(1, 10.0)])] == [1.5, 4.0, float("inf")]


def test_how_soon_handlers_of_a_killed_worker_begin_again() -> None:
    """What had ended before, and what another worker ran, does not count."""
    runs = [
        Run(1, 1, 1, 1, 2.0, None),
        Run(2, 1, 1, 1, 2.0, 9.0),
        Run(3, 1, 1, 1, 2.0, 20.0),
        Run(4, 1, 1, 2, 2.0, None),
        Run(1, 2, 1, 2, 11.5, 12.0),
        Run(2, 2, 1, 2, 12.0, 13.0),
    ]
    assert begun_again(runs, [Killed(1, 10.0)]) == [1.5, float("inf")]
