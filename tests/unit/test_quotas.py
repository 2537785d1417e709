"""Quotas, through the protocol: what is refused and why, what is stored, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred, fail
from twisted.logger import LogEvent, LogLevel, capturedLogs, formatEvent

from taskd.model.errors import Unavailable
from taskd.model.quotas import MIB, Limits
from taskd.ports.quotas import UsageDelta
from taskd.scheduling import quotas
from taskd.scheduling.known_usage import FORGOTTEN
from taskd.scheduling.maintenance import fold_usage
from taskd.scheduling.quotas import FRESH, RECENT
from taskd.usage_log import STOP_SECONDS
from tests.unit.stage import Client, Stage, StageCase, now

DAY = 86_400


class QuotaCase(StageCase):
    limits = Limits()

    def setUp(self) -> None:
        self.stage = Stage(quotas=self.limits)
        self.addCleanup(self.stage.close)
        self.client = self.stage.client()

    def add(self, count: int = 0, client: Client | None = None, **spec: Any) -> dict[str, Any]:
        """The reply to a request for one task, or for so many."""
        client = client or self.client
        if not count:
            return client.ask("new_task", **{"task": "x", **spec})
        return client.ask("new_tasks", tasks=[{"task": "x", **spec}] * count)

    def count(self) -> int:
        [(count,)] = self.stage.sql("SELECT count(*) FROM tasks")
        return int(count)

    def end_all(self) -> None:
        """Have another server cancel all tasks."""
        self.stage.sql("UPDATE tasks SET state = 'cancelled', finished_at = 1 WHERE finished_at IS NULL")


class OpenTasks(QuotaCase):
    limits = Limits(open=5)

    def test_one_more_is_refused_until_one_has_ended(self) -> None:
        for _ in range(5):
            self.assertTrue(self.add()["ok"])
        reply = self.add()
        self.assertRefused(reply, "quota_exceeded")
        message = "5 of 5 open tasks: wait until some have ended, or cancel some"
        self.assertEqual((reply["message"], "retry_after" in reply), (message, False))
        self.client.ask("cancel_task", task_id=1)
        self.stage.clock.advance(RECENT)
        self.assertTrue(self.add()["ok"])
        self.assertEqual(self.count(), 6)

    def test_a_list_is_stored_as_a_whole_or_not_at_all(self) -> None:
        self.assertTrue(self.add(3)["ok"])
        reply = self.add(3)
        self.assertRefused(reply, "quota_exceeded", "tasks")
        self.assertIn("3 of 5 open tasks, and 3 tasks more in this request: ", reply["message"])
        self.assertIn("send fewer", reply["message"])
        self.assertTrue(self.add(2)["ok"])
        self.assertRefused(self.add(3), "quota_exceeded")
        self.assertEqual(self.count(), 5)

    def test_nobody_exceeds_a_quota_by_being_forgotten(self) -> None:
        self.assertTrue(self.add(5)["ok"])
        for _ in range(3):
            self.stage.clock.advance(FORGOTTEN + RECENT)
            self.assertRefused(self.add(), "quota_exceeded")
        self.assertEqual(self.count(), 5)

    def test_the_first_list_of_a_user_waits_for_the_answer(self) -> None:
        self.assertRefused(self.add(6), "quota_exceeded", "tasks")
        self.assertEqual(self.count(), 0)
        self.assertTrue(self.add(5)["ok"])

    def test_a_pipeline_gets_no_more_than_is_left(self) -> None:
        self.client.send(*({"action": "new_task", "id": n, "task": "x"} for n in range(20)))
        self.assertEqual([line["ok"] for line in self.client.lines()].count(True), 5)
        self.assertEqual(self.count(), 5)

    def test_tasks_of_other_servers_count(self) -> None:
        self.stage.create(count=4, kind="sculpt")
        self.assertTrue(self.add()["ok"])
        self.assertRefused(self.add(), "quota_exceeded")

    def test_more_than_the_limit(self) -> None:
        self.stage.create(count=8, kind="sculpt")
        self.add()
        reply = self.add()
        self.assertIn("more than 5 open tasks: ", reply["message"])

    def test_others_have_their_own(self) -> None:
        self.add(5)
        self.assertTrue(self.add(5, self.stage.client("eva"))["ok"])

    def test_a_task_that_is_retried_is_open_again(self) -> None:
        self.add(5)
        self.assertTrue(self.client.ask("cancel_task", task_id=1)["ok"])
        self.stage.clock.advance(RECENT)
        self.assertTrue(self.client.ask("retry_task", task_id=1)["ok"])
        self.stage.clock.advance(RECENT)
        self.stage.sql("UPDATE tasks SET state = 'failed', finished_at = 1 WHERE id = 1")
        self.assertTrue(self.add()["ok"])
        reply = self.client.ask("retry_task", task_id=1)
        self.assertRefused(reply, "quota_exceeded")
        self.assertIn("5 of 5 open tasks", reply["message"])
        self.assertEqual(self.stage.states(1), ["failed"])

    def test_a_request_with_a_known_key_is_answered(self) -> None:
        first = self.add(key="k")
        self.add(4)
        self.assertRefused(self.add(key="other"), "quota_exceeded")
        again = self.add(key="k")
        self.assertEqual((again["task_id"], again["duplicate"]), (first["task_id"], True))
        specs = [{"task": "x", "key": "k"}, {"task": "x"}]
        self.assertRefused(self.client.ask("new_tasks", tasks=specs), "quota_exceeded")
        self.assertTrue(self.client.ask("new_tasks", tasks=specs[:1] * 2)["ok"])
        self.assertEqual(self.count(), 5)

    def test_a_refusal_holds_for_a_second(self) -> None:
        self.add(5)
        self.assertRefused(self.add(), "quota_exceeded")
        self.end_all()
        calls = self.stage.runner.calls
        self.assertRefused(self.add(), "quota_exceeded")
        self.assertEqual(self.stage.runner.calls, calls)
        self.stage.clock.advance(RECENT)
        self.assertTrue(self.add()["ok"])

    def test_tasks_that_have_ended_do_not_count_within_the_same_second(self) -> None:
        for _ in range(20):
            self.assertTrue(self.add()["ok"])
            self.end_all()
        self.assertEqual(self.count(), 20)

    def test_tasks_that_are_being_stored_count(self) -> None:
        self.add()
        self.stage.runner.slow = True
        self.client.send(*({"action": "new_task", "id": n, "task": "x"} for n in range(10)))
        self.stage.runner.slow = False
        self.stage.runner.run_waiting()
        self.stage.run_pending()
        self.assertEqual([line["ok"] for line in self.client.lines()].count(True), 4)
        calls = self.stage.runner.calls
        self.assertRefused(self.add(), "quota_exceeded")
        self.assertRefused(self.add(), "quota_exceeded")
        self.assertEqual(self.stage.runner.calls, calls, "the answer that refused the others holds for a second")

    def test_while_the_store_is_away_it_says_so(self) -> None:
        self.stage.runner.away = True
        self.assertRefused(self.add(), "unavailable")
        self.assertRefused(self.add(3), "unavailable")
        self.stage.runner.away = False
        self.assertTrue(self.add(3)["ok"])
        self.stage.clock.advance(RECENT)
        self.stage.runner.away = True
        self.assertRefused(self.add(3), "unavailable")
        self.stage.runner.away = False
        self.assertRefused(self.add(3), "quota_exceeded", "tasks")
        self.assertTrue(self.add(2)["ok"])

    def test_a_user_who_comes_back_is_asked_about_first(self) -> None:
        self.add()
        self.stage.clock.advance(FORGOTTEN)
        now(self.stage.other_store.set_quota("ana", {"open": 3}))
        self.assertRefused(self.add(4), "quota_exceeded", "tasks")
        self.assertTrue(self.add(2)["ok"])
        self.assertRefused(self.add(), "quota_exceeded")

    def test_what_could_not_be_stored_takes_no_room(self) -> None:
        self.add()
        for _ in range(3):
            self.stage.runner.away = True
            self.assertRefused(self.add(4), "unavailable")
            self.stage.runner.away = False
        waiting = self.add(4)["task_ids"][0]
        self.client.ask("cancel_task", task_id=1)
        self.stage.clock.advance(RECENT)
        self.assertEqual(self.client.ask("retry_task", task_id=waiting)["code"], "conflict")
        self.assertTrue(self.add()["ok"])

    def test_all_who_wait_for_one_user_share_one_question(self) -> None:
        self.stage.runner.slow = True
        self.client.send(*({"action": "new_task", "id": n, "task": "x", "key": f"k{n}"} for n in range(10)))
        self.assertLessEqual(self.stage.runner.waiting, 2, "the keys, the use")
        self.stage.runner.slow = False
        self.stage.runner.run_waiting()
        self.stage.run_pending()
        self.stage.run_pending()
        self.assertEqual([line["ok"] for line in self.client.lines()].count(True), 5)

    def test_a_defect_while_asking_is_logged_and_refuses_nothing_else(self) -> None:
        read = self.stage.store.read_usage
        self.stage.store.read_usage = lambda *args: 1 / 0  # type: ignore[assignment]
        self.assertRefused(self.add(), "internal")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.stage.store.read_usage = read  # type: ignore[method-assign]
        self.assertTrue(self.add(5)["ok"])


class Daily(QuotaCase):
    limits = Limits(daily=5)

    def test_ended_tasks_count_for_a_day(self) -> None:
        # it is noon
        self.add(3)
        self.end_all()
        self.stage.clock.advance(1)
        self.stage.clock.advance(3599)
        self.add(2)
        self.end_all()
        self.stage.clock.advance(1)
        reply = self.add()
        self.assertRefused(reply, "quota_exceeded")
        self.assertIn("5 of 5 tasks created within 24 hours: wait 23 hours until", reply["message"])
        self.assertEqual(reply["retry_after"], DAY - 3601)
        self.stage.clock.advance(DAY - 3602)
        reply = self.add()
        self.assertRefused(reply, "quota_exceeded")
        self.assertIn("wait 1 minute until", reply["message"])
        self.assertEqual(reply["retry_after"], 1)
        self.stage.clock.advance(1)
        # the session has expired meanwhile
        self.client = self.stage.client()
        self.assertRefused(self.add(4), "quota_exceeded", "tasks")
        self.assertTrue(self.add(3)["ok"])
        self.stage.clock.advance(1)
        self.stage.clock.advance(3599)
        self.assertTrue(self.add(2)["ok"])

    def test_a_retried_task_was_not_created_again(self) -> None:
        self.add(5)
        self.client.ask("cancel_task", task_id=1)
        self.assertTrue(self.client.ask("retry_task", task_id=1)["ok"])

    def test_what_is_not_stored_yet_counts(self) -> None:
        for _ in range(5):
            self.stage.clock.advance(RECENT * 1.1)
            self.assertTrue(self.add()["ok"])
        self.stage.clock.advance(RECENT * 0.9)
        self.assertRefused(self.add(), "quota_exceeded")

    def test_another_server_hears_of_it_within_a_second(self) -> None:
        self.add(4)
        now(self.stage.other_store.add_usage([UsageDelta(self.stage.user_id(), 1, 2)]))
        self.stage.clock.advance(RECENT)
        # it has let in its share, and asks
        self.assertTrue(self.add()["ok"])
        self.assertRefused(self.add(), "quota_exceeded")


class Bytes(QuotaCase):
    limits = Limits(bytes=2 * MIB)

    def test_payloads_count(self) -> None:
        payload = {"a": "ñ" * 25_000}  # 50,008 bytes
        for _ in range(41):
            self.assertTrue(self.add(payload=payload)["ok"])
        reply = self.add(payload=payload)
        self.assertRefused(reply, "quota_exceeded")
        self.assertIn("2.0 of 2.0 MiB of texts, payloads, results and logs: ", reply["message"])
        calls = self.stage.runner.calls
        self.assertRefused(self.add(payload=payload), "quota_exceeded")
        self.assertEqual(self.stage.runner.calls, calls, "bytes do not go away: it does not ask again")
        self.assertTrue(self.add()["ok"], "a small one fits")
        self.assertEqual(self.client.ask("quota")["bytes"]["limit"], 2 * MIB)

    def test_texts_count(self) -> None:
        text = "x" * 4_000
        for _ in range(52):
            self.assertTrue(self.add(10, task=text)["ok"])
        self.assertRefused(self.add(10, task=text), "quota_exceeded")

    def test_no_task_is_retried_at_the_limit(self) -> None:
        self.add(2)
        for task_id in (1, 2):
            self.client.ask("cancel_task", task_id=task_id)
        self.assertTrue(self.client.ask("retry_task", task_id=1)["ok"])
        now(self.stage.other_store.add_usage([UsageDelta(self.stage.user_id(), 0, 2 * MIB)]))
        self.stage.clock.advance(FORGOTTEN)
        self.add()
        self.stage.clock.advance(RECENT)
        reply = self.client.ask("retry_task", task_id=2)
        self.assertRefused(reply, "quota_exceeded")
        self.assertIn("2.0 of 2.0 MiB", reply["message"])
        self.assertEqual(self.stage.states(2), ["cancelled"])

    def test_what_workers_store_counts(self) -> None:
        self.add()
        now(self.stage.other_store.add_usage([UsageDelta(self.stage.user_id(), 0, 2 * MIB)]))
        self.stage.clock.advance(FRESH)
        self.add()
        self.assertRefused(self.add(), "quota_exceeded")

    def test_deleted_tasks_give_room(self) -> None:
        self.stage.close()
        self.stage = Stage(keep=3600, quotas=self.limits)
        self.addCleanup(self.stage.close)
        self.client = self.stage.client()
        self.add(payload={"a": "x" * 60_000})
        self.stage.clock.advance(1)
        now(self.stage.other_store.add_usage([UsageDelta(self.stage.user_id(), 0, 2 * MIB - 60_100)]))
        self.stage.clock.advance(FRESH)
        self.add()
        self.assertRefused(self.add(payload={"a": "x" * 200}), "quota_exceeded")
        self.client.ask("cancel_task", task_id=1)
        self.stage.clock.advance(7200)
        self.stage.run_maintenance()
        self.assertEqual(self.count(), 1)
        self.assertTrue(self.add(payload={"a": "x" * 200})["ok"])


class Cost(QuotaCase):
    """No statement is added on the path of a task."""

    limits = Limits(open=10_000, daily=10_000, bytes=MIB)

    def test_known_users_cost_no_statement(self) -> None:
        self.stage.draw_ids()
        calls = self.stage.runner.calls
        for n in range(20):
            self.assertTrue(self.add()["ok"])
            self.assertEqual(self.stage.runner.calls, calls + n + 1)

    def test_a_user_is_asked_about_every_ten_seconds_and_stored_every_second(self) -> None:
        self.add()
        self.stage.clock.advance(RECENT)
        calls = self.stage.runner.calls
        for _ in range(300):
            self.stage.clock.advance(0.1)
            self.assertTrue(self.add()["ok"])
        # 300 creations, 30 seconds of use, 3 questions, 3 looks at the session
        self.assertLessEqual(self.stage.runner.calls - calls, 300 + 30 + 3 + 3)
        self.assertLess(self.stage.sql("SELECT count(*) FROM user_usage")[0][0], 3)

    def test_many_users_are_asked_about_together(self) -> None:
        clients = [self.stage.client(f"u{n}") for n in range(20)]
        self.stage.draw_ids()
        self.stage.clock.advance(FRESH)
        asked: list[int] = []
        read = self.stage.store.read_usage
        self.stage.store.read_usage = lambda ids, *args: asked.append(len(ids)) or read(ids, *args)  # type: ignore
        for client in clients:
            client.connection.dataReceived(b'{"action":"new_task","task":"x"}\n')
        self.stage.run_pending()
        self.assertEqual(asked, [20])

    def test_one_question_counts_no_more_than_so_many_tasks(self) -> None:
        self.patch(quotas, "MOST_COUNTED", 40_000)
        self.stage = Stage(quotas=self.limits)
        self.addCleanup(self.stage.close)
        clients = [self.stage.client(f"u{n}") for n in range(20)]
        asked: list[int] = []
        read = self.stage.store.read_usage
        self.stage.store.read_usage = lambda ids, *args: asked.append(len(ids)) or read(ids, *args)  # type: ignore
        for client in clients:
            client.connection.dataReceived(b'{"action":"new_task","task":"x"}\n')
        self.stage.run_pending()
        self.stage.pass_time(0.1)
        self.assertEqual(asked, [4] * 5, "each may have 10,000 open tasks")
        self.assertEqual(self.count(), 20)
        asked.clear()
        self.stage.clock.advance(FRESH)
        for client in clients:
            client.connection.dataReceived(b'{"action":"new_task","task":"x"}\n')
        self.stage.run_pending()
        self.assertEqual(asked, [20], "each has one")

    def test_a_user_that_cannot_be_counted_fails_alone(self) -> None:
        clients = [self.stage.client(f"u{n}") for n in range(3)]
        heavy = self.stage.user_id("u1")
        asked: list[list[int]] = []
        read = self.stage.store.read_usage

        def read_usage(ids: list[int], *args: Any) -> Any:
            asked.append(ids)
            return fail(Unavailable("the statement took too long")) if heavy in ids else read(ids, *args)

        self.stage.store.read_usage = read_usage  # type: ignore[method-assign, assignment]
        for client in clients:
            client.connection.dataReceived(b'{"action":"new_tasks","tasks":[{"task":"x"},{"task":"x"}]}\n')
        self.stage.run_pending()
        self.stage.pass_time(0.1)
        self.assertEqual([client.lines()[-1]["ok"] for client in clients], [True, False, True])
        self.assertEqual([len(ids) for ids in asked], [3, 1, 1, 1])

    def test_nothing_is_written_while_nothing_happens(self) -> None:
        self.add(3)
        self.stage.clock.advance(1)
        self.assertEqual(self.stage.sql("SELECT tasks, bytes FROM user_usage"), [(3, 9)])
        calls = self.stage.runner.calls
        self.stage.pass_time(200, step=1)
        self.assertEqual((self.stage.runner.calls, self.stage.clock.getDelayedCalls()), (calls, []))

    def test_users_are_forgotten(self) -> None:
        known = self.stage.server.scheduler.quotas._known
        for name in ("ana", "eva", "ben"):
            self.add(client=self.stage.client(name))
            self.stage.clock.advance(FORGOTTEN / 2)
        self.assertEqual(len(known), 2)
        self.patch(quotas, "MOST_USERS", 2)
        for name in ("eva", "ben", "zoe"):
            self.assertTrue(self.add(client=self.stage.client(name))["ok"])
        self.assertEqual(len(known), 2)

    def test_a_use_that_could_not_be_stored_is_stored_later(self) -> None:
        self.add(3)
        self.stage.runner.away = True
        self.stage.clock.advance(1)
        self.stage.runner.away = False
        self.assertEqual(self.stage.sql("SELECT * FROM user_usage"), [])
        self.add()
        self.stage.clock.advance(1)
        self.assertEqual(self.stage.sql("SELECT tasks, bytes FROM user_usage"), [(4, 12)])

    def test_a_stopping_server_stores_what_it_knows(self) -> None:
        self.add(3)
        now(self.stage.server.scheduler.drain())
        self.assertEqual(self.stage.sql("SELECT tasks, bytes FROM user_usage"), [(3, 9)])
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])

    def stop(self) -> tuple[list[bool], Sequence[LogEvent]]:
        """Stop the server. Gives lists that grow: whether it has ended, and what it has logged."""
        ended: list[bool] = []
        stack = ExitStack()
        events = stack.enter_context(capturedLogs())
        self.addCleanup(stack.close)
        ensureDeferred(self.stage.server.scheduler.drain()).addCallback(lambda _: ended.append(True))
        self.stage.run_pending()
        return ended, events

    def warnings(self, events: Sequence[LogEvent]) -> list[str]:
        return [formatEvent(event) for event in events if event["log_level"] is LogLevel.warn]

    def test_a_stop_does_not_wait_long_for_a_slow_store(self) -> None:
        self.add(3)
        self.stage.runner.slow = True
        self.stage.clock.advance(1)
        ended, logs = self.stop()
        self.stage.clock.advance(STOP_SECONDS - 0.1)
        self.assertEqual(ended, [])
        self.stage.clock.advance(0.1)
        self.assertEqual((ended, len(self.warnings(logs))), ([True], 1))
        self.stage.runner.slow = False
        self.stage.runner.run_waiting()
        self.assertEqual(self.stage.sql("SELECT tasks, bytes FROM user_usage"), [(3, 9)], "once")
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])

    def test_a_stop_stores_what_was_gathered_during_a_statement(self) -> None:
        self.add(3)
        self.stage.runner.slow = True
        self.stage.clock.advance(1)
        self.stage.server.scheduler._usage.add(self.stage.user_id(), 1, 3)
        ended, logs = self.stop()
        self.stage.runner.slow = False
        self.stage.runner.run_waiting()
        self.stage.run_pending()
        self.assertEqual((ended, self.warnings(logs)), ([True], []))
        self.assertEqual(self.stage.sql("SELECT tasks, bytes FROM user_usage"), [(4, 12)])

    def test_a_stop_does_not_try_again_what_has_just_failed(self) -> None:
        self.add(3)
        self.stage.runner.slow = True
        self.stage.clock.advance(1)
        ended, logs = self.stop()
        self.stage.runner.slow, self.stage.runner.away = False, True
        calls = self.stage.runner.calls
        self.stage.runner.run_waiting()
        self.stage.run_pending()
        self.assertEqual((ended, self.stage.runner.calls), ([True], calls + 1))
        self.assertEqual(self.warnings(logs), ["the use of 1 users could not be stored before the stop"])

    def test_a_stop_does_not_wait_for_a_store_that_is_away(self) -> None:
        self.add(3)
        self.stage.store.ready = False
        calls = self.stage.runner.calls
        ended, logs = self.stop()
        self.assertEqual((ended, len(self.warnings(logs)), self.stage.runner.calls), ([True], 1, calls))

    def test_old_hours_are_folded(self) -> None:
        for _ in range(3):
            self.add()
            self.stage.clock.advance(3600)
        self.stage.clock.advance(DAY)
        self.stage.run_maintenance()
        self.stage.clock.advance(fold_usage.REST)
        self.stage.run_maintenance()
        self.assertEqual(self.stage.sql("SELECT hour, tasks, bytes FROM user_usage"), [(0, 0, 9)])


class Actions(QuotaCase):
    limits = Limits(open=5, daily=0, bytes=MIB)

    def setUp(self) -> None:
        super().setUp()
        self.admin = self.stage.admin()

    def test_own_use(self) -> None:
        self.add(3, payload={"a": 1})
        self.stage.clock.advance(1)
        self.assertEqual(
            {k: v for k, v in self.client.ask("quota").items() if k != "id"},
            {
                "ok": True,
                "status": "success",
                "username": "ana",
                "open": {"used": 3, "limit": 5, "default": True},
                "daily": {"used": 3, "limit": 0, "default": True},
                "bytes": {"used": 24, "limit": MIB, "default": True},
            },
        )

    def test_the_use_of_others(self) -> None:
        self.add(2)
        self.assertEqual(self.admin.ask("quota", username="ANA")["open"]["used"], 2)
        self.assertRefused(self.admin.ask("quota", username="nobody"), "not_found", "username")
        self.assertRefused(self.client.ask("quota", username="root"), "forbidden", "username")

    def test_an_admin_sets_limits(self) -> None:
        self.add(5)
        self.assertRefused(self.add(), "quota_exceeded")
        reply = self.admin.ask("set_quota", username="Ana", open=7, mib=3)
        self.assertEqual(reply["username"], "ana")
        self.assertEqual(reply["open"], {"used": 5, "limit": 7, "default": False})
        self.assertEqual(reply["bytes"]["limit"], 3 * MIB)
        self.assertEqual(reply["daily"], {"used": 5, "limit": 0, "default": True} | {"used": reply["daily"]["used"]})
        self.assertTrue(self.add(2)["ok"])
        self.assertRefused(self.add(), "quota_exceeded")
        self.assertEqual(self.admin.ask("set_quota", username="ana", open=0)["open"]["limit"], 0)
        self.assertTrue(self.add(100)["ok"])
        reply = self.admin.ask("set_quota", username="ana", open=None)
        self.assertEqual(reply["open"], {"used": 6, "limit": 5, "default": True})
        self.assertEqual(reply["bytes"], {"used": reply["bytes"]["used"], "limit": 3 * MIB, "default": False})
        self.assertRefused(self.add(), "quota_exceeded")

    def test_a_lower_limit_holds_on_other_servers_within_ten_seconds(self) -> None:
        self.add()
        now(self.stage.other_store.set_quota("ana", {"open": 2}))
        self.assertTrue(self.add()["ok"])
        self.stage.clock.advance(FRESH)
        self.assertTrue(self.add()["ok"])
        self.assertRefused(self.add(), "quota_exceeded")

    def test_an_answer_from_before_the_change_does_not_count(self) -> None:
        self.add()
        self.stage.clock.advance(FRESH)
        read = self.stage.store.read_usage
        late: Deferred[Any] = Deferred()
        old = now(read([self.stage.user_id()], 5))
        self.stage.store.read_usage = lambda *args: late  # type: ignore[method-assign, assignment]
        self.assertTrue(self.add()["ok"])
        self.stage.run_pending()
        self.stage.store.read_usage = read  # type: ignore[method-assign]
        self.admin.ask("set_quota", username="ana", open=2)
        self.client.send({"action": "new_task", "id": 1, "task": "x"})
        self.assertEqual(self.client.lines(), [], "it waits")
        late.callback(old)
        self.stage.pass_time(0.1)
        [reply] = self.client.lines()
        self.assertRefused(reply, "quota_exceeded")
        self.assertIn("2 of 2 open tasks", reply["message"])

    def test_changes_are_in_the_audit(self) -> None:
        self.admin.ask("set_quota", username="ana", open=None, daily=9)
        self.admin.ask("set_quota", username="ana", mib=None)
        [row] = self.admin.ask("audit", username="ana", action_name="set_quota")["audit"]
        self.assertEqual((row["actor"], row["subject"], row["details"]), ("root", "ana", "open default, daily 9"))

    def test_wrong_requests(self) -> None:
        ask = self.admin.ask
        self.assertRefused(ask("set_quota", username="nobody", open=1), "not_found", "username")
        self.assertRefused(ask("set_quota", username="ana"), "bad_request", "open")
        for field in ("open", "daily", "mib"):
            for value in (-1, 1.5, "5", 10**13):
                self.assertRefused(ask("set_quota", username="ana", **{field: value}), "bad_request", field)
        self.assertRefused(self.client.ask("set_quota", username="ana", open=0), "forbidden")

    def test_the_store_is_away(self) -> None:
        self.stage.runner.away = True
        self.assertRefused(self.client.ask("quota"), Unavailable.code)
