"""How a worker finds what is assigned to it, and notices what is not its own any more."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from twisted.logger import LogEvent

from taskd.model.tasks import NewTask
from taskd.ports.attempts import Held
from taskd.ports.workers import Beaten, WorkerState
from taskd.worker.looks import LOOKED_TASKS
from tests.unit.worker_stage import RecordingBoard, Stage, events, notes, stage

__all__ = ["events", "stage"]


# -- looks


def test_an_idle_worker_does_one_transaction_a_second(stage: Stage) -> None:
    stage.worker()
    stage.advance(3)
    stage.store.calls.clear()
    stage.advance(10)
    assert stage.store.calls == ["beat"] * 10


def test_a_lost_hint_costs_a_second(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.simulate(100, hint=False)
    stage.advance(1.1)
    assert stage.running(worker) == [task]


def test_hints_while_a_look_is_under_way_are_one_more_look(stage: Stage) -> None:
    worker = stage.worker()
    answer = stage.store.delay("look")
    first = stage.simulate(100)
    stage.store.calls.clear()
    second = [stage.simulate(100)[0] for _ in range(5)]
    assert stage.store.count("look") == 0
    answer.callback(None)
    stage.advance(0)
    assert stage.store.count("look") == 1 and stage.running(worker) == [*first, *second]


def test_several_hints_of_one_turn_are_one_look(stage: Stage) -> None:
    stage.worker()
    stage.store.calls.clear()
    for _ in range(5):
        stage.simulate(0, advance=False)
    stage.advance(0)
    assert stage.store.count("look") == 1


def test_a_look_that_brought_something_is_followed_by_another_one(stage: Stage) -> None:
    worker = stage.worker()
    [first] = stage.simulate(100)
    [second] = stage.simulate(100, hint=False)
    stage.advance(0.12)
    assert stage.running(worker) == [first, second]
    stage.store.calls.clear()
    stage.advance(0.8)
    assert stage.store.count("look") == 1, "the last one brought nothing"


def test_more_tasks_than_one_look_brings_are_read_as_slots_are_free(stage: Stage) -> None:
    stage.worker(100)
    stage.store.calls.clear()
    ids = stage.simulate(0, 1300)
    assert {s for s, _ in stage.states(ids)} == {"completed"}, "within milliseconds"
    assert stage.store.count("look") == 3


def test_settled_tasks_do_not_hide_the_others(stage: Stage) -> None:
    """More than a look brings: their ends are lost, because the database has gone on from an older state."""
    worker = stage.worker(1000)
    ids = stage.simulate(0, LOOKED_TASKS)
    assert {s for s, _ in stage.states(ids)} == {"completed"}
    stage.sql("UPDATE tasks SET state = 'queued', held = true, finished_at = NULL, result = NULL")
    stage.store.calls.clear()
    [last] = stage.simulate(100)
    stage.advance(0.05)
    assert stage.store.count("look") == 1
    stage.advance(4)
    assert stage.running(worker) == [last]
    assert {s for s, _ in stage.states(ids)} == {"waiting"}


def test_no_more_is_read_while_the_slots_are_taken(stage: Stage) -> None:
    worker = stage.worker(2)
    ids = stage.simulate(0.05, 600)
    stage.store.calls.clear()
    stage.advance(0.05)
    assert stage.store.count("look") == 0
    stage.advance(0.2)
    assert stage.store.count("look") == 2
    stage.advance(20)
    assert len(stage.begun(worker)) == len(set(stage.begun(worker))) and set(stage.begun(worker)) <= set(ids)


def test_large_payloads_are_not_all_read_at_once(stage: Stage) -> None:
    worker = stage.worker(100)
    ids = stage.submit(*[NewTask(1, "t", "echo", f'{{"a":"{"x" * 240_000}"}}')] * 40)
    assert stage.begun(worker) == ids and stage.store.count("look") >= 3


def test_without_the_broker_new_work_is_found_all_the_same(stage: Stage) -> None:
    worker = stage.worker()
    stage.done(stage.broker.stop())
    stage.simulate(0, hint=False)
    stage.advance(0.6)
    stage.store.calls.clear()
    [task] = stage.simulate(100)
    stage.advance(0.12)
    assert stage.running(worker) == [task], "soon after other work"
    stage.advance(5)
    assert 40 < stage.store.count("look") <= 55
    # a quiet worker looks less often
    stage.advance(10)
    stage.store.calls.clear()
    stage.advance(10)
    assert 18 <= stage.store.count("look") <= 22
    [task2] = stage.simulate(100)
    stage.advance(0.6)
    assert stage.running(worker) == [task, task2]


def test_without_the_broker_a_full_worker_looks_less_often(stage: Stage) -> None:
    stage.worker(1)
    stage.done(stage.broker.stop())
    stage.simulate(100)
    stage.advance(1)
    stage.store.calls.clear()
    stage.advance(5)
    assert stage.store.count("look") <= 12


def test_when_hints_can_arrive_again_the_worker_looks_at_once(stage: Stage) -> None:
    worker = stage.worker()
    stage.done(stage.broker.stop())
    stage.advance(15)
    [task] = stage.simulate(100, hint=False)
    stage.done(stage.broker.start())
    stage.advance(0)
    assert stage.running(worker) == [task]


def test_looks_survive_any_error(stage: Stage, events: list[LogEvent]) -> None:
    worker = stage.worker()
    stage.store.broken = {"look"}
    [task] = stage.simulate(100)
    stage.advance(3)
    errors = [event for event in events if "log_failure" in event]
    assert 1 <= len(errors) <= 6
    stage.store.broken = set()
    stage.advance(2)
    assert stage.running(worker) == [task]


def test_a_store_that_is_away_is_told_once_and_looked_at_when_it_is_back(stage: Stage, events: list[LogEvent]) -> None:
    worker = stage.worker()
    stage.store.away = {"look", "standing", "beat"}
    [task] = stage.simulate(100)
    stage.advance(8)
    stage.store.away = set()
    stage.advance(1.1)
    assert stage.running(worker) == [task]
    assert len([note for note in notes(events) if "cannot see" in note]) == 1


# -- answers that come late


def test_an_answer_that_is_older_than_the_end_of_a_task_begins_nothing(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.simulate(0, hint=False)
    old = stage.found()
    stage.advance(1.1)
    assert stage.states([task]) == [("completed", 1)]
    stage.store.answer_once("look", old)
    stage.broker.hint(["w"])
    stage.advance(20)
    assert stage.begun(worker) == [task] and worker.busy == 0


def test_an_answer_that_is_older_than_a_give_back_begins_nothing(stage: Stage) -> None:
    worker = stage.worker(1)
    stage.simulate(100)
    [task] = stage.simulate(100, hint=False)
    old = stage.found()
    stage.advance(2.5)
    assert stage.states([task]) == [("waiting", 0)]
    stage.runner_of(worker).begun.clear()
    stage.store.answer_once("look", [one for one in old if one.task.id == task])
    stage.broker.hint(["w"])
    stage.advance(110)
    assert stage.begun(worker) == []


def test_the_same_task_begins_again_under_its_next_dispatch(stage: Stage) -> None:
    worker = stage.worker(1)
    stage.simulate(5)
    [task] = stage.simulate(0)
    stage.advance(1.5)
    assert stage.states([task]) == [("waiting", 0)]
    stage.advance(4)
    assert stage.assign_again() == [task]
    assert stage.runner_of(worker).begun[-1] == (task, 2) and stage.states([task]) == [("completed", 1)]


def test_a_give_back_whose_answer_is_lost_is_final_here(stage: Stage) -> None:
    worker = stage.worker(1)
    [first] = stage.simulate(4)
    stage.store.away = {"release"}
    [task] = stage.simulate(0)
    stage.advance(8)
    assert stage.begun(worker) == [first] and stage.states([task]) == [("queued", 1)]
    stage.store.away = set()
    stage.advance(2)
    assert stage.begun(worker) == [first] and stage.states([task]) == [("waiting", 0)]


# -- the database has gone on from an older state


def test_a_worker_says_what_it_holds(stage: Stage) -> None:
    """An assignment that is lost is made again; a task that is lost is stopped."""
    worker = stage.worker(2)
    kept, lost = stage.simulate(100, 2)
    stage.advance(1.9)
    [waits] = stage.simulate(100)
    assert stage.running(worker) == [kept, lost] and stage.states([kept]) == [("running", 1)]
    stage.sql(f"DELETE FROM tasks WHERE id = {lost}")
    stage.sql(f"""
        UPDATE tasks SET state = 'waiting', held = false, worker = NULL, dispatch = 0, attempt = 0, started_at = NULL,
            version = 1 WHERE id IN ({kept}, {waits})
    """)
    stage.store.answer_once("beat", Beaten(True, False, asserted=False))
    stage.advance(0.5)
    assert stage.running(worker) == [kept, waits]
    assert stage.states([kept, waits]) == [("running", 1)] * 2
    assert stage.workers([kept, waits]) == ["w"] * 2
    stage.advance(110)
    assert stage.states([kept, waits]) == [("completed", 1)] * 2 and worker.busy == 0
    assert stage.begun(worker) == [kept, lost, waits], "no handler is called twice"


def test_a_worker_that_cannot_say_it_says_it_with_its_next_beat(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.simulate(100)
    stage.advance(1.1)
    stage.store.away = {"assert_held"}
    for n in range(2):
        stage.store.answer_once("beat", Beaten(True, False, asserted=False))
        stage.advance(1)
        assert stage.store.count("assert_held") == n + 1
        stage.store.away = set()
    assert stage.running(worker) == [task] and stage.states([task]) == [("running", 1)]


# -- fenced


def test_a_fenced_worker_stops_its_attempts_and_goes_on_under_another_name(stage: Stage) -> None:
    board = RecordingBoard()
    worker = stage.worker(board=board)
    ids = stage.simulate(100, 3)
    stage.advance(0.5)
    assert [t.id for t in stage.fence()] == ids
    stage.advance(1.1)
    assert (worker.name, worker.busy, board.names) == ("w2", 0, ["w", "w2"])
    assert stage.status("w2").state is WorkerState.SERVING
    assert stage.worker_changes == 2
    stage.assign_again("w2")
    assert stage.workers(ids) == ["w2"] * 3
    # now they are suspects, and the third one waits for a place
    stage.advance(106)
    assert stage.states(ids) == [("completed", 1)] * 3


def test_an_outcome_and_reports_under_a_fenced_name_are_dropped(stage: Stage) -> None:
    worker = stage.worker()
    stage.store.away = {"finish", "report"}
    [silent] = stage.simulate(0)
    task = stage.kind("talk", '{"seconds":0}')
    stage.advance(0.5)
    assert worker.busy == 2
    stage.fence()
    stage.advance(1.5)
    stage.store.away = set()
    stage.store.calls.clear()
    stage.advance(3)
    assert "finish" not in stage.store.calls and "release" not in stage.store.calls
    assert stage.states([silent, task]) == [("waiting", 0)] * 2 and worker.busy == 0
    assert stage.done(stage.real_store.read_log(task, None, 10)) == []


def test_an_answer_for_a_fenced_name_begins_nothing(stage: Stage) -> None:
    worker = stage.worker()
    answer = stage.store.delay("look")
    [task] = stage.simulate(3)
    stage.fence()
    stage.advance(1.1)
    assert worker.name == "w2"
    answer.callback(None)
    stage.advance(1)
    assert (stage.begun(worker), stage.states([task])) == ([], [("waiting", 0)])


def test_a_hint_for_a_fenced_name_is_not_received(stage: Stage) -> None:
    stage.worker()
    stage.fence()
    stage.advance(3)
    stage.store.calls.clear()
    stage.broker.hint(["w"], orders=True)
    stage.advance(0)
    assert stage.store.calls == []
    stage.broker.hint(["w2"])
    stage.advance(0)
    assert stage.store.calls == ["look"]


def test_what_waited_under_a_fenced_name_does_not_begin(stage: Stage) -> None:
    worker = stage.worker(1)
    first = stage.simulate(100)
    stage.simulate(0)
    stage.fence()
    stage.advance(3)
    assert (stage.begun(worker), worker.busy) == (first, 0)


def test_a_task_does_not_begin_while_its_former_attempt_still_runs_here(stage: Stage) -> None:
    worker = stage.worker()
    task = stage.kind("stubborn", max_attempts=9)
    stage.fence()
    stage.advance(1.2)
    assert (worker.name, stage.running(worker)) == ("w2", [task])
    stage.assign_again("w2", ["stubborn"])
    stage.advance(0.5)
    assert stage.begun(worker) == [task] and stage.states([task]) == [("queued", 1)]
    # the handler ends 3 s after its cancellation; others may have it before
    stage.advance(2.3)
    assert stage.begun(worker) == [task] and stage.states([task]) == [("waiting", 0)]
    stage.advance(1)
    stage.assign_again("w2", ["stubborn"])
    stage.advance(0.1)
    assert stage.begun(worker) == [task, task]


def test_a_worker_fenced_while_it_drains_ends_without_a_new_registration(stage: Stage) -> None:
    worker = stage.worker()
    task = stage.kind("stubborn")
    ended = stage.drain(worker, 60)
    stage.fence()
    stage.advance(3)
    assert not ended, "the handler ignores its cancellation for a while"
    stage.advance(4)
    assert ended and stage.states([task]) == [("waiting", 0)]
    assert [s.info.name for s in stage.done(stage.real_store.poll_workers()).workers] == ["w"]
    assert stage.store.count("register") == 1


# -- what is to be stopped


def test_an_order_stops_a_cancelled_task(stage: Stage) -> None:
    worker = stage.worker()
    [task, other] = stage.simulate(100, 2)
    stage.cancel(task)
    assert stage.running(worker) == [other]
    assert stage.states([task, other]) == [("cancelled", 1), ("queued", 1)]
    assert stage.held() == [other], "the place of the cancelled task is free"


def test_servers_hear_when_a_cancelled_task_leaves_its_slot(stage: Stage) -> None:
    """They heard of the cancellation when its handler still ran."""
    stage.worker()
    task = stage.kind("stubborn")
    stage.cancel(task)
    assert stage.routes == []
    stage.advance(3.1)
    assert stage.routes == [("tasks", "stubborn")]


def test_without_its_order_a_cancelled_task_is_stopped_within_a_second(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.simulate(100)
    stage.advance(2)
    stage.cancel(task, hint=None)
    stage.advance(1.1)
    assert (stage.running(worker), worker.busy, stage.held()) == ([], 0, [])


def test_a_task_that_is_cancelled_before_it_is_found_never_begins(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.simulate(100, hint=False)
    stage.cancel(task)
    stage.advance(1)
    assert (stage.begun(worker), stage.held()) == ([], [])


def test_a_task_that_is_cancelled_while_it_waits_here_never_begins(stage: Stage) -> None:
    worker = stage.worker(1)
    [first] = stage.simulate(0.3)
    [task] = stage.simulate(100)
    stage.cancel(task)
    stage.advance(2)
    assert (stage.begun(worker), stage.held()) == ([first], [])
    assert stage.states([task]) == [("cancelled", 1)]


def test_a_cancelled_task_is_held_until_its_handler_has_ended(stage: Stage) -> None:
    worker = stage.worker()
    task = stage.kind("stubborn")
    stage.cancel(task)
    stage.advance(2)
    assert (stage.running(worker), stage.held()) == ([task], [task])
    stage.store.calls.clear()
    stage.advance(0.5)
    assert "standing" not in stage.store.calls, "the beats know that it is cancelled"
    stage.advance(1)
    assert (stage.running(worker), stage.held()) == ([], [])


def test_a_task_that_is_retried_while_it_is_held_waits_once_it_is_dropped(stage: Stage) -> None:
    worker = stage.worker()
    task = stage.kind("stubborn")
    stage.cancel(task)
    stage.done(stage.real_store.retry(1, task))
    stage.advance(2)
    assert stage.assign_again(kinds=["stubborn"]) == []
    stage.advance(1.5)
    assert stage.changes[-1] == (task, "waiting") and worker.busy == 0
    assert stage.assign_again(kinds=["stubborn"]) == [task]
    assert stage.running(worker) == [task]


def test_a_task_that_is_cancelled_just_before_its_end_is_dropped(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.simulate(1)
    stage.advance(0.9)
    stage.cancel(task, hint=None)
    stage.advance(0.2)
    assert stage.states([task]) == [("cancelled", 1)]
    assert (worker.busy, stage.held()) == (0, [])


def test_a_cancelled_task_whose_thread_does_not_end_is_dropped_after_a_while(stage: Stage) -> None:
    worker = stage.worker(threads=2)
    task = stage.kind("threaded")
    stage.cancel(task)
    stage.advance(4)
    assert stage.held() == [task], "it may still end"
    stage.done(stage.real_store.retry(1, task))
    stage.advance(2)
    assert stage.held() == [] and worker.busy == 0
    assert stage.status().hung == {"thread": 1}
    # as long as its thread runs, it does not begin here again
    assert stage.assign_again(kinds=["threaded"]) == [task]
    stage.advance(3)
    assert stage.begun(worker) == [task] and stage.states([task]) == [("waiting", 0)]
    stage.threads.run()
    stage.threads.run_in_reactor()
    stage.assign_again(kinds=["threaded"])
    assert stage.begun(worker) == [task, task]


def test_an_order_for_what_is_not_known_here_is_carried_out_in_the_store(stage: Stage) -> None:
    """For instance after an answer was lost."""
    stage.worker()
    [task] = stage.simulate(1, hint=False)
    stage.sql("UPDATE tasks SET state = 'running', started_at = 0")
    stage.cancel(task)
    assert stage.held() == []


# -- what stands in the store and is not known here, and the reverse


def test_what_was_taken_back_is_stopped_and_not_released(stage: Stage) -> None:
    worker = stage.worker()
    [lost, kept] = stage.simulate(200, 2)
    stage.done(stage.real_store.release("w", [Held(lost, 1)]))
    stage.advance(1.1)
    assert stage.running(worker) == [kept] and "release" not in stage.store.calls
    assert stage.states([lost, kept]) == [("waiting", 0), ("running", 1)]


def test_a_report_that_is_refused_has_the_worker_compare(stage: Stage) -> None:
    worker = stage.worker()
    task = stage.kind("talk", '{"seconds":100}')
    stage.advance(0.2)
    stage.done(stage.real_store.release("w", [Held(task, 1)]))
    stage.store.away = {"beat"}
    stage.runner_of(worker).begun.clear()
    [attempt] = stage.runner_of(worker)._running
    attempt.lines(["more"], 0)
    stage.advance(0.3)
    assert stage.running(worker) == []


def test_a_running_task_that_nobody_knows_goes_back_after_two_comparisons(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.simulate(100)
    [lost] = stage.simulate(1, hint=False)
    stage.sql(f"UPDATE tasks SET state = 'running', started_at = 0 WHERE id = {lost}")
    stage.advance(1.1)
    assert stage.states([lost]) == [("running", 1)], "one comparison may be wrong"
    stage.advance(1.1)
    assert stage.states([lost, task]) == [("waiting", 0), ("running", 1)]
    assert stage.changes[-1] == (lost, "waiting") and stage.begun(worker) == [task]


def test_what_looks_have_not_brought_yet_is_not_unknown(stage: Stage) -> None:
    stage.worker(1)
    stage.simulate(100, 2300)
    stage.store.calls.clear()
    for _ in range(3):
        stage.broker.hint(["w"], orders=True)
        stage.advance(0)
    assert stage.store.count("standing") == 3 and "release" not in stage.store.calls


def test_an_outcome_that_a_crash_of_the_database_undid_goes_back(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.simulate(0)
    stage.sql("UPDATE tasks SET state = 'queued', held = true, finished_at = NULL, result = NULL, version = 1")
    stage.advance(3)
    assert stage.states([task]) == [("waiting", 0)] and stage.begun(worker) == [task]


def test_a_comparison_that_is_older_than_a_look_drops_nothing(stage: Stage) -> None:
    worker = stage.worker()
    answer = stage.store.delay("standing")
    stage.broker.hint(["w"], orders=True)
    stage.advance(0)
    ids = stage.simulate(0.5, 3)
    stage.advance(0.1)
    assert stage.running(worker) == [], "looks and comparisons take turns"
    answer.callback(None)
    stage.advance(0.1)
    assert stage.running(worker) == ids


def test_a_comparison_leaves_what_ends_meanwhile_alone(stage: Stage) -> None:
    worker = stage.worker()
    ids = stage.simulate(0.5, 3)
    answer = stage.store.delay("standing")
    stage.broker.hint(["w"], orders=True)
    stage.advance(1)
    assert stage.states(ids) == [("completed", 1)] * 3
    answer.callback(None)
    stage.advance(3)
    assert "release" not in stage.store.calls and worker.busy == 0


def test_a_comparison_does_not_drop_what_has_just_ended(stage: Stage) -> None:
    """Its outcome is committed, and the answer is lost: it is repeated, and the end announced."""
    worker = stage.worker()
    [task] = stage.simulate(0.5)
    standing = stage.store.hold("standing")
    stage.broker.hint(["w"], orders=True)
    finish = stage.store.delay("finish")
    stage.advance(0.6)
    assert stage.states([task]) == [("completed", 1)]
    standing.callback(None)
    stage.advance(0.1)
    stage.store.answer_lost = {"finish"}
    finish.callback(None)
    stage.store.answer_lost = set()
    stage.advance(1.5)
    assert stage.changes[-1] == (task, "completed") and worker.busy == 0


@pytest.mark.parametrize("trouble", ["away", "broken"])
def test_comparisons_survive_any_error(stage: Stage, events: list[LogEvent], trouble: str) -> None:
    worker = stage.worker()
    [task] = stage.simulate(200)
    setattr(stage.store, trouble, {"standing"})
    stage.cancel(task)
    stage.advance(3)
    assert stage.running(worker) == [task]
    setattr(stage.store, trouble, set())
    stage.advance(2.1)
    assert (worker.busy, stage.held()) == (0, [])


def test_a_task_that_is_assigned_twice_in_an_answer_begins_once(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.simulate(0, hint=False)
    [one] = stage.found()
    stage.store.answer_once("look", [one, one._replace(task=replace(one.task))])
    stage.broker.hint(["w"])
    stage.advance(3)
    assert stage.begun(worker) == [task]
