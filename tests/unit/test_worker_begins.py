"""When and in which order a worker begins what it has found, and what it tells the store of it."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.logger import LogEvent

from taskd.model.tasks import NewTask
from taskd.ports.attempts import Held
from tests.unit.worker_stage import KINDS, Stage, events, stage

__all__ = ["events", "stage"]


# -- slots


def test_a_newcomer_is_next_however_much_of_others_waits(stage: Stage) -> None:
    worker = stage.worker(2)
    many = stage.simulate(0.5, 50)
    [newcomer] = stage.simulate(0.5, user=2)
    stage.advance(0.6)
    assert newcomer in stage.begun(worker) and len(stage.begun(worker)) == 4
    assert stage.begun(worker)[:2] == many[:2]


def test_users_take_turns(stage: Stage) -> None:
    worker = stage.worker(1)
    specs = [NewTask(user, "t", payload='{"seconds":0.1}') for user in (1, 1, 1, 2, 2, 3)]
    a1, a2, a3, b1, b2, c1 = stage.submit(*specs)
    stage.advance(0.9)
    assert stage.begun(worker) == [a1, b1, c1, a2, b2, a3]


def test_next_is_the_user_with_the_fewest_slots(stage: Stage) -> None:
    worker = stage.worker(3)
    stage.simulate(100, 2)
    stage.simulate(0.4, user=2)
    [mine] = stage.simulate(1)
    [other] = stage.simulate(1, user=3)
    stage.advance(0.5)
    assert other in stage.begun(worker) and mine not in stage.begun(worker)


def test_slots_follow_weights(stage: Stage) -> None:
    stage.sql("UPDATE users SET weight = 3 WHERE id = 2")
    worker = stage.worker(8)
    stage.simulate(0.3, 8)
    first, second = stage.simulate(100, 20), stage.simulate(100, 20, user=2)
    stage.advance(5)
    begun = set(stage.begun(worker))
    assert (len(begun & set(first)), len(begun & set(second))) == (2, 6)


def test_a_burst_of_handlers_that_wait_for_nothing_leaves_the_reactor_time(stage: Stage) -> None:
    """Each takes 4 ms of the reactor here, so that no more than three run at a stretch."""

    def work(clock: Clock, task: object) -> None:
        clock.rightNow += 0.004

    worker = stage.worker(100, kinds={"work": work})
    others: list[int] = []

    def other() -> None:
        others.append(len(stage.begun(worker)))
        if len(others) < 10:
            stage.clock.callLater(0, other)

    ids = stage.submit(*[NewTask(1, "t", "work")] * 20, advance=False)
    stage.clock.callLater(0, other)
    stage.advance(0.5)
    assert stage.begun(worker) == ids
    assert 3 in others and 6 in others, others


def test_a_handler_that_ends_another_one_lets_the_next_begin(stage: Stage) -> None:
    waiting: list[Deferred[None]] = []

    def wait(clock: Clock, task: object) -> object:
        waiting.append(deferLater(clock, 1000))
        return waiting[-1].addErrback(lambda _: None)

    worker = stage.worker(2, kinds={"wait": wait, "end": lambda clock, task: waiting.pop(0).cancel()})
    first = stage.submit(NewTask(1, "t", "wait"))
    more = stage.submit(NewTask(1, "t", "end"), NewTask(1, "t", "wait"), NewTask(1, "t", "wait"))
    assert stage.begun(worker) == [*first, *more]
    assert stage.running(worker) == more[1:]


# -- what waits too long


def test_what_has_not_begun_after_a_second_goes_back_unspent(stage: Stage) -> None:
    worker = stage.worker(1)
    [first] = stage.simulate(100)
    ids = stage.simulate(100, 2)
    stage.advance(0.9)
    assert stage.states(ids) == [("queued", 1)] * 2
    stage.advance(0.4)
    assert stage.states(ids) == [("waiting", 0)] * 2 and stage.workers(ids) == [None, None]
    assert stage.changes[-2:] == [(n, "waiting") for n in ids]
    assert stage.running(worker) == [first] and worker.busy == 1


def test_what_runs_or_begins_in_time_does_not_go_back(stage: Stage) -> None:
    worker = stage.worker(1)
    ids = [*stage.simulate(0.8), *stage.simulate(3)]
    stage.advance(4.5)
    assert stage.states(ids) == [("completed", 1)] * 2 and stage.begun(worker) == ids


def test_nothing_goes_back_while_no_beat_is_accepted(stage: Stage) -> None:
    """Every other worker has the same store, and to give all back after an outage helps nobody."""
    worker = stage.worker(1)
    stage.store.away = {"beat"}
    stage.advance(2)
    ids = [*stage.simulate(3), *stage.simulate(3)]
    stage.store.away = {"beat", "look", "standing", "finish", "release", "begin"}
    stage.advance(10)
    assert "release" not in stage.store.calls
    stage.store.away = set()
    stage.advance(2)
    assert stage.states(ids) == [("completed", 1), ("running", 1)] and stage.begun(worker) == ids


# -- beats, and whether anything may begin


def test_nothing_begins_while_no_beat_is_accepted(stage: Stage) -> None:
    worker = stage.worker()
    stage.store.away = {"beat"}
    stage.advance(1)
    early = stage.simulate(0)
    assert stage.begun(worker) == early, "the last beat is young enough"
    stage.advance(2)
    late = stage.simulate(0)
    stage.advance(3)
    assert stage.begun(worker) == early
    stage.store.away = set()
    stage.advance(1.1)
    assert stage.begun(worker) == early + late


def test_a_beat_counts_from_when_it_was_sent(stage: Stage) -> None:
    worker = stage.worker()
    stage.advance(0.9)
    answer = stage.store.delay("beat")
    stage.advance(0.2)
    assert stage.store.calls[-1] == "beat"
    stage.advance(2.6)
    stage.store.away = {"beat"}
    answer.callback(None)
    [task] = stage.simulate(0)
    assert stage.begun(worker) == []
    stage.store.away = set()
    stage.advance(1.1)
    assert stage.begun(worker) == [task]


def test_what_was_running_runs_on_while_no_beat_is_accepted(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.simulate(6)
    stage.store.away = {"beat"}
    stage.advance(6.1)
    assert stage.states([task]) == [("completed", 1)] and stage.begun(worker) == [task]


# -- begins that are stored first


@pytest.mark.parametrize("how", ["losses", "one attempt"])
def test_a_begin_that_matters_is_stored_before_the_handler_runs(stage: Stage, how: str) -> None:
    worker = stage.worker()
    begin = stage.store.hold("begin")
    spec = NewTask(1, "t", payload='{"seconds":2}', max_attempts=1 if how == "one attempt" else 3)
    [task] = stage.submit(spec, losses=1 if how == "losses" else 0)
    stage.advance(0.5)
    assert stage.begun(worker) == [] and stage.states([task]) == [("queued", 1)]
    begin.callback(None)
    stage.advance(0)
    assert stage.begun(worker) == [task] and stage.states([task]) == [("running", 1)]
    assert stage.changes == [(task, "running")]
    assert [args[2] for name, args in stage.store.arguments if name == "begin"] == [True]
    stage.advance(2.1)
    assert stage.changes == [(task, "running"), (task, "completed")]
    assert stage.store.count("begin") == 1, "it is not marked again"


def test_other_tasks_begin_without_it(stage: Stage) -> None:
    worker = stage.worker()
    stage.store.away = {"begin"}
    [task] = stage.submit(NewTask(1, "t", max_attempts=2))
    assert stage.begun(worker) == [task]


@pytest.mark.parametrize("trouble", ["away", "answer_lost", "broken"])
def test_a_begin_is_stored_again_until_it_is_answered(stage: Stage, events: list[LogEvent], trouble: str) -> None:
    worker = stage.worker()
    setattr(stage.store, trouble, {"begin"})
    [task] = stage.submit(NewTask(1, "t", payload='{"seconds":100}', max_attempts=1))
    stage.advance(3)
    assert stage.begun(worker) == []
    setattr(stage.store, trouble, set())
    stage.advance(1.1)
    assert stage.begun(worker) == [task] and stage.changes == [(task, "running")]


def test_a_begin_that_is_answered_too_late_is_stored_again(stage: Stage) -> None:
    """The worker may count as dead by now."""
    worker = stage.worker()
    answer = stage.store.delay("begin")
    stage.store.away = {"beat"}
    [task] = stage.submit(NewTask(1, "t", payload='{"seconds":100}', max_attempts=1))
    stage.advance(4)
    answer.callback(None)
    stage.advance(2)
    assert stage.begun(worker) == []
    stage.store.away = set()
    stage.advance(2.1)
    assert stage.begun(worker) == [task]


def test_what_was_taken_back_before_its_begin_is_stored_never_runs(stage: Stage) -> None:
    worker = stage.worker()
    begin = stage.store.hold("begin")
    [task] = stage.submit(NewTask(1, "t", max_attempts=1))
    stage.done(stage.real_store.release("w", [Held(task, 1)]))
    stage.store.away = {"beat"}
    begin.callback(None)
    stage.advance(1.1)
    assert (stage.begun(worker), worker.busy, stage.states([task])) == ([], 0, [("waiting", 0)])


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_cancelled_while_its_begin_is_stored_is_dropped(stage: Stage, when: str) -> None:
    worker = stage.worker(1)
    begin = stage.store.hold("begin") if when == "before" else stage.store.delay("begin")
    [task] = stage.submit(NewTask(1, "t", max_attempts=1))
    stage.cancel(task)
    begin.callback(None)
    stage.advance(1.1)
    assert (stage.begun(worker), worker.busy, stage.held()) == ([], 0, [])
    assert stage.states(stage.simulate(0)) == [("completed", 1)], "its slot is free"


def test_what_is_fenced_while_its_begin_is_stored_does_not_run(stage: Stage) -> None:
    worker = stage.worker(1)
    answer = stage.store.delay("begin")
    [task] = stage.submit(NewTask(1, "t", max_attempts=1))
    stage.fence()
    stage.advance(1.1)
    answer.callback(None)
    stage.advance(2)
    assert (worker.name, stage.begun(worker), worker.busy) == ("w2", [], 0)
    assert stage.states(stage.simulate(0, worker="w2")) == [("completed", 1)], "its slot is free"
    assert stage.states([task])[0][0] in ("waiting", "failed")


def test_drain_runs_what_was_just_begun_and_gives_it_back_when_the_grace_is_over(stage: Stage) -> None:
    worker = stage.worker()
    answer = stage.store.delay("begin")
    [task] = stage.submit(NewTask(1, "t", payload='{"seconds":100}', max_attempts=1))
    ended = stage.drain(worker, 3)
    assert not ended
    answer.callback(None)
    stage.advance(1)
    assert stage.running(worker) == [task]
    stage.advance(3)
    assert ended and stage.states([task]) == [("waiting", 0)]


# -- marks


def test_a_task_is_marked_once_it_has_run_for_a_quarter_of_a_second(stage: Stage) -> None:
    stage.worker()
    [task] = stage.simulate(2)
    stage.advance(0.2)
    assert stage.states([task]) == [("queued", 1)] and stage.changes == []
    stage.advance(0.1)
    [found] = stage.tasks([task])
    assert found.state.value == "running" and stage.changes == [(task, "running")]
    assert found.started_at is not None
    assert (stage.real_store.now() - found.started_at).total_seconds() == pytest.approx(0.3, abs=0.03)
    stage.advance(2)
    assert [args[2] for name, args in stage.store.arguments if name == "begin"] == [False]
    assert stage.versions == [(task, 2), (task, 3)]


def test_what_ends_sooner_is_never_marked(stage: Stage) -> None:
    stage.worker()
    [task] = stage.simulate(0.2)
    stage.advance(2)
    assert "begin" not in stage.store.calls
    assert stage.changes == [(task, "completed")]
    assert stage.versions == [(task, 3)], "as if it had been marked"


def test_many_are_marked_at_a_time(stage: Stage) -> None:
    stage.worker(100)
    ids = [n for _ in range(20) for n in stage.simulate(5, 2)]
    stage.advance(1)
    assert stage.states(ids) == [("running", 1)] * 40
    assert stage.store.count("begin") <= 4


def test_marks_wait_for_a_store_that_is_away(stage: Stage) -> None:
    stage.worker()
    stage.store.away = {"begin"}
    [task] = stage.simulate(5)
    stage.advance(2)
    assert stage.store.count("begin") == 2
    stage.store.away = set()
    stage.advance(1)
    assert stage.states([task]) == [("running", 1)]


def test_a_mark_that_is_answered_after_the_end_is_not_announced(stage: Stage) -> None:
    stage.worker()
    answer = stage.store.delay("begin")
    [task] = stage.simulate(0.5)
    stage.advance(1)
    answer.callback(None)
    stage.advance(1)
    assert stage.changes == [(task, "completed")]


UNDO = "UPDATE tasks SET state = 'queued', started_at = NULL, version = version - 1 WHERE state = 'running'"


def test_a_mark_that_a_crash_of_the_database_undid_does_no_harm(stage: Stage) -> None:
    stage.worker()
    [task] = stage.simulate(2)
    stage.advance(1)
    stage.sql(UNDO)
    stage.advance(1.5)
    assert stage.states([task]) == [("completed", 1)]
    assert stage.versions == [(task, 2), (task, 3)]


def test_after_an_outage_everything_that_runs_is_marked_again(stage: Stage) -> None:
    stage.worker()
    [task] = stage.simulate(100)
    stage.advance(1)
    stage.store.away = {"beat"}
    stage.advance(2)
    stage.sql(UNDO)
    stage.store.away = set()
    stage.advance(1.5)
    assert stage.states([task]) == [("running", 1)]
    assert stage.changes == [(task, "running")], "which is no news"


# -- how long tasks take


def test_beats_say_how_long_tasks_of_each_user_and_kind_take(stage: Stage) -> None:
    stage.worker()
    stage.simulate(0.2, 4)
    stage.simulate(0.4, 2, user=2)
    stage.kind("echo")
    stage.advance(2)
    means = stage.means()
    assert means.keys() == {(1, "simulate"), (2, "simulate"), (1, "echo")}
    assert means[1, "simulate"] == pytest.approx(0.2, abs=0.05)
    assert means[2, "simulate"] == pytest.approx(0.4, abs=0.05)
    assert means[1, "echo"] == pytest.approx(0, abs=0.01)


def test_tasks_that_become_long_show_before_they_end(stage: Stage) -> None:
    stage.worker()
    stage.simulate(0.1, 10)
    stage.advance(1)
    stage.simulate(100, 10)
    stage.advance(5)
    # ends of 0.1 s count less with every beat; what runs has run for nearly 5 s
    assert 1.5 < stage.means()[1, "simulate"] < 4.9


def test_of_a_kind_of_which_nothing_has_ended_only_long_tasks_say_something(stage: Stage) -> None:
    stage.worker()
    stage.simulate(100)
    stage.advance(0.9)
    assert stage.means() == {}
    stage.advance(3)
    assert stage.means()[1, "simulate"] >= 2


def test_ends_are_forgotten_after_a_minute(stage: Stage) -> None:
    stage.worker()
    stage.simulate(0.1)
    stage.advance(50)
    assert stage.means()
    stage.advance(15)
    assert stage.means() == {}


def test_older_ends_weigh_less(stage: Stage) -> None:
    stage.worker(100)
    for _ in range(20):
        stage.simulate(0.2, 100)
        stage.advance(0.3)
    for _ in range(20):
        stage.simulate(0, 100)
    stage.advance(1.1)
    assert stage.means()[1, "simulate"] < 0.08


# -- suspects


def suspects(
    stage: Stage, losses: int, count: int, kind: str = "simulate", payload: str = '{"seconds":100}'
) -> list[int]:
    """Submit tasks that have been lost so often."""
    return stage.submit(*[NewTask(1, "t", kind, payload)] * count, losses=losses)


def test_few_suspects_run_at_a_time_the_more_often_they_were_lost(stage: Stage) -> None:
    worker = stage.worker(64)
    once = suspects(stage, 1, 20)
    assert len(stage.running(worker)) == 16
    twice = suspects(stage, 2, 2)
    stage.advance(1)
    assert not set(twice) & set(stage.running(worker)), "all places of suspects are taken"
    assert stage.states(once[:16]) == [("running", 1)] * 16
    assert stage.states([*once[16:], *twice]) == [("queued", 1)] * 6, "they are held, and have not begun"


def test_of_those_lost_three_times_one_runs_at_a_time(stage: Stage) -> None:
    worker = stage.worker(100)
    ids = suspects(stage, 3, 3, payload='{"seconds":2}')
    fresh = stage.simulate(100, 20)
    assert stage.running(worker) == [ids[0], *fresh]
    stage.advance(2.2)
    assert stage.running(worker) == [ids[1], *fresh]
    stage.advance(2.2)
    assert stage.states(ids) == [("completed", 1), ("completed", 1), ("running", 1)]


def test_a_suspect_runs_without_a_place_after_five_seconds(stage: Stage) -> None:
    worker = stage.worker(4)
    ids = suspects(stage, 2, 3)
    stage.advance(4.8)
    assert stage.running(worker) == ids[:1]
    stage.advance(0.5)
    assert stage.running(worker) == ids


def test_a_suspect_that_waits_takes_no_slot_and_is_first_when_one_is_free(stage: Stage) -> None:
    worker = stage.worker(2)
    first, second = suspects(stage, 1, 2)
    [short] = stage.simulate(5.5)
    stage.advance(5.1)
    [more] = stage.simulate(100)
    assert stage.running(worker) == [first, short], "no slot is free"
    stage.advance(0.6)
    assert stage.running(worker) == [first, second] and stage.states([more]) == [("queued", 1)]


def test_a_suspect_that_gets_no_slot_after_its_wait_goes_back(stage: Stage) -> None:
    worker = stage.worker(2)
    ids = suspects(stage, 1, 2)
    stage.simulate(100)
    stage.advance(5.5)
    assert stage.states(ids) == [("running", 1), ("queued", 1)]
    stage.advance(1)
    assert stage.states(ids) == [("running", 1), ("waiting", 0)] and worker.busy == 2


def test_suspects_on_the_reactor_and_in_threads_share_the_places(stage: Stage) -> None:
    worker = stage.worker(4, threads=4)
    [one] = suspects(stage, 3, 1)
    [other] = suspects(stage, 3, 1, kind="threaded", payload="{}")
    stage.advance(0.1)
    assert stage.running(worker) == [one] and stage.held() == [one, other]


def test_a_waiting_suspect_that_is_cancelled_is_forgotten(stage: Stage) -> None:
    worker = stage.worker(4)
    ids = suspects(stage, 1, 2)
    stage.cancel(ids[1])
    assert (worker.busy, stage.running(worker), stage.held()) == (1, ids[:1], ids[:1])
    stage.advance(6)
    assert stage.running(worker) == ids[:1]
    more = stage.simulate(100, 3)
    assert stage.running(worker) == [ids[0], *more], "it takes no slot"


def test_a_suspect_that_hangs_keeps_its_place(stage: Stage) -> None:
    """Its outcome is stored, but it may still kill the worker."""
    kinds = {**KINDS, "hangs": lambda clock, task: deferLater(clock, 1000).addErrback(lambda _: deferLater(clock, 40))}
    worker = stage.worker(4, kinds=kinds)
    [task] = stage.submit(NewTask(1, "t", "hangs", timeout=1.0, max_attempts=1), losses=3)
    stage.advance(7)
    assert stage.states([task]) == [("failed", 1)] and stage.running(worker) == [task]
    [next_one] = suspects(stage, 3, 1)
    stage.advance(1)
    assert stage.running(worker) == [task]
    stage.advance(4.5)
    assert stage.running(worker) == [task, next_one]


def test_a_suspect_does_not_begin_while_no_beat_is_accepted(stage: Stage) -> None:
    worker = stage.worker(4)
    ids = suspects(stage, 1, 2, payload='{"seconds":3}')
    stage.store.away = {"beat"}
    stage.advance(4)
    assert stage.begun(worker) == ids[:1]
    stage.store.away = set()
    stage.advance(2)
    assert stage.begun(worker) == ids


def test_drain_gives_waiting_suspects_back_unspent(stage: Stage) -> None:
    worker = stage.worker(4)
    ids = suspects(stage, 1, 2, payload='{"seconds":2}')
    ended = stage.drain(worker, 10)
    assert stage.states(ids) == [("running", 1), ("waiting", 0)]
    stage.advance(2)
    assert ended and stage.states(ids) == [("completed", 1), ("waiting", 0)]
