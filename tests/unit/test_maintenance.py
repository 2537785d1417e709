"""taskd.scheduling.maintenance: it repairs what a crash, a lost message or a dead worker left behind."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from twisted.internet.defer import succeed

from taskd.model.errors import BrokerUnavailable
from taskd.model.states import State
from taskd.scheduling.maintenance import delete_finished, promote_due
from taskd.scheduling.maintenance.requeue_lost import LOST_AFTER
from taskd.scheduling.maintenance.rounds import ROUND
from tests.unit.stage import LEASE, Stage, StageCase

DAY = 86_400.0


class Rounds(StageCase):
    window = 10

    def setUp(self) -> None:
        super().setUp()
        self.route_window = self.stage.window()
        self.stage.run_maintenance()
        self.stage.clock.advance(LEASE / 2)  # from now on the store counts as up

    def pass_time(self, seconds: float) -> None:
        """Advance the clock, then run a round."""
        self.stage.clock.advance(seconds)
        self.stage.run_maintenance()

    def test_the_window_is_corrected_by_the_count_of_the_store(self) -> None:
        self.stage.create(count=4)
        self.route_window.correct(9)
        self.stage.run_maintenance()
        self.assertEqual(self.route_window.room, 6)

    def test_waiting_tasks_of_other_servers_are_dispatched(self) -> None:
        tasks = self.stage.create(count=3, state=State.WAITING)
        self.stage.run_maintenance()
        self.assertEqual(self.stage.states(*tasks), ["queued"] * 3)

    def test_a_round_runs_every_second(self) -> None:
        self.stage.maintenance.start()
        tasks = self.stage.create(state=State.WAITING)
        self.stage.clock.advance(ROUND)
        self.assertEqual(self.stage.states(*tasks), ["queued"])
        self.stage.maintenance.stop()
        self.stage.maintenance.stop()
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])

    def test_a_slow_round_is_not_overtaken_by_the_next(self) -> None:
        self.stage.runner.slow = True
        self.stage.maintenance.start()
        for _ in range(5):
            self.stage.clock.advance(ROUND)
        self.assertEqual(self.stage.runner.waiting, 1)
        self.stage.maintenance.stop()
        self.stage.runner.slow = False
        self.stage.runner.run_waiting()

    # delayed tasks

    def delayed(self, name: str, count: int = 1) -> list[int]:
        """Create tasks that are due in an hour."""
        now = self.stage.now()
        return [task.id for task in self.stage.create(name, count, State.WAITING, run_at=now + timedelta(hours=1))]

    def test_a_delayed_task_joins_the_backlog_when_its_time_has_come(self) -> None:
        ids = self.delayed("ana", 2)
        self.pass_time(3599)
        self.assertEqual(self.stage.states(*ids), ["waiting"] * 2)
        self.assertFalse(self.route_window.has_backlog)
        self.pass_time(1)
        self.assertEqual(self.stage.states(*ids), ["queued"] * 2)

    def test_its_user_stays_backlogged_until_all_tasks_are_dispatched(self) -> None:
        self.delayed("ana", 15)
        self.pass_time(3600)
        self.assertEqual(len(self.stage.broker.published), 10)
        self.assertTrue(self.route_window.has_backlog)
        self.assertFalse(self.route_window.admit(self.stage.user_id("ana")))

    def test_more_delayed_tasks_than_one_batch_are_promoted(self) -> None:
        self.delayed("ana", promote_due.BATCH + 20)
        self.pass_time(3600)
        self.assertEqual(self.stage.sql("SELECT count(*) FROM tasks WHERE NOT due"), [(0,)])

    # dead workers

    def running(self, **spec: Any) -> int:
        """Create and claim a task for a worker that never beats."""
        [task] = self.stage.create(**spec)
        self.stage.claim(task)
        return task.id

    def pass_silence(self, seconds: float = LEASE + 1) -> None:
        """Poll every second, as servers do, and run a round at the end."""
        for _ in range(round(seconds)):
            self.stage.clock.advance(1)
            self.stage.liveness.on_event()
        self.stage.run_maintenance()

    def test_a_task_of_a_silent_worker_is_dispatched_again(self) -> None:
        task_id = self.running()
        self.pass_silence(LEASE - 1)
        self.assertEqual(self.stage.states(task_id), ["running"])
        self.pass_silence(2)
        [task] = self.stage.tasks(task_id)
        self.assertEqual((task.state, task.dispatch), (State.QUEUED, 2))
        self.assertEqual(self.stage.broker.published[-1], (task_id, 2))

    def test_a_task_with_one_attempt_fails_with_its_worker(self) -> None:
        client = self.stage.client()
        task_id = self.running(max_attempts=1)
        client.ask("watch")
        wait = client.start("wait", task_ids=[task_id], timeout=3600)
        self.pass_silence()
        [event] = client.events()
        self.assertEqual((event["task"]["state"], event["task"]["status"]), ("failed", "Fallida"))
        self.assertTrue(event["task"]["error"])
        self.assertTrue(client.reply(wait)["done"])

    def test_the_loop_takes_back_as_well(self) -> None:
        task_id = self.running()
        self.stage.server.start()
        for _ in range(int(2 * LEASE) + 3):
            self.stage.clock.advance(0.5)
        self.assertEqual([task.dispatch for task in self.stage.tasks(task_id)], [2])
        self.stage.liveness.stop()
        self.stage.maintenance.stop()

    # lost messages

    def test_tasks_whose_messages_were_lost_are_dispatched_again(self) -> None:
        tasks = self.stage.create(count=3)
        self.stage.run_maintenance()
        self.pass_time(LOST_AFTER - 1)
        self.assertEqual(self.stage.states(*tasks), ["queued"] * 3)
        self.pass_time(1)
        self.pass_time(0)
        self.assertEqual([(t.state, t.dispatch) for t in self.stage.tasks(*tasks)], [(State.QUEUED, 2)] * 3)
        self.assertEqual(len(self.stage.broker.published), 3)
        self.assertEqual(self.route_window.room, 7)

    def test_no_message_counts_as_lost_for_half_a_lease_after_the_store_was_away(self) -> None:
        tasks = self.stage.create()
        self.stage.runner.away = True
        self.pass_time(LOST_AFTER)
        self.stage.runner.away = False
        self.pass_time(1)
        self.pass_time(LEASE / 2 - 1)
        self.assertEqual([task.dispatch for task in self.stage.tasks(*tasks)], [1])
        self.pass_time(1)
        self.assertEqual([task.dispatch for task in self.stage.tasks(*tasks)], [2])

    def test_tasks_are_not_lost_while_the_queue_has_messages(self) -> None:
        client = self.stage.client()
        client.ask("new_task", task="x")
        for _ in range(5):
            self.pass_time(LOST_AFTER)
        self.assertEqual([task.dispatch for task in self.stage.tasks()], [1])
        self.stage.lose_messages()
        self.pass_time(0)
        self.pass_time(0)
        self.assertEqual([task.dispatch for task in self.stage.tasks()], [2])

    def test_tasks_are_not_lost_while_the_broker_is_away(self) -> None:
        tasks = self.stage.create()
        self.stage.broker.ready = False
        self.pass_time(LOST_AFTER)
        self.assertEqual(self.stage.states(*tasks), ["queued"])

    def test_the_room_of_lost_messages_is_free_in_the_same_round(self) -> None:
        self.stage.create(count=10)
        self.pass_time(LOST_AFTER)
        self.assertEqual(len(self.stage.broker.published), 10)

    def test_lost_tasks_of_a_kind_that_nobody_serves_wait(self) -> None:
        [task] = self.stage.create(kind="sculpt")
        self.pass_time(LOST_AFTER)
        self.assertEqual(self.stage.states(task), ["waiting"])
        self.assertEqual(len(self.stage.broker.published), 0)

    # failures

    def test_no_statement_is_sent_while_the_store_is_not_ready(self) -> None:
        self.stage.store.ready = False
        calls = self.stage.runner.calls
        self.stage.run_maintenance()
        self.assertEqual(self.stage.runner.calls, calls)

    def test_the_next_round_makes_up_for_a_failed_one(self) -> None:
        tasks = self.stage.create(state=State.WAITING)
        self.stage.runner.away = True
        self.stage.run_maintenance()
        self.stage.runner.away = False
        self.stage.run_maintenance()
        self.assertEqual(self.stage.states(*tasks), ["queued"])

    def test_a_defect_of_one_duty_does_not_stop_the_others(self) -> None:
        tasks = self.stage.create(state=State.WAITING)
        self.stage.store.promote = lambda limit: succeed(1 / 0)  # type: ignore[assignment,return-value]
        self.stage.run_maintenance()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.stage.states(*tasks), ["queued"])

    def test_the_next_round_asks_again_for_a_queue_depth_that_failed(self) -> None:
        async def depth(queue: str) -> int:
            raise BrokerUnavailable("gone")

        tasks = self.stage.create()
        self.stage.broker.depth = depth  # type: ignore[method-assign]
        self.pass_time(LOST_AFTER)
        self.assertEqual(self.stage.states(*tasks), ["queued"])
        del self.stage.broker.depth
        self.pass_time(0)
        self.assertEqual(self.stage.states(*tasks), ["queued"])
        self.assertEqual([task.dispatch for task in self.stage.tasks(*tasks)], [2])


class Retention(StageCase):
    """Finished tasks are deleted when they are old enough, a few at a time."""

    def setUp(self) -> None:
        self.stage = Stage(keep=DAY).learn_backlog()
        self.addCleanup(self.stage.close)

    def create_ended(self, count: int = 1) -> list[int]:
        """Create tasks that end at once. Returns their ids."""
        tasks = self.stage.create(count=count)
        self.stage.run(*tasks)
        return [task.id for task in tasks]

    def count_tasks(self) -> int:
        """The number of tasks in the store."""
        [(count,)] = self.stage.sql("SELECT count(*) FROM tasks")
        return int(count)

    def test_an_old_ended_task_is_deleted_with_its_log_and_attempts(self) -> None:
        [task] = self.stage.create()
        self.stage.claim(task)
        self.stage.report(task, "a line")
        self.stage.finish(task, state=State.FAILED, error="no")
        self.stage.clock.advance(DAY)
        self.stage.run_maintenance()
        self.assertEqual(self.count_tasks(), 1)
        self.stage.clock.advance(delete_finished.REST)
        self.stage.run_maintenance()
        for table in ("tasks", "task_log", "task_attempts"):
            self.assertEqual(self.stage.sql(f"SELECT count(*) FROM {table}"), [(0,)], table)

    def test_an_old_task_that_has_not_ended_is_kept(self) -> None:
        task = self.stage.create(state=State.WAITING, kind="sculpt")
        self.create_ended(2)
        self.stage.clock.advance(2 * DAY)
        self.stage.run_maintenance()
        self.assertEqual([t.id for t in self.stage.tasks()], [t.id for t in task])

    def test_each_round_deletes_one_batch_until_all_are_checked_and_then_pauses(self) -> None:
        self.create_ended(2 * delete_finished.BATCH + 50)
        self.stage.clock.advance(2 * DAY)
        found = []
        for _ in range(3):
            self.stage.run_maintenance()
            found.append(self.count_tasks())
        self.assertEqual(found, [delete_finished.BATCH + 50, 50, 0])
        self.create_ended()
        self.stage.sql("UPDATE tasks SET created_at = 0, finished_at = 0")
        for _ in range(5):
            self.stage.clock.advance(ROUND)
            self.stage.run_maintenance()
        self.assertEqual(self.count_tasks(), 1)
        self.stage.clock.advance(delete_finished.REST)
        self.stage.run_maintenance()
        self.assertEqual(self.count_tasks(), 0)

    def test_kept_tasks_do_not_stop_the_deletion(self) -> None:
        waiting = self.stage.create(count=delete_finished.BATCH, state=State.WAITING, kind="sculpt")
        self.create_ended(3)
        self.stage.clock.advance(2 * DAY)
        self.stage.run_maintenance()
        self.stage.run_maintenance()
        self.assertEqual(self.count_tasks(), len(waiting))

    def test_without_a_retention_time_nothing_is_deleted(self) -> None:
        self.stage.close()
        self.stage = Stage().learn_backlog()
        self.addCleanup(self.stage.close)
        self.create_ended()
        self.stage.clock.advance(4000 * DAY)
        self.stage.run_maintenance()
        self.assertEqual(self.count_tasks(), 1)

    def test_deletion_continues_after_the_store_was_away(self) -> None:
        self.create_ended(delete_finished.BATCH + 5)
        self.stage.clock.advance(2 * DAY)
        self.stage.run_maintenance()
        self.stage.runner.away = True
        self.stage.run_maintenance()
        self.stage.runner.away = False
        self.stage.run_maintenance()
        self.assertEqual(self.count_tasks(), 0)
