"""taskd.scheduling.submission and outbox: from a request to a committed task, and from there to the broker."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from twisted.internet.defer import Deferred

from taskd.events.records import decode_batch
from taskd.model.errors import BadRequest, Unavailable
from taskd.model.states import State
from taskd.model.tasks import NewTask, Route, Task
from taskd.scheduling.outbox import RELAY_AFTER
from taskd.scheduling.window import Windows
from tests.unit.stage import NOON, StageCase


class Submitting(StageCase):
    window = 5
    queues = ("tasks", "slow")

    def setUp(self) -> None:
        super().setUp()
        self.ana, self.eva = self.stage.user_id("ana"), self.stage.user_id("eva")
        self.place = self.stage.window()

    def submit(self, user_id: int = 0, count: int = 1, **fields: Any) -> Deferred[Any]:
        """A request for tasks."""
        wanted = {"task": "t", "queue": "tasks", **fields}
        return self.stage.submitter.submit([NewTask(user_id or self.ana, **wanted) for _ in range(count)])

    def answer(self, request: Deferred[Any]) -> list[Task]:
        """Its tasks, as they are now."""
        return self.stage.tasks(*(created.task_id for created in self.successResultOf(request)))

    def create_here(self, *args: Any, **options: Any) -> list[Task]:
        """A request, answered."""
        done = self.submit(*args, **options)
        self.stage.run_pending()
        return self.answer(done)

    def test_with_room_and_no_backlog_a_task_goes_straight_to_the_broker(self) -> None:
        [task] = self.create_here()
        self.assertEqual((task.state, task.dispatch, task.version), (State.QUEUED, 1, 1))
        self.assertEqual((task.created_at, task.run_at), (NOON, NOON))
        self.assertEqual([tuple(m) for m in self.stage.broker.published], [(task.id, 1)])
        self.assertEqual(self.place.room, 4)

    def test_requests_of_one_turn_share_a_transaction_and_get_their_own_tasks(self) -> None:
        before = self.stage.runner.calls
        requests = [self.submit(count=n, task=f"t{n}") for n in (1, 2, 3)]
        self.stage.run_pending()
        self.assertEqual(self.stage.runner.calls, before + 1)
        answers = [self.answer(request) for request in requests]
        self.assertEqual([[t.task for t in answer] for answer in answers], [["t1"], ["t2"] * 2, ["t3"] * 3])
        self.assertEqual([t.id for answer in answers for t in answer], [1, 2, 3, 4, 5, 6])

    def test_what_the_window_has_no_room_for_waits(self) -> None:
        tasks = self.create_here(count=8)
        self.assertEqual([task.state.value for task in tasks], ["queued"] * 5 + ["waiting"] * 3)
        self.assertEqual(len(self.stage.broker.published), 5)
        self.assertEqual(self.place.room, 0)

    def test_what_waits_is_handed_over_when_there_is_room(self) -> None:
        tasks = self.create_here(count=8)
        self.stage.run(*tasks[:5])
        self.assertEqual(self.stage.states(*tasks), ["completed"] * 5 + ["queued"] * 3)

    def test_later_tasks_of_a_user_wait_behind_those_that_wait(self) -> None:
        self.create_here(count=6)
        self.place.take(-1)
        mine, others = self.submit(), self.submit(self.eva)
        self.stage.run_pending()
        states = [self.answer(done)[0].state for done in (mine, others)]
        self.assertEqual(states, [State.WAITING, State.QUEUED])

    def test_what_is_scheduled_takes_no_place_and_is_no_backlog(self) -> None:
        later = NOON + timedelta(hours=1)
        tasks = self.create_here(count=20, run_at=later)
        self.assertEqual({(task.state, task.run_at) for task in tasks}, {(State.WAITING, later)})
        self.assertEqual((self.place.room, self.place.has_backlog, self.place.admit(self.ana)), (5, False, True))
        before = self.stage.runner.calls
        self.stage.run_pending()
        self.assertEqual((self.stage.runner.calls, self.stage.broker.published), (before, []))

    def test_it_is_no_backlog_to_other_servers_either(self) -> None:
        other = Windows(5)
        window = other.open(Route("tasks", "simulate"))
        window.clear_backlogged(window.backlogged_users())
        self.create_here(run_at=NOON + timedelta(hours=1))
        other.apply(decode_batch(self.stage.broker.event_batches[-1]).changes)
        self.assertTrue(window.admit(self.ana))

    def test_a_route_that_nobody_serves_is_stored_and_that_is_all(self) -> None:
        tasks = self.create_here(count=3, kind="sculpt")
        self.assertEqual({task.state for task in tasks}, {State.WAITING})
        self.assertEqual((self.place.room, self.place.has_backlog), (5, False))

    def test_of_a_batch_of_several_routes_each_goes_its_way(self) -> None:
        self.stage.add_worker("render")
        specs = [NewTask(self.ana, "t", queue="tasks", kind=kind) for kind in ("simulate", "render", "sculpt") * 2]
        done: Deferred[Any] = self.stage.submitter.submit(specs)
        self.stage.run_pending()
        states = [task.state.value for task in self.answer(done)]
        self.assertEqual(states, ["queued", "queued", "waiting"] * 2)
        for queue in ("tasks", "tasks#render"):
            self.assertEqual(len(self.stage.consume(queue)), 2)

    def test_the_window_was_closed_before_the_store_refused(self) -> None:
        self.stage.add_worker("render")
        self.stage.runner.slow = True
        done = self.submit(kind="render")
        self.stage.run_pending()
        self.stage.windows.close(Route("tasks", "render"))
        self.stage.runner.away = True
        self.stage.runner.run_waiting()
        self.failureResultOf(done, Unavailable)

    def test_the_queues_have_windows_of_their_own(self) -> None:
        self.create_here(count=6)
        [task] = self.create_here(queue="slow")
        self.assertEqual(task.state, State.QUEUED)

    def test_with_the_broker_away_tasks_wait_and_are_confirmed_all_the_same(self) -> None:
        self.stage.broker.ready = False
        tasks = self.create_here(count=2)
        self.assertEqual([task.state for task in tasks], [State.WAITING] * 2)
        self.assertEqual(self.place.room, 5)
        self.stage.broker.ready = True
        self.stage.run_maintenance()
        self.assertEqual(self.stage.states(*tasks), ["queued"] * 2)
        self.assertEqual(len(self.stage.broker.published), 2)

    def test_the_answer_does_not_wait_for_the_broker(self) -> None:
        self.stage.broker.withholds_confirms = True
        self.create_here()

    def test_the_answer_waits_for_the_commit(self) -> None:
        self.stage.runner.slow = True
        done = self.submit()
        self.stage.run_pending()
        self.assertNoResult(done)
        self.assertEqual((self.stage.broker.published, self.stage.broker.event_batches), ([], []))
        self.stage.runner.run_waiting()
        self.successResultOf(done)

    def test_others_hear_of_the_task_before_its_message_goes_out(self) -> None:
        self.create_here()
        self.assertEqual(self.stage.broker.sent, ["events", "messages"])

    def test_the_store_is_away(self) -> None:
        self.stage.runner.away = True
        done = self.submit(count=3)
        self.stage.run_pending()
        self.failureResultOf(done, Unavailable)
        self.assertEqual(self.place.room, 5)
        self.assertEqual((self.stage.broker.published, self.stage.broker.event_batches), ([], []))
        self.stage.runner.away = False
        self.create_here()

    def test_one_that_cannot_be_stored_fails_alone_and_the_window_stays_right(self) -> None:
        good, bad, fine = self.submit(), self.submit(task="a\0b"), self.submit()
        self.stage.run_pending()
        self.successResultOf(good)
        self.failureResultOf(bad, BadRequest)
        self.successResultOf(fine)
        self.assertEqual(self.place.room, 3)
        self.assertEqual(len(self.stage.broker.published), 2)

    def test_a_request_is_stored_whole_or_not_at_all(self) -> None:
        specs = [NewTask(self.ana, "t", queue="tasks"), NewTask(self.ana, "\0", queue="tasks")]
        done: Deferred[Any] = self.stage.submitter.submit(specs)
        self.stage.run_pending()
        self.failureResultOf(done, BadRequest)
        self.assertEqual(self.stage.tasks(), [])

    def test_a_defect_leaves_the_window_right_too(self) -> None:
        self.stage.runner.broken = True
        done = self.submit(count=3)
        self.stage.run_pending()
        self.failureResultOf(done, ZeroDivisionError)
        self.assertEqual(self.place.room, 5)

    def test_drained(self) -> None:
        self.stage.runner.slow = True
        self.submit()
        drained = self.stage.submitter.drained()
        self.stage.run_pending()
        self.assertNoResult(drained)
        self.stage.runner.run_waiting()
        self.successResultOf(drained)

    def test_a_thousand_tasks_a_transaction(self) -> None:
        before = self.stage.runner.calls
        requests = [self.submit(count=600) for _ in range(4)]
        for _ in range(5):
            self.stage.clock.advance(0.01)
        self.assertEqual([len(self.successResultOf(request)) for request in requests], [600] * 4)
        self.assertEqual(self.stage.runner.calls - before, 4)


class OutboxTests(StageCase):
    def settle(self) -> int:
        """Rows left after a round."""
        self.stage.run_maintenance()
        return self.stage.outbox_rows()

    def create_here(self, count: int = 1) -> None:
        """Tasks through this server."""
        specs = [NewTask(self.stage.user_id(), "t", queue="tasks") for _ in range(count)]
        done: Deferred[Any] = self.stage.submitter.submit(specs)
        done.addErrback(lambda failure: failure.trap(Unavailable))
        self.stage.run_pending()

    def test_a_row_goes_only_once_the_broker_has_confirmed(self) -> None:
        self.stage.broker.withholds_confirms = True
        self.create_here(3)
        self.assertEqual(self.settle(), 1)
        self.stage.broker.confirm()
        self.assertEqual(self.settle(), 0)

    def test_one_that_still_waits_for_the_confirm_is_no_orphan(self) -> None:
        self.stage.broker.withholds_confirms = True
        self.create_here()
        self.stage.broker.withholds_confirms = False
        for _ in range(3):
            self.stage.clock.advance(RELAY_AFTER)
            self.stage.run_maintenance()
        self.assertEqual(len(self.stage.broker.published), 1)
        self.stage.broker.confirm()
        self.assertEqual(self.settle(), 0)

    def test_settled_rows_go_with_the_next_batch(self) -> None:
        self.create_here()
        before = self.stage.runner.calls
        self.create_here()
        self.assertEqual((self.stage.outbox_rows(), self.stage.runner.calls), (1, before + 1))

    def test_they_are_not_forgotten_when_that_batch_fails(self) -> None:
        self.create_here()
        self.stage.runner.away = True
        self.create_here()
        self.stage.runner.away = False
        self.assertEqual(self.settle(), 0)

    def test_nor_when_settling_fails(self) -> None:
        self.create_here()
        for trouble in ("away", "broken"):
            setattr(self.stage.runner, trouble, True)
            self.assertEqual(self.settle(), 1)
            setattr(self.stage.runner, trouble, False)
        self.flushLoggedErrors(ZeroDivisionError)
        self.assertEqual(self.settle(), 0)

    def test_a_batch_that_all_waits_needs_no_confirmation(self) -> None:
        self.stage.broker.ready = False
        self.create_here()
        self.stage.run_maintenance()
        self.assertEqual(self.stage.outbox_rows(), 0)

    def test_orphans_are_published_by_whoever_finds_them(self) -> None:
        tasks = self.stage.create(count=2, published=False)
        self.stage.run_maintenance()
        self.assertEqual(self.stage.broker.published, [])
        self.stage.clock.advance(RELAY_AFTER)
        self.stage.run_maintenance()
        self.assertEqual([m.task_id for m in self.stage.broker.published], [task.id for task in tasks])
        self.assertEqual(self.settle(), 0)

    def test_only_what_still_waits_for_a_worker(self) -> None:
        tasks = self.stage.create(count=3, published=False)
        self.stage.claim(tasks[1])
        self.stage.clock.advance(RELAY_AFTER)
        self.stage.run_maintenance()
        self.assertEqual([m.task_id for m in self.stage.broker.published], [tasks[0].id, tasks[2].id])

    def test_not_while_the_broker_is_away(self) -> None:
        self.stage.create(published=False)
        self.stage.broker.ready = False
        self.stage.clock.advance(RELAY_AFTER)
        self.assertEqual(self.settle(), 1)
        self.stage.broker.ready = True
        self.assertEqual(self.settle(), 1)
        self.assertEqual((len(self.stage.broker.published), self.settle()), (1, 0))

    def test_a_broker_that_goes_away_while_publishing_leaves_the_row_to_the_relay(self) -> None:
        self.stage.runner.slow = True
        self.create_here()
        self.stage.broker.ready = False
        self.stage.runner.slow = False
        self.stage.runner.run_waiting()
        self.assertEqual((self.stage.states(), self.stage.broker.published), (["queued"], []))
        self.stage.broker.ready = True
        self.stage.clock.advance(RELAY_AFTER)
        self.stage.run_maintenance()
        self.assertEqual((len(self.stage.broker.published), self.settle()), (1, 0))

    def test_a_defect_while_publishing_is_logged_and_leaves_the_row(self) -> None:
        self.stage.broker.withholds_confirms = True
        self.create_here()
        self.stage.broker.confirm(ZeroDivisionError())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.settle(), 1)
