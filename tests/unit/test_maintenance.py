"""taskd.scheduling.maintenance: what time brings: delayed tasks, old tasks, and tasks of dead workers."""

from __future__ import annotations

from datetime import timedelta

from twisted.internet.defer import succeed

from taskd.events.records import decode_batch
from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.model.users import Role
from taskd.ports.accounts import SETTLE_SECONDS, Entry, NewSession
from taskd.ports.attempts import Held
from taskd.scheduling.maintenance import delete_finished, promote_due, purge_deleted, sweep_accounts
from taskd.scheduling.maintenance.rounds import ROUND
from tests.unit.stage import LEASE, Stage, StageCase, now

DAY = 86_400.0


class Rounds(StageCase):
    def setUp(self) -> None:
        super().setUp()
        self.stage.add_worker(slots=10)

    def pass_time(self, seconds: float) -> None:
        """Advance the clock, keep the worker alive, then run a round, and let the dispatcher take its turns."""
        self.stage.clock.advance(seconds)
        self.stage.change_worker(beat=int(self.stage.clock.seconds()))
        self.stage.run_maintenance()
        self.stage.pass_time(0.1)

    def test_a_round_runs_every_second(self) -> None:
        rounds = []
        promote = self.stage.store.promote
        self.stage.store.promote = lambda limit: rounds.append(limit) or promote(limit)  # type: ignore
        self.stage.maintenance.start()
        for _ in range(5):
            self.stage.clock.advance(ROUND)
        self.assertEqual(len(rounds), 6)
        self.stage.maintenance.stop()
        self.stage.maintenance.stop()
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])

    def test_what_an_idle_server_asks_of_the_store(self) -> None:
        """Two polls a second, a promotion, a search for orphans, and now and then a turn. With a worker, which asks 1.5
        times a second, two servers keep to ten transactions a second."""
        self.stage.server.start()
        self.stage.pass_time(10)
        before = self.stage.runner.calls
        for _ in range(60):
            self.stage.sql("UPDATE workers SET beat = beat + 1")
            self.stage.pass_time(1)
        self.assertLessEqual(self.stage.runner.calls - before, 60 * 4.25)
        now(self.stage.server.scheduler.drain())

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
        later = self.stage.now() + timedelta(hours=1)
        return [task.id for task in self.stage.create(name, count, run_at=later)]

    def test_a_delayed_task_is_assigned_when_its_time_has_come(self) -> None:
        ids = self.delayed("ana", 2)
        self.pass_time(3599)
        self.assertEqual(self.stage.states(*ids), ["waiting"] * 2)
        self.assertFalse(self.stage.pool().backlog)
        self.pass_time(1)
        self.assertEqual(self.stage.states(*ids), ["queued"] * 2)

    def test_there_is_a_backlog_until_all_are_assigned(self) -> None:
        ids = self.delayed("ana", 15)
        self.pass_time(3600)
        self.assertEqual(self.stage.states(*ids).count("queued"), 10)
        self.assertTrue(self.stage.pool().backlog)

    def test_more_delayed_tasks_than_one_batch_are_promoted(self) -> None:
        self.delayed("ana", promote_due.BATCH + 20)
        self.pass_time(3600)
        self.assertEqual(self.stage.sql("SELECT count(*) FROM tasks WHERE NOT due"), [(0,)])

    def test_other_servers_hear_of_what_has_become_due(self) -> None:
        self.delayed("ana", 3)
        self.stage.clock.advance(3600)
        before = len(self.stage.broker.event_batches)
        self.stage.run_maintenance()
        routes = [decode_batch(body).routes for body in self.stage.broker.event_batches[before:]]
        self.assertIn([("tasks", "simulate")], routes)

    # dead workers

    def pass_silence(self, seconds: float = LEASE + 1) -> None:
        """Poll every second, as servers do, and run a round at the end."""
        for _ in range(round(seconds)):
            self.stage.clock.advance(1)
            self.stage.liveness.on_event()
        self.stage.run_maintenance()

    def test_a_task_of_a_silent_worker_is_assigned_to_another(self) -> None:
        [task] = self.stage.begin(*self.stage.create(), worker="silent")
        self.pass_silence(LEASE - 1)
        self.assertEqual(self.stage.states(task), ["running"])
        self.stage.change_worker(beat=100)
        self.pass_silence(2)
        self.stage.pass_time(0.1)
        [found] = self.stage.tasks(task)
        self.assertEqual((found.state, found.dispatch, found.worker), (State.QUEUED, 2, "w"))
        self.assertEqual(self.stage.broker.hinted, ["w"])

    def test_a_task_with_one_attempt_fails_with_its_worker(self) -> None:
        client = self.stage.client()
        [task] = self.stage.begin(*self.stage.create(max_attempts=1))
        client.ask("watch")
        wait = client.start("wait", task_ids=[task.id], timeout=3600)
        self.pass_silence()
        [event] = client.events()
        self.assertEqual((event["task"]["state"], event["task"]["status"]), ("failed", "Fallida"))
        self.assertTrue(event["task"]["error"])
        self.assertTrue(client.reply(wait)["done"])

    def test_the_loop_takes_back_as_well(self) -> None:
        [task] = self.stage.begin(*self.stage.create(), worker="silent")
        self.stage.server.start()
        for n in range(int(2 * LEASE) + 3):
            self.stage.change_worker(beat=n + 10)
            self.stage.clock.advance(0.5)
        self.stage.pass_time(0.2)
        self.assertEqual([t.dispatch for t in self.stage.tasks(task)], [2])
        now(self.stage.server.scheduler.drain())

    # failures

    def test_no_statement_is_sent_while_the_store_is_not_ready(self) -> None:
        self.stage.store.ready = False
        calls = self.stage.runner.calls
        self.stage.run_maintenance()
        self.assertEqual(self.stage.runner.calls, calls)

    def test_the_next_round_makes_up_for_a_failed_one(self) -> None:
        ids = self.delayed("ana")
        self.stage.runner.away = True
        self.pass_time(3600)
        self.stage.runner.away = False
        self.pass_time(1)
        self.assertEqual(self.stage.states(*ids), ["queued"])

    def test_a_defect_of_one_duty_does_not_stop_the_others(self) -> None:
        self.stage.close()
        self.stage = Stage(keep=DAY)
        self.addCleanup(self.stage.close)
        self.stage.run(*self.stage.create())
        self.stage.store.promote = lambda limit: succeed(1 / 0)  # type: ignore[assignment,return-value]
        self.stage.clock.advance(2 * DAY)
        self.stage.run_maintenance()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.stage.tasks(), [])


class Retention(StageCase):
    """Finished tasks are deleted when they are old enough, a few at a time."""

    def setUp(self) -> None:
        self.stage = Stage(keep=DAY)
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
        self.stage.begin(task)
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
        task = self.stage.create(kind="sculpt")
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
        waiting = self.stage.create(count=delete_finished.BATCH, kind="sculpt")
        self.create_ended(3)
        self.stage.clock.advance(2 * DAY)
        self.stage.run_maintenance()
        self.stage.run_maintenance()
        self.assertEqual(self.count_tasks(), len(waiting))

    def test_without_a_retention_time_nothing_is_deleted(self) -> None:
        self.stage.close()
        self.stage = Stage()
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


class Accounts(StageCase):
    """Deleted users, and what is past."""

    def setUp(self) -> None:
        super().setUp()
        self.stage.add_worker(slots=10)
        self.stage.run_maintenance()

    def delete(self, name: str) -> None:
        """Delete a user's account, as an admin does."""
        [(user_id,)] = self.stage.sql("SELECT id FROM users WHERE username = ?", name)
        now(self.stage.other_store.delete_user(user_id))

    def rounds(self, count: int = 1) -> None:
        """So many rounds, one second each."""
        for _ in range(count):
            self.stage.clock.advance(1)
            self.stage.run_maintenance()

    def release(self, *tasks: Task) -> None:
        """A worker has dropped what it was ordered to end."""
        for task in tasks:
            now(self.stage.other_store.release("w", [Held(task.id, task.dispatch)]))

    def left(self) -> int:
        [(count,)] = self.stage.sql("SELECT count(*) FROM tasks")
        return int(count)

    def test_tasks_of_a_deleted_user_end_and_go(self) -> None:
        running = self.stage.begin(*self.stage.create("ana", 2, worker="w"), worker="w")
        self.stage.create("ana", 3, kind="sculpt")
        [bens] = self.stage.create("ben", kind="sculpt")
        self.delete("ana")
        before = len(self.stage.broker.event_batches)
        self.rounds(round(purge_deleted.REST))
        self.assertEqual(self.left(), 3)
        # the worker hears at once that it should end what it holds
        self.assertEqual(self.stage.broker.ordered, ["w"])
        changes = [c for body in self.stage.broker.event_batches[before:] for c in decode_batch(body).changes]
        self.assertEqual(sum(change.state == "cancelled" for change in changes), 5)
        self.release(*running)
        self.rounds(2)
        self.assertEqual(self.left(), 1)
        self.assertEqual(self.stage.states(bens), ["waiting"])

    def test_a_round_deletes_a_batch(self) -> None:
        self.stage.create("ana", 2 * purge_deleted.BATCH + 50, kind="sculpt")
        self.delete("ana")
        self.stage.clock.advance(purge_deleted.REST)
        found = []
        for _ in range(3):
            self.rounds()
            found.append(self.left())
        self.assertEqual(found, [purge_deleted.BATCH + 50, 50, 0])

    def test_users_take_turns(self) -> None:
        for name in ("ana", "ben"):
            self.stage.create(name, purge_deleted.BATCH + 1, kind="sculpt")
            self.delete(name)
        self.stage.clock.advance(purge_deleted.REST)
        self.rounds(2)
        rows = self.stage.sql("SELECT user_id, count(*) FROM tasks GROUP BY user_id")
        self.assertEqual([count for _, count in rows], [1, 1])
        self.rounds(2)
        self.assertEqual(self.left(), 0)

    def test_a_purge_becomes_final(self) -> None:
        self.stage.create("ana", kind="sculpt")
        self.delete("ana")
        self.rounds(30)
        self.assertEqual(self.stage.sql("SELECT count(*) FROM users WHERE purged_at IS NOT NULL"), [(0,)])
        self.stage.clock.advance(SETTLE_SECONDS)
        self.rounds(2)
        self.assertEqual(self.stage.sql("SELECT count(*) FROM users WHERE purged_at IS NOT NULL"), [(1,)])

    def test_an_account_without_tasks_costs_a_call_in_ten_seconds(self) -> None:
        self.stage.create("ana", kind="sculpt")
        self.delete("ana")
        self.rounds(30)
        calls = []
        deleted_users = self.stage.store.deleted_users
        self.stage.store.deleted_users = lambda: calls.append(1) or deleted_users()  # type: ignore
        self.rounds(60)
        self.assertEqual(len(calls), 6)

    def test_what_is_past_is_swept_once_an_hour(self) -> None:
        store = self.stage.other_store
        root = now(store.create_user("root", "root", "x", role=Role.ADMIN))
        now(store.open_session(root.id, NewSession(b"token", 600)))
        now(store.audit([Entry("old")]))
        self.stage.clock.advance(sweep_accounts.REST - 10)
        self.stage.run_maintenance()
        self.assertEqual(self.stage.sql("SELECT count(*) FROM sessions"), [(1,)])
        self.rounds(10)
        self.assertEqual(self.stage.sql("SELECT count(*) FROM sessions"), [(0,)])
        self.stage.clock.advance(366 * DAY)
        self.rounds()
        self.assertEqual(self.stage.sql("SELECT count(*) FROM audit"), [(0,)])

    def test_a_sweep_goes_on_until_nothing_is_past(self) -> None:
        answers = [True, True, False]
        self.stage.clock.advance(sweep_accounts.REST)
        sweep = self.stage.store.sweep_accounts
        self.stage.store.sweep_accounts = lambda *args: succeed(answers.pop(0))  # type: ignore
        self.rounds(5)
        self.assertEqual(answers, [])
        self.stage.store.sweep_accounts = sweep  # type: ignore
