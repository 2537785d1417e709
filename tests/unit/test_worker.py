"""The worker: from an assigned task that it finds to its stored end, its reports, its registration, its stop."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.logger import LogEvent
from zope.interface.verify import verifyObject

from taskd.model.limits import MAX_RESULT_BYTES
from taskd.model.states import State
from taskd.model.tasks import NewTask
from taskd.ports.handler import ITaskContext, ITaskHandler
from taskd.ports.workers import WorkerState
from taskd.worker.simulate import Simulate
from tests.unit.worker_stage import (
    KINDS,
    LOG_BYTES,
    RecordingBoard,
    Stage,
    events,
    fail_at_once,
    notes,
    stage,
)

__all__ = ["events", "stage"]


def test_handlers_provide_their_interface() -> None:
    verifyObject(ITaskHandler, Simulate(Clock()))


def test_a_task_is_found_run_finished_and_announced(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.simulate(2)
    assert stage.states([task]) == [("queued", 1)]
    assert (stage.running(worker), worker.busy) == ([task], 1)
    stage.advance(2)
    assert stage.states([task]) == [("completed", 1)]
    assert (stage.tasks([task])[0].result, worker.busy, stage.held()) == ('{"seconds":2}', 0, [])
    assert stage.changes == [(task, "running"), (task, "completed")]


def test_tasks_of_one_look_are_finished_together(stage: Stage) -> None:
    stage.worker(100)
    stage.store.calls.clear()
    ids = stage.simulate(0, 100)
    assert {s for s, _ in stage.states(ids)} == {"completed"}
    assert (stage.store.count("look"), stage.store.count("finish"), stage.store.count("begin")) == (1, 1, 0)


def test_no_more_tasks_than_slots_run_at_a_time(stage: Stage) -> None:
    worker = stage.worker(3)
    ids = stage.simulate(0.4, 8)
    assert stage.running(worker) == ids[:3]
    stage.advance(0.5)
    assert stage.running(worker) == ids[3:6]
    stage.advance(1)
    assert {s for s, _ in stage.states(ids)} == {"completed"}


@pytest.mark.parametrize(
    ("kind", "payload", "error"),
    [
        ("fail", "{}", "ValueError: no such colour"),
        ("leave", "{}", "SystemExit: 3"),
        ("set", "{}", "the result cannot be stored: result must not contain an object of type set"),
        ("object", "{}", "the result cannot be stored: result cannot be written as JSON: Encoding objects of type"),
        (
            "large",
            "{}",
            f"the result cannot be stored: result must have at most {MAX_RESULT_BYTES} bytes as JSON, not 262146",
        ),
        ("simulate", '{"seconds":-1}', "seconds must be a number from 0 to 604800"),
        ("simulate", '{"seconds":"two"}', "seconds must be a number from 0 to 604800"),
        ("simulate", '{"seconds":true}', "seconds must be a number from 0 to 604800"),
    ],
)
def test_an_attempt_that_fails_says_why_in_one_line(stage: Stage, kind: str, payload: str, error: str) -> None:
    stage.worker()
    [found] = stage.tasks([stage.kind(kind, payload, max_attempts=1)])
    assert found.state is State.FAILED and found.error is not None
    assert found.error.startswith(error) and "\n" not in found.error


@pytest.mark.parametrize(("kind", "length"), [("echo", 7), ("largest", MAX_RESULT_BYTES), ("tuple", 5)])
def test_a_result_is_stored_as_json(stage: Stage, kind: str, length: int) -> None:
    stage.worker()
    [found] = stage.tasks([stage.kind(kind, '{"a":1}')])
    assert found.state is State.COMPLETED and found.result is not None and len(found.result) == length


def test_without_max_attempts_of_the_task_those_of_the_kind_count(stage: Stage) -> None:
    stage.worker()
    task = stage.kind("user", max_attempts=0, worker=None)
    stage.assign_again(kinds=["user"])
    assert stage.tasks([task])[0].result == '["ana","t",1,4]'


def test_a_task_of_a_kind_that_the_worker_does_not_serve_goes_back(stage: Stage, events: list[LogEvent]) -> None:
    """Servers do not assign it; if one does all the same, it must not stay there."""
    worker = stage.worker()
    task = stage.kind("nothing")
    stage.advance(3)
    assert stage.states([task]) == [("waiting", 0)] and stage.begun(worker) == []
    assert any("without its kind nothing" in note for note in notes(events))


# -- outcomes


@pytest.mark.parametrize("trouble", ["away", "answer_lost"])
def test_outcomes_wait_for_a_store_that_is_away(stage: Stage, trouble: str) -> None:
    worker = stage.worker()
    setattr(stage.store, trouble, {"finish"})
    ids = stage.simulate(0, 3)
    stage.advance(3)
    assert worker.busy == 3
    setattr(stage.store, trouble, set())
    stage.advance(1.5)
    assert stage.states(ids) == [("completed", 1)] * 3
    assert worker.busy == 0 and stage.begun(worker) == ids
    assert sorted(stage.changes) == [(n, "completed") for n in ids]


def test_an_outcome_says_when_the_attempt_began(stage: Stage) -> None:
    stage.worker()
    stage.store.away = {"begin", "finish"}
    began = stage.real_store.now()
    [task] = stage.simulate(2)
    stage.advance(5)
    stage.store.away = set()
    stage.advance(2)
    [found] = stage.tasks([task])
    assert found.state is State.COMPLETED and found.started_at is not None
    assert (found.started_at - began).total_seconds() == pytest.approx(0, abs=0.1)


def test_a_failed_attempt_is_repeated_after_its_backoff(stage: Stage) -> None:
    stage.worker()
    task = stage.kind("fail", max_attempts=2)
    [found] = stage.tasks([task])
    assert (found.state, found.attempt, found.error) == (State.WAITING, 1, "ValueError: no such colour")
    assert (found.run_at - found.created_at).total_seconds() == pytest.approx(10, abs=1)
    assert stage.changes[-1] == (task, "waiting")
    stage.advance(10)
    assert stage.done(stage.real_store.promote(10))
    stage.assign_again(kinds=["fail"])
    [found] = stage.tasks([task])
    assert (found.state, found.attempt) == (State.FAILED, 2)
    failed = stage.done(stage.real_store.failed_attempts(task))
    assert [(f.attempt, f.worker, f.error) for f in failed] == [(n, "w", "ValueError: no such colour") for n in (1, 2)]
    assert all("in fail" in (f.trace or "") for f in failed)


def test_an_outcome_that_cannot_be_stored_fails_the_attempt_at_once(stage: Stage, events: list[LogEvent]) -> None:
    stage.worker()
    stage.store.refuse_once("finish")
    task = stage.kind("fail", max_attempts=5)
    stage.advance(0.1)
    [found] = stage.tasks([task])
    assert (found.state, found.error) == (State.FAILED, "the error cannot be stored: RuntimeError")


def test_an_attempt_without_any_outcome_that_can_be_stored_goes_back(stage: Stage, events: list[LogEvent]) -> None:
    worker = stage.worker()
    stage.store.broken = {"finish"}
    [task] = stage.simulate(0)
    stage.advance(0.1)
    assert stage.states([task]) == [("waiting", 0)] and worker.busy == 0


def test_an_end_is_announced_with_the_losses_that_the_store_has(stage: Stage) -> None:
    stage.worker()
    [task] = stage.simulate(1, losses=2)
    stage.advance(1.1)
    [found] = stage.tasks([task])
    assert (found.state, found.losses) == (State.COMPLETED, 0)
    assert stage.changes[-1] == (task, "completed")


# -- output of tasks


def test_output_is_stored_and_announced_at_most_four_times_a_second(stage: Stage) -> None:
    stage.worker()
    task = stage.kind("talk", '{"seconds":1}')
    stage.advance(0.1)
    [found] = stage.tasks([task])
    assert (found.state, found.progress, found.note) == (State.RUNNING, 0.2, "step 2")
    assert stage.changes[-1] == (task, "running")
    assert [(e["event"], e.get("progress"), e.get("lines")) for e in stage.outputs] == [
        ("progress", 0.2, None),
        ("log", None, ["line 0", "line 1", "line 2"]),
    ]
    stage.advance(1)
    assert stage.states([task]) == [("completed", 1)]
    assert [e["lines"] for e in stage.outputs[2:]] == [["the end"]]
    chunks = stage.done(stage.real_store.read_log(task, None, 10))
    assert [(c.place.line, list(c.lines)) for c in chunks] == [(1, ["line 0", "line 1", "line 2"]), (4, ["the end"])]
    assert stage.store.count("report") == 2


def test_a_log_that_is_too_long_is_cut_at_its_beginning(stage: Stage) -> None:
    """The worker keeps 2,000 bytes of it: the last lines."""
    stage.worker()
    task = stage.kind("talk", '{"lines":1000}')
    stage.advance(2)
    chunks = stage.done(stage.real_store.read_log(task, None, 10_000))
    lines = [line for chunk in chunks for line in chunk.lines]
    assert lines[-1] == "the end" and "line 999" in lines
    assert stage.done(stage.real_store.log_bytes(task)) <= LOG_BYTES + 100
    assert any("left out" in line for line in lines) or chunks[0].place.line > 1


def test_results_and_logs_count_for_the_quota_of_their_owner(stage: Stage) -> None:
    """Exactly as much as the store then has, also when a log was cut."""

    def chat(clock: Clock, task: ITaskContext, n: int = 0) -> Any:
        task.log(f"{n} " + "ñ" * 150 + "\na second line")
        return deferLater(clock, 0.3, chat, clock, task, n + 1) if n < 9 else "the end"

    stage.worker(kinds={**KINDS, "chat": chat})
    task = stage.kind("chat")
    stage.kind("talk", '{"seconds":1}')
    stage.kind("echo", '{"a":"ñ"}')
    stage.advance(6)
    assert stage.sql(f"SELECT min(line) > 1 FROM task_log WHERE task_id = {task}") == [(1,)], "it was cut"
    [(logs,)] = stage.sql("SELECT sum(bytes) FROM task_log")
    [(results,)] = stage.sql("SELECT sum(length(CAST(result AS BLOB))) FROM tasks WHERE state = 'completed'")
    assert stage.sql("SELECT sum(tasks), sum(bytes) FROM user_usage") == [(0, logs + results)]


def test_a_worker_that_stops_stores_what_counts(stage: Stage) -> None:
    worker = stage.worker()
    stage.kind("talk", '{"seconds":0}')
    stage.advance(0.5)
    assert stage.sql("SELECT * FROM user_usage") == []
    assert stage.drain(worker, 0) == [True]
    assert len(stage.sql("SELECT * FROM user_usage")) == 1


def test_reports_wait_for_a_store_that_is_away_and_the_outcome_waits_for_them(stage: Stage) -> None:
    stage.worker()
    stage.store.away = {"report"}
    task = stage.kind("talk", '{"seconds":1}')
    stage.advance(3)
    assert stage.states([task]) == [("running", 1)]
    stage.store.away = set()
    stage.advance(2)
    assert stage.states([task]) == [("completed", 1)]
    chunks = stage.done(stage.real_store.read_log(task, None, 10))
    assert [line for c in chunks for line in c.lines] == ["line 0", "line 1", "line 2", "the end"]


def test_what_a_handler_says_while_it_is_stopped_is_stored(stage: Stage) -> None:
    def talkative(clock: Clock, task: ITaskContext) -> object:
        task.log("begins")
        done: Deferred[None] = deferLater(clock, 100)
        return done.addErrback(lambda _: task.log("stopped at page 7"))

    worker = stage.worker(kinds={"talkative": talkative})
    task = stage.kind("talkative")
    ended = stage.drain(worker, 0.1)
    stage.advance(1)
    assert ended and stage.states([task]) == [("waiting", 0)]
    chunks = stage.done(stage.real_store.read_log(task, None, 10))
    assert [line for c in chunks for line in c.lines] == ["begins", "stopped at page 7"]


# -- registration of workers, and beats


def test_a_worker_registers_its_kinds_and_unregisters_at_the_end(stage: Stage) -> None:
    worker = stage.worker(7)
    info = stage.status().info
    assert (info.name, info.slots, list(info.queues)) == ("w", {"async": 7, "thread": 0}, ["tasks"])
    kinds = {kind.kind: kind for kind in info.kinds}
    assert kinds.keys() == {"simulate", *KINDS}
    assert (kinds["fail"].isolation, kinds["fail"].max_attempts) == ("async", 4)
    assert stage.worker_changes == 1
    stage.drain(worker, 1)
    assert not stage.done(stage.real_store.poll_workers()).workers and stage.worker_changes > 1


def test_a_worker_beats_every_second_and_tells_its_watchdog(stage: Stage) -> None:
    board = RecordingBoard()
    worker = stage.worker(board=board)
    stage.runner_of(worker).slots_hung = {"thread": 2}
    beat, beats = stage.status().beat, board.beats
    stage.advance(10.5)
    assert stage.status().beat == beat + 10 and board.beats == beats + 10
    assert stage.status().hung == {"thread": 2}


@pytest.mark.parametrize("trouble", ["away", "broken"])
def test_beats_survive_any_error_and_the_log_tells_it_once(stage: Stage, events: list[LogEvent], trouble: str) -> None:
    stage.worker()
    setattr(stage.store, trouble, {"beat"})
    stage.advance(5)
    setattr(stage.store, trouble, set())
    beat = stage.status().beat
    stage.advance(2)
    assert stage.status().beat >= beat + 1
    assert len([n for n in notes(events) if "cannot tell the store that it lives" in n]) == 1


@pytest.mark.parametrize("trouble", ["away", "answer_lost"])
def test_registration_is_repeated_until_it_works_and_nothing_begins_before(stage: Stage, trouble: str) -> None:
    setattr(stage.store, trouble, {"register"})
    worker = stage.worker()
    stage.advance(5)
    before = worker.consuming
    assert not {"look", "standing"} & set(stage.store.calls)
    setattr(stage.store, trouble, set())
    stage.advance(1.1)
    assert (before, worker.consuming) == (False, True)
    [task] = stage.simulate(1)
    stage.advance(1.1)
    assert stage.states([task]) == [("completed", 1)]


def test_health_says_whether_hints_can_arrive(stage: Stage) -> None:
    worker = stage.worker()
    before = worker.consuming
    stage.done(stage.broker.stop())
    assert (before, worker.consuming) == (True, False)


# -- the stop


def test_drain_waits_for_tasks_that_end_within_the_grace_time(stage: Stage) -> None:
    worker = stage.worker()
    ids = stage.simulate(3, 2)
    ended = stage.drain(worker, 10)
    stage.advance(2)
    assert not ended
    stage.advance(2)
    assert ended
    assert stage.states(ids) == [("completed", 1)] * 2


def test_drain_gives_back_at_once_what_has_not_begun(stage: Stage) -> None:
    worker = stage.worker(2)
    running = stage.simulate(2, 2)
    more = stage.simulate(2, 3)
    ended = stage.drain(worker, 10)
    assert stage.states([*running, *more]) == [("queued", 1)] * 2 + [("waiting", 0)] * 3
    assert [t.returns for t in stage.tasks(more)] == [0, 0, 0]
    stage.advance(3)
    assert ended and stage.states(running) == [("completed", 1)] * 2


def test_what_a_look_brings_while_the_worker_drains_goes_back_at_once(stage: Stage) -> None:
    worker = stage.worker()
    running = stage.simulate(2)
    answer = stage.store.delay("look")
    late = stage.simulate(1)
    ended = stage.drain(worker, 10)
    assert stage.states(late) == [("queued", 1)]
    answer.callback(None)
    stage.advance(0)
    assert stage.states([*running, *late]) == [("queued", 1), ("waiting", 0)]
    assert stage.begun(worker) == running and stage.changes[-1] == (late[0], "waiting")
    stage.advance(3)
    assert ended


def test_only_what_has_begun_is_told_as_returned(stage: Stage) -> None:
    """A server may assign a task again before it knows that the worker stops."""
    worker = stage.worker()
    running = stage.simulate(100)
    stage.advance(1)
    late = stage.simulate(1, hint=False)
    stage.sql("UPDATE tasks SET returns = 3")
    answer = stage.store.delay("look")
    stage.broker.hint(["w"])
    ended = stage.drain(worker, 1)
    answer.callback(None)
    stage.advance(10)
    assert ended
    assert [task.returns for task in stage.tasks([*running, *late])] == [4, 3]
    told = [output for output in stage.outputs if output["event"] == "returned"]
    assert told == [{"event": "returned", "task_id": running[0], "returns": 4}]


def test_drain_releases_running_tasks_without_counting_the_attempt(stage: Stage) -> None:
    worker = stage.worker(2)
    running = stage.simulate(100, 2)
    ended = stage.drain(worker, 10)
    stage.advance(11)
    assert ended and worker.busy == 0
    assert stage.states(running) == [("waiting", 0)] * 2
    assert [t.returns for t in stage.tasks(running)] == [1, 1]
    assert stage.changes[-2:] == [(n, "waiting") for n in running]


def test_drain_waits_a_limited_time_for_a_task_that_does_not_stop(stage: Stage) -> None:
    worker = stage.worker()
    task = stage.kind("stubborn")
    ended = stage.drain(worker, 1)
    stage.advance(2)
    assert not ended and stage.held() == [task], "the task still runs"
    stage.advance(3)
    assert ended and stage.states([task]) == [("waiting", 0)]


def test_drain_ends_even_with_the_store_away(stage: Stage) -> None:
    worker = stage.worker()
    running = stage.simulate(100)
    stage.advance(0.5)
    finishing = stage.kind("echo", hint=False)
    stage.store.away = {"finish", "release", "begin", "beat", "standing", "worker_gone", "worker_draining"}
    stage.broker.hint(["w"])
    stage.advance(0)
    ended = stage.drain(worker, 1)
    stage.advance(15)
    assert ended
    assert stage.states([*running, finishing]) == [("running", 1), ("queued", 1)]


@pytest.mark.parametrize(
    "broken",
    [
        "beat",
        "worker_draining",
        "release",
        "finish",
        "standing",
        "look",
        "worker_gone",
        "hints",
        "stop_all",
        "runner",
    ],
)
def test_drain_takes_every_step_whatever_fails(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, events: list[LogEvent], broken: str
) -> None:
    board = RecordingBoard()
    worker = stage.worker(board=board)
    stage.simulate(2)
    stage.simulate(100)
    stage.store.broken = {broken}
    places = {
        "hints": (worker._hints, "stop"),
        "stop_all": (worker._returns, "give_back_all"),
        "runner": (worker._runner, "stop"),
    }
    if broken in places:
        monkeypatch.setattr(*places[broken], fail_at_once)
    stage.threads.running = True
    ended = stage.drain(worker, 3)
    stage.advance(30)
    assert ended
    assert stage.threads.running is (broken == "runner"), "the runner is stopped"
    assert board.stopped is (broken != "worker_gone")
    calls = len(stage.store.calls)
    stage.advance(30)
    assert len(stage.store.calls) == calls, "nothing goes on"


def test_a_draining_worker_says_so_first_and_beats_to_its_end(stage: Stage) -> None:
    board = RecordingBoard()
    worker = stage.worker(board=board)
    stage.simulate(5)
    ended = stage.drain(worker, 10)
    assert stage.status().state is WorkerState.DRAINING and stage.worker_changes == 2
    beat = stage.status().beat
    stage.advance(3.5)
    assert stage.status().beat >= beat + 3
    assert (ended, board.stopped) == ([], False)
    stage.advance(3)
    assert (ended, board.stopped) == ([True], True)
    assert not stage.done(stage.real_store.poll_workers()).workers


def test_give_backs_of_a_stopping_worker_are_counted_and_noted_from_the_third_on(
    stage: Stage, events: list[LogEvent]
) -> None:
    [task] = stage.simulate(100, worker=None)
    for n in (1, 2, 3):
        name = f"worker {n}"
        worker = stage.worker(name=name)
        stage.assign_again(name)
        stage.advance(0.5)
        assert stage.states([task]) == [("running", 1)]
        stage.drain(worker, 0)
        assert stage.states([task]) == [("waiting", 0)] and stage.tasks([task])[0].returns == n
        assert any(f"task {task} (simulate) has been given back 3 times" in note for note in notes(events)) is (n == 3)
        assert bool(stage.outputs) is (n == 3), "the owner gets an event as well"
        stage.advance(1)


def test_drain_gives_back_what_it_does_not_know_as_well(stage: Stage) -> None:
    worker = stage.worker()
    [lost] = stage.simulate(1, hint=False)
    stage.sql("UPDATE tasks SET state = 'running', started_at = 0")
    assert stage.drain(worker, 1)
    assert stage.states([lost]) == [("waiting", 0)] and stage.changes[-1] == (lost, "waiting")


def test_hurry_ends_the_grace_time(stage: Stage) -> None:
    worker = stage.worker()
    [task] = stage.simulate(100)
    ended = stage.drain(worker, 600)
    worker.hurry()
    stage.advance(0.1)
    assert ended and stage.states([task]) == [("waiting", 0)]


def test_a_worker_that_never_was_registered_drains(stage: Stage) -> None:
    stage.store.away = {"register"}
    worker = stage.worker()
    assert stage.drain(worker, 1)


def test_a_worker_that_is_stopped_while_it_starts_takes_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    started: Deferred[None] = Deferred()
    worker = stage.worker()
    runner = stage.runner_of(worker)
    monkeypatch.setattr(runner, "start", lambda: started)
    ended = stage.drain(worker, 0)
    starting = Deferred.fromCoroutine(worker.start())
    started.callback(None)
    stage.advance(1)
    calls = len(stage.store.calls)
    stage.advance(3)
    assert ended and starting.called and len(stage.store.calls) == calls


def test_a_task_of_another_user_runs_under_that_name(stage: Stage) -> None:
    stage.worker()
    [task] = stage.submit(NewTask(2, "t", "user"))
    assert stage.tasks([task])[0].result == '["ben","t",1,3]'
