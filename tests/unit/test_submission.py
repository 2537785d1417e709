"""taskd.scheduling.submission and outbox: how requests become committed tasks, and these become messages."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from twisted.internet.defer import Deferred

from taskd.events.records import decode_batch
from taskd.model.errors import BadRequest, Unavailable
from taskd.model.states import State
from taskd.model.tasks import NewTask, Route, Task
from taskd.scheduling.maintenance.relay_outbox import RELAY_AFTER
from taskd.scheduling.window import Windows
from tests.unit.stage import NOON, StageCase


class Submitting(StageCase):
    window = 5
    queues = ("tasks", "slow")

    def setUp(self) -> None:
        super().setUp()
        self.ana, self.eva = self.stage.user_id("ana"), self.stage.user_id("eva")
        self.route_window = self.stage.window()

    def submit(self, user_id: int = 0, count: int = 1, **fields: Any) -> Deferred[Any]:
        """Submit tasks of one user in one request."""
        wanted = {"task": "t", "queue": "tasks", **fields}
        return self.stage.submitter.submit([NewTask(user_id or self.ana, **wanted) for _ in range(count)])

    def created_tasks(self, request: Deferred[Any]) -> list[Task]:
        """The present rows of the tasks that an answered request created."""
        return self.stage.tasks(*(created.task_id for created in self.successResultOf(request)))

    def submit_and_wait(self, *args: Any, **options: Any) -> list[Task]:
        """Submit tasks, and return their rows after the request was answered."""
        done = self.submit(*args, **options)
        self.stage.run_pending()
        return self.created_tasks(done)

    def test_with_room_and_no_backlog_a_task_is_queued_and_published_at_once(self) -> None:
        [task] = self.submit_and_wait()
        self.assertEqual((task.state, task.dispatch, task.version), (State.QUEUED, 1, 1))
        self.assertEqual((task.created_at, task.run_at), (NOON, NOON))
        self.assertEqual([tuple(m) for m in self.stage.broker.published], [(task.id, 1)])
        self.assertEqual(self.route_window.room, 4)

    def test_simultaneous_requests_share_a_transaction_and_get_their_own_tasks(self) -> None:
        before = self.stage.runner.calls
        requests = [self.submit(count=n, task=f"t{n}") for n in (1, 2, 3)]
        self.stage.run_pending()
        self.assertEqual(self.stage.runner.calls, before + 1)
        answers = [self.created_tasks(request) for request in requests]
        self.assertEqual(
            [[t.task for t in created_tasks] for created_tasks in answers], [["t1"], ["t2"] * 2, ["t3"] * 3]
        )
        self.assertEqual([t.id for created_tasks in answers for t in created_tasks], [1, 2, 3, 4, 5, 6])

    def test_tasks_without_room_in_the_window_wait(self) -> None:
        tasks = self.submit_and_wait(count=8)
        self.assertEqual([task.state.value for task in tasks], ["queued"] * 5 + ["waiting"] * 3)
        self.assertEqual(len(self.stage.broker.published), 5)
        self.assertEqual(self.route_window.room, 0)

    def test_waiting_tasks_are_dispatched_when_there_is_room(self) -> None:
        tasks = self.submit_and_wait(count=8)
        self.stage.run(*tasks[:5])
        self.assertEqual(self.stage.states(*tasks), ["completed"] * 5 + ["queued"] * 3)

    def test_later_tasks_of_a_backlogged_user_wait(self) -> None:
        self.submit_and_wait(count=6)
        self.route_window.take(-1)
        mine, others = self.submit(), self.submit(self.eva)
        self.stage.run_pending()
        states = [self.created_tasks(done)[0].state for done in (mine, others)]
        self.assertEqual(states, [State.WAITING, State.QUEUED])

    def test_scheduled_tasks_take_no_room_and_are_no_backlog(self) -> None:
        later = NOON + timedelta(hours=1)
        tasks = self.submit_and_wait(count=20, run_at=later)
        self.assertEqual({(task.state, task.run_at) for task in tasks}, {(State.WAITING, later)})
        self.assertEqual(
            (self.route_window.room, self.route_window.has_backlog, self.route_window.admit(self.ana)), (5, False, True)
        )
        before = self.stage.runner.calls
        self.stage.run_pending()
        self.assertEqual((self.stage.runner.calls, self.stage.broker.published), (before, []))

    def test_a_delay_is_counted_from_when_the_store_has_stored_it(self) -> None:
        self.stage.runner.slow = True
        done = self.submit(count=2, delay=60.0)
        self.stage.run_pending()
        self.stage.clock.advance(7)
        self.stage.runner.slow = False
        self.stage.runner.run_waiting()
        self.stage.run_pending()
        for task in self.created_tasks(done):
            self.assertEqual((task.state, task.run_at - task.created_at), (State.WAITING, timedelta(minutes=1)))
        self.assertEqual((self.route_window.room, self.route_window.has_backlog), (5, False))

    def test_a_run_at_that_the_store_finds_passed_is_dispatched_at_once(self) -> None:
        tasks = self.submit_and_wait(count=2, run_at=NOON - timedelta(hours=1))
        self.assertEqual([(task.state, task.run_at) for task in tasks], [(State.QUEUED, NOON)] * 2)
        self.assertEqual(len(self.stage.broker.published), 2)

    def test_without_room_such_a_task_is_in_the_backlog(self) -> None:
        tasks = self.submit_and_wait(count=5)
        [late] = self.submit_and_wait(run_at=NOON)
        self.assertEqual((late.state, self.route_window.has_backlog), (State.WAITING, True))
        self.stage.run(*tasks)
        self.assertEqual(self.stage.states(late), ["queued"])

    def test_scheduled_tasks_are_no_backlog_for_other_servers(self) -> None:
        other = Windows(5, lambda route: None)
        window = other.open(Route("tasks", "simulate"))
        window.clear_backlogged(window.backlogged_users())
        self.submit_and_wait(run_at=NOON + timedelta(hours=1))
        other.apply(decode_batch(self.stage.broker.event_batches[-1]).changes)
        self.assertTrue(window.admit(self.ana))

    def test_tasks_of_a_route_that_nobody_serves_are_only_stored(self) -> None:
        tasks = self.submit_and_wait(count=3, kind="sculpt")
        self.assertEqual({task.state for task in tasks}, {State.WAITING})
        self.assertEqual((self.route_window.room, self.route_window.has_backlog), (5, False))

    def test_each_task_of_a_batch_takes_its_own_route(self) -> None:
        self.stage.add_worker("render")
        specs = [NewTask(self.ana, "t", queue="tasks", kind=kind) for kind in ("simulate", "render", "sculpt") * 2]
        done: Deferred[Any] = self.stage.submitter.submit(specs)
        self.stage.run_pending()
        states = [task.state.value for task in self.created_tasks(done)]
        self.assertEqual(states, ["queued", "queued", "waiting"] * 2)
        for queue in ("tasks", "tasks#render"):
            self.assertEqual(len(self.stage.consume(queue)), 2)

    def test_a_window_may_be_closed_before_the_store_refuses_a_request(self) -> None:
        self.stage.add_worker("render")
        self.stage.runner.slow = True
        done = self.submit(kind="render")
        self.stage.run_pending()
        self.stage.windows.close(Route("tasks", "render"))
        self.stage.runner.away = True
        self.stage.runner.run_waiting()
        self.failureResultOf(done, Unavailable)

    def test_each_queue_has_its_own_window(self) -> None:
        self.submit_and_wait(count=6)
        [task] = self.submit_and_wait(queue="slow")
        self.assertEqual(task.state, State.QUEUED)

    def test_with_the_broker_away_tasks_wait_and_are_confirmed(self) -> None:
        self.stage.broker.ready = False
        tasks = self.submit_and_wait(count=2)
        self.assertEqual([task.state for task in tasks], [State.WAITING] * 2)
        self.assertEqual(self.route_window.room, 5)
        self.stage.broker.ready = True
        self.stage.run_maintenance()
        self.assertEqual(self.stage.states(*tasks), ["queued"] * 2)
        self.assertEqual(len(self.stage.broker.published), 2)

    def test_a_request_does_not_wait_for_the_broker(self) -> None:
        self.stage.broker.withholds_confirms = True
        self.submit_and_wait()

    def test_a_request_waits_for_the_commit(self) -> None:
        self.stage.runner.slow = True
        done = self.submit()
        self.stage.run_pending()
        self.assertNoResult(done)
        self.assertEqual((self.stage.broker.published, self.stage.broker.event_batches), ([], []))
        self.stage.runner.run_waiting()
        self.successResultOf(done)

    def test_a_task_is_announced_before_its_message_is_published(self) -> None:
        self.submit_and_wait()
        self.assertEqual(self.stage.broker.sent, ["events", "messages"])

    def test_a_request_fails_while_the_store_is_away_and_takes_no_room(self) -> None:
        self.stage.runner.away = True
        done = self.submit(count=3)
        self.stage.run_pending()
        self.failureResultOf(done, Unavailable)
        self.assertEqual(self.route_window.room, 5)
        self.assertEqual((self.stage.broker.published, self.stage.broker.event_batches), ([], []))
        self.stage.runner.away = False
        self.submit_and_wait()

    def test_a_request_that_cannot_be_stored_fails_alone_and_takes_no_room(self) -> None:
        good, bad, fine = self.submit(), self.submit(task="a\0b"), self.submit()
        self.stage.run_pending()
        self.successResultOf(good)
        self.failureResultOf(bad, BadRequest)
        self.successResultOf(fine)
        self.assertEqual(self.route_window.room, 3)
        self.assertEqual(len(self.stage.broker.published), 2)

    def test_a_request_is_stored_completely_or_not_at_all(self) -> None:
        specs = [NewTask(self.ana, "t", queue="tasks"), NewTask(self.ana, "\0", queue="tasks")]
        done: Deferred[Any] = self.stage.submitter.submit(specs)
        self.stage.run_pending()
        self.failureResultOf(done, BadRequest)
        self.assertEqual(self.stage.tasks(), [])

    def test_a_request_that_fails_by_a_defect_takes_no_room(self) -> None:
        self.stage.runner.broken = True
        done = self.submit(count=3)
        self.stage.run_pending()
        self.failureResultOf(done, ZeroDivisionError)
        self.assertEqual(self.route_window.room, 5)

    def test_drained_fires_after_the_last_request(self) -> None:
        self.stage.runner.slow = True
        self.submit()
        drained = self.stage.submitter.drained()
        self.stage.run_pending()
        self.assertNoResult(drained)
        self.stage.runner.run_waiting()
        self.successResultOf(drained)

    def test_a_transaction_stores_at_most_a_thousand_tasks(self) -> None:
        before = self.stage.runner.calls
        requests = [self.submit(count=600) for _ in range(4)]
        for _ in range(5):
            self.stage.clock.advance(0.01)
        self.assertEqual([len(self.successResultOf(request)) for request in requests], [600] * 4)
        self.assertEqual(self.stage.runner.calls - before, 4)


class OutboxTests(StageCase):
    def rows_after_round(self) -> int:
        """Run a round of maintenance. Returns the number of outbox rows left."""
        self.stage.run_maintenance()
        return self.stage.outbox_rows()

    def submit_and_wait(self, count: int = 1) -> None:
        """Submit tasks to this server."""
        specs = [NewTask(self.stage.user_id(), "t", queue="tasks") for _ in range(count)]
        done: Deferred[Any] = self.stage.submitter.submit(specs)
        done.addErrback(lambda failure: failure.trap(Unavailable))
        self.stage.run_pending()

    def test_a_row_is_deleted_only_after_the_broker_confirmed(self) -> None:
        self.stage.broker.withholds_confirms = True
        self.submit_and_wait(3)
        self.assertEqual(self.rows_after_round(), 1)
        self.stage.broker.confirm()
        self.assertEqual(self.rows_after_round(), 0)

    def test_a_batch_that_waits_for_its_confirm_is_not_stale(self) -> None:
        self.stage.broker.withholds_confirms = True
        self.submit_and_wait()
        self.stage.broker.withholds_confirms = False
        for _ in range(3):
            self.stage.clock.advance(RELAY_AFTER)
            self.stage.run_maintenance()
        self.assertEqual(len(self.stage.broker.published), 1)
        self.stage.broker.confirm()
        self.assertEqual(self.rows_after_round(), 0)

    def test_published_rows_are_deleted_with_the_next_batch(self) -> None:
        self.submit_and_wait()
        before = self.stage.runner.calls
        self.submit_and_wait()
        self.assertEqual((self.stage.outbox_rows(), self.stage.runner.calls), (1, before + 1))

    def test_published_rows_are_deleted_later_if_that_batch_fails(self) -> None:
        self.submit_and_wait()
        self.stage.runner.away = True
        self.submit_and_wait()
        self.stage.runner.away = False
        self.assertEqual(self.rows_after_round(), 0)

    def test_published_rows_are_deleted_later_if_their_deletion_fails(self) -> None:
        self.submit_and_wait()
        for trouble in ("away", "broken"):
            setattr(self.stage.runner, trouble, True)
            self.assertEqual(self.rows_after_round(), 1)
            setattr(self.stage.runner, trouble, False)
        self.flushLoggedErrors(ZeroDivisionError)
        self.assertEqual(self.rows_after_round(), 0)

    def test_a_batch_of_waiting_tasks_needs_no_confirm(self) -> None:
        self.stage.broker.ready = False
        self.submit_and_wait()
        self.stage.run_maintenance()
        self.assertEqual(self.stage.outbox_rows(), 0)

    def test_stale_batches_are_published_by_any_server(self) -> None:
        tasks = self.stage.create(count=2, published=False)
        self.stage.run_maintenance()
        self.assertEqual(self.stage.broker.published, [])
        self.stage.clock.advance(RELAY_AFTER)
        self.stage.run_maintenance()
        self.assertEqual([m.task_id for m in self.stage.broker.published], [task.id for task in tasks])
        self.assertEqual(self.rows_after_round(), 0)

    def test_only_tasks_of_a_stale_batch_that_are_still_queued_are_published(self) -> None:
        tasks = self.stage.create(count=3, published=False)
        self.stage.claim(tasks[1])
        self.stage.clock.advance(RELAY_AFTER)
        self.stage.run_maintenance()
        self.assertEqual([m.task_id for m in self.stage.broker.published], [tasks[0].id, tasks[2].id])

    def test_stale_batches_wait_while_the_broker_is_away(self) -> None:
        self.stage.create(published=False)
        self.stage.broker.ready = False
        self.stage.clock.advance(RELAY_AFTER)
        self.assertEqual(self.rows_after_round(), 1)
        self.stage.broker.ready = True
        self.assertEqual(self.rows_after_round(), 1)
        self.assertEqual((len(self.stage.broker.published), self.rows_after_round()), (1, 0))

    def test_a_batch_that_met_an_absent_broker_is_left_to_the_relay(self) -> None:
        self.stage.runner.slow = True
        self.submit_and_wait()
        self.stage.broker.ready = False
        self.stage.runner.slow = False
        self.stage.runner.run_waiting()
        self.assertEqual((self.stage.states(), self.stage.broker.published), (["queued"], []))
        self.stage.broker.ready = True
        self.stage.clock.advance(RELAY_AFTER)
        self.stage.run_maintenance()
        self.assertEqual((len(self.stage.broker.published), self.rows_after_round()), (1, 0))

    def test_a_defect_during_publishing_is_logged_and_keeps_the_row(self) -> None:
        self.stage.broker.withholds_confirms = True
        self.submit_and_wait()
        self.stage.broker.confirm(ZeroDivisionError())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.rows_after_round(), 1)
