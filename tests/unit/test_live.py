"""The actions wait, watch and unwatch, through the protocol."""

from __future__ import annotations

from collections.abc import Callable

from taskd.api.actions.live import RECHECK
from taskd.model.states import State
from taskd.protocol import limits
from tests.unit.stage import Client
from tests.unit.test_actions import ActionCase, ids


class WaitAction(ActionCase):
    def wait(self, *task_ids: int, timeout: float = 60) -> int:
        return self.client.start("wait", task_ids=task_ids, timeout=timeout)

    def answered(self, request: int) -> bool:
        """Whether the reply has arrived. It stays for a later call."""
        lines = self.client.lines()
        self.client._kept = lines
        return any(line.get("id") == request for line in lines)

    def test_a_wait_for_ended_tasks_is_answered_at_once(self) -> None:
        a, b = self.add(), self.add()
        self.stage.run(a)
        self.client.ask("cancel_task", task_id=b)
        reply = self.client.reply(self.wait(b, a, b))
        self.assertEqual((reply["status"], reply["done"], ids(reply)), ("success", True, [b, a]))

    def test_a_wait_is_answered_when_the_last_task_has_ended(self) -> None:
        a, b, c = self.add(), self.add(), self.add()
        request = self.wait(a, b, c)
        self.stage.run(a)
        self.stage.begin(b)
        self.client.ask("cancel_task", task_id=c)
        self.assertFalse(self.answered(request))
        self.stage.finish(b, state=State.FAILED, result=None)
        reply = self.client.reply(request)
        self.assertEqual([task["state"] for task in reply["tasks"]], ["completed", "failed", "cancelled"])
        self.assertTrue(reply["done"])
        self.assertEqual(self.stage.timers(), [])

    def test_a_task_that_is_retried_is_waited_for_again(self) -> None:
        a, b = self.add(), self.add()
        request = self.wait(a, b)
        self.stage.begin(a)
        self.stage.finish(a, state=State.FAILED, result=None)
        self.client.ask("retry_task", task_id=a)
        self.stage.run(b)
        self.assertFalse(self.answered(request))
        self.stage.run(a)
        reply = self.client.reply(request)
        self.assertEqual((reply["done"], [t["state"] for t in reply["tasks"]]), (True, ["completed"] * 2))
        self.assertEqual(self.stage.timers(), [])

    def test_a_retried_task_is_waited_for_until_the_time_is_up(self) -> None:
        a, b = self.add(), self.add()
        request = self.wait(a, b, timeout=5)
        self.client.ask("cancel_task", task_id=a)
        self.client.ask("retry_task", task_id=a)
        self.stage.run(b)
        self.stage.clock.advance(4.9)
        self.assertFalse(self.answered(request))
        self.stage.clock.advance(0.1)
        self.assertFalse(self.client.reply(request)["done"])

    def test_a_timeout_of_zero_is_answered_at_once(self) -> None:
        a, b = self.add(), self.add()
        self.stage.run(a)
        reply = self.client.reply(self.wait(a, b, timeout=0))
        self.assertEqual((reply["done"], [t["state"] for t in reply["tasks"]]), (False, ["completed", "waiting"]))

    def test_a_wait_is_answered_when_its_timeout_is_over(self) -> None:
        request = self.wait(self.add(), timeout=2.5)
        self.stage.clock.advance(2.4)
        self.assertFalse(self.answered(request))
        self.stage.clock.advance(0.1)
        self.stage.run_pending()
        reply = self.client.reply(request)
        self.assertEqual((reply["ok"], reply["done"]), (True, False))

    def test_a_lost_event_batch_is_made_up_for_by_the_next_recheck(self) -> None:
        """The event batches of workers may be lost."""
        task_id = self.add()
        request = self.wait(task_id)
        announce, self.stage.broker.announce = self.stage.broker.announce, lambda *batch: None  # type: ignore[method-assign]
        self.stage.run(task_id)
        self.assertFalse(self.answered(request))
        self.stage.clock.advance(RECHECK)
        self.assertTrue(self.client.reply(request)["done"])
        self.stage.broker.announce = announce  # type: ignore[method-assign]

    def test_a_gap_makes_a_wait_read_the_store_again(self) -> None:
        task_id = self.add()
        request = self.wait(task_id)
        self.stage.broker.announce = lambda *batch: None  # type: ignore[method-assign]
        self.stage.run(task_id)
        self.stage.hub.gap()
        self.stage.run_pending()
        self.assertTrue(self.client.reply(request)["done"])

    def test_an_end_while_the_store_is_read_is_not_missed(self) -> None:
        task_id = self.add()
        self.stage.runner.slow = True
        request = self.wait(task_id)
        self.stage.run(task_id)
        for _ in range(5):
            self.stage.runner.run_waiting()
        self.assertTrue(self.client.reply(request)["done"])

    def test_a_wait_fails_when_the_store_is_away_at_a_recheck(self) -> None:
        request = self.wait(self.add())
        self.stage.runner.away = True
        self.stage.clock.advance(RECHECK)
        self.assertRefused(self.client.reply(request), "unavailable")
        self.assertEqual(self.stage.timers(), [])

    def test_a_lost_connection_ends_its_waits(self) -> None:
        self.wait(self.add(), timeout=3600)
        self.client.lose_connection()
        self.assertEqual(self.stage.timers(), [])
        self.stage.run(1)
        self.assertEqual(self.client.raw_lines(), [])

    def test_other_requests_are_answered_during_a_wait(self) -> None:
        self.wait(self.add(), timeout=3600)
        self.assertTrue(self.client.ask("ping")["ok"])
        self.assertTrue(self.client.ask("get_tasks")["ok"])

    def test_invalid_task_ids_and_timeouts_are_refused(self) -> None:
        task_id = self.add()
        for task_ids, code, field in (
            ([], "bad_request", "task_ids"),
            ([task_id] * 1001, "too_large", "task_ids"),
            ([task_id, 0], "bad_request", "task_ids[1]"),
            ([task_id, "1"], "bad_request", "task_ids[1]"),
            ([task_id, 99], "not_found", "task_ids"),
        ):
            self.assertRefused(self.client.ask("wait", task_ids=task_ids), code, field)
        for timeout in (-1, 3601, "5", None):
            self.assertRefused(self.client.ask("wait", task_ids=[task_id], timeout=timeout), "bad_request", "timeout")

    def test_a_wait_may_name_a_thousand_tasks(self) -> None:
        tasks = self.stage.create(count=1000)
        request = self.wait(*(task.id for task in tasks))
        self.stage.run(*tasks)
        reply = self.client.reply(request)
        self.assertEqual((reply["done"], ids(reply)), (True, [task.id for task in tasks]))

    def test_waits_and_their_replies_read_no_whole_tasks(self) -> None:
        tasks = self.stage.create(count=3)
        self.stage.store.get_tasks = None  # type: ignore[assignment, method-assign]
        request = self.wait(*(task.id for task in tasks))
        self.stage.run(*tasks, result='"' + "x" * 200_000 + '"')
        reply = self.client.reply(request)
        self.assertEqual(
            [(t["state"], t["result"], t["result_omitted"]) for t in reply["tasks"]], [("completed", None, True)] * 3
        )

    def test_waits_that_look_at_the_same_moment_share_a_statement(self) -> None:
        numbers = [task.id for task in self.stage.create(count=5)]
        clients = [self.client, self.stage.client(), self.stage.client("eva")]
        theirs = self.add(clients[2])
        requests = [(c, [c.start("wait", task_ids=numbers) for _ in range(20)]) for c in clients[:2]]
        before = self.stage.runner.calls
        waits = [{"action": "wait", "id": n, "task_ids": ids} for n, ids in enumerate([[theirs], [theirs, numbers[0]]])]
        clients[2].send(*waits)
        self.assertRefused(clients[2].reply(1), "not_found", "task_ids")
        self.assertEqual(self.stage.runner.calls, before + 1)
        before = self.stage.runner.calls
        self.stage.hub.gap()
        self.stage.run_pending()
        self.assertLessEqual(self.stage.runner.calls - before, 2)
        self.stage.run(*numbers)
        for client, asked in requests:
            self.assertTrue(all(client.reply(request)["done"] for request in asked))

    def test_the_tasks_that_a_connection_waits_for_are_limited(self) -> None:
        numbers = [task.id for task in self.stage.create(count=1000)]
        waits = [self.wait(*numbers, timeout=5) for _ in range(limits.MAX_WAITED // 1000)]
        reply = self.client.ask("wait", task_ids=[1])
        self.assertRefused(reply, "rate_limited")
        self.assertIn("watch", reply["message"])
        self.stage.clock.advance(5)
        self.stage.run_pending()
        self.assertEqual([self.client.reply(wait)["done"] for wait in waits], [False] * 10)
        self.assertTrue(self.client.ask("wait", task_ids=[1], timeout=0)["ok"])


class WatchAction(ActionCase):
    """A worker has room for every new task."""

    def setUp(self) -> None:
        super().setUp()
        self.stage.add_worker(slots=5000)

    def events(self, client: Client | None = None) -> list[tuple[int, str, int]]:
        """(task id, state, version) of each event."""
        tasks = [event["task"] for event in (client or self.client).events()]
        return [(task["id"], task["state"], task["version"]) for task in tasks]

    def test_a_watch_gives_a_snapshot_and_then_every_change(self) -> None:
        a, b = self.add(), self.add()
        reply = self.client.ask("watch")
        self.assertEqual((reply["status"], ids(reply)), ("success", [b, a]))
        self.assertEqual(self.events(), [])
        self.stage.run(a)
        c = self.add()
        self.assertEqual(self.events(), [(a, "running", 2), (a, "completed", 3), (c, "queued", 1)])

    def test_an_event_shows_a_task_as_a_list_does(self) -> None:
        self.client.ask("watch")
        self.add(payload={"x": 1})
        [event] = self.client.events()
        self.assertEqual(event, {"event": "task", "task": self.client.ask("get_tasks")["tasks"][0]})

    def test_the_snapshot_is_limited_but_events_are_of_all_tasks(self) -> None:
        numbers = [self.add() for _ in range(5)]
        self.assertEqual(ids(self.client.ask("watch", limit=2)), numbers[:2:-1])
        self.stage.begin(numbers[0])
        self.assertEqual(self.events(), [(numbers[0], "running", 2)])

    def test_an_empty_snapshot_is_a_success(self) -> None:
        reply = self.client.ask("watch")
        self.assertEqual((reply["status"], reply["tasks"]), ("success", []))

    def test_a_change_at_any_moment_is_seen_exactly_once(self) -> None:
        """Before, during and after the read of the snapshot, and before and after its reply is read."""
        for moment in range(6):
            client = self.stage.client()
            task_id = self.add()
            self.stage.runner.slow = True

            def change(now: bool, task_id: int = task_id) -> None:
                if now:
                    self.stage.begin(task_id)

            change(moment == 0)
            request = client.start("watch")
            change(moment == 1)
            change(moment == 2)
            self.stage.runner.run_waiting()
            change(moment == 3)
            self.stage.runner.slow = False
            self.stage.run_pending()
            change(moment == 4)
            reply = client.reply(request)
            change(moment == 5)
            seen = {task["id"]: task["version"] for task in reply["tasks"]}
            for number, _, version in self.events(client):
                self.assertGreater(version, seen.get(number, 0), "a duplicate")
                seen[number] = version
            self.assertEqual(seen[task_id], 2, moment)
            client.lose_connection()

    def test_unwatch_ends_the_watch_and_can_be_repeated(self) -> None:
        self.client.ask("watch")
        self.assertEqual(self.client.ask("unwatch")["status"], "success")
        self.assertEqual(self.client.ask("unwatch")["status"], "success")
        self.add()
        self.assertEqual(self.events(), [])

    def test_a_repeated_watch_replaces_the_first(self) -> None:
        for _ in range(3):
            self.client.ask("watch")
        task_id = self.add()
        self.assertEqual(self.events(), [(task_id, "queued", 1)])

    def test_two_simultaneous_watches_are_one(self) -> None:
        self.stage.runner.slow = True
        requests = [self.client.start("watch") for _ in range(2)]
        self.stage.announce(self.stage.create())
        self.stage.runner.slow = False
        self.stage.runner.run_waiting()
        for request in requests:
            self.assertEqual(len(self.client.reply(request)["tasks"]), 1)
        task_id = self.add()
        self.assertEqual(self.events(), [(task_id, "waiting", 1)])

    def test_a_client_can_watch_again_after_a_gap(self) -> None:
        self.client.ask("watch")
        self.stage.hub.gap()
        task_id = self.add()
        self.assertEqual(self.client.events(), [{"event": "gap"}])
        self.assertEqual(ids(self.client.ask("watch")), [task_id])
        self.stage.begin(task_id)
        self.assertEqual(self.events(), [(task_id, "running", 2)])

    def test_a_watch_that_fails_leaves_nothing(self) -> None:
        self.stage.runner.away = True
        self.assertRefused(self.client.ask("watch"), "unavailable")
        self.stage.runner.away = False
        self.add()
        self.assertEqual(self.events(), [])
        self.assertEqual(self.stage.hub._watches, {})

    def test_a_watch_that_fails_ends_the_earlier_one_with_a_gap(self) -> None:
        self.client.ask("watch")
        self.stage.runner.away = True
        self.assertRefused(self.client.ask("watch"), "unavailable")
        self.assertRefused(self.client.ask("watch"), "unavailable")
        self.stage.runner.away = False
        self.add()
        self.assertEqual(self.client.events(), [{"event": "gap"}])

    def fail_later_watch(self) -> tuple[int, Callable[[], None]]:
        """Ask for two watches, of which the later one fails first. The earlier one is answered by the function."""
        runner = self.stage.runner
        runner.slow = True
        earlier = self.client.start("watch")
        held, runner._waiting = runner._waiting, []
        later = self.client.start("watch")
        runner.slow, runner.away = False, True
        runner.run_waiting()
        runner.away = False
        self.assertRefused(self.client.reply(later), "unavailable")
        runner._waiting = held
        return earlier, runner.run_waiting

    def test_a_watch_that_is_answered_after_a_later_one_failed_ends_with_a_gap(self) -> None:
        earlier, answer = self.fail_later_watch()
        answer()
        self.assertEqual(self.client.reply(earlier)["status"], "success")
        self.assertEqual(self.client.events(), [{"event": "gap"}])
        self.add()
        self.assertEqual(self.client.events(), [])

    def test_a_watch_that_is_answered_by_a_draining_server_after_a_later_one_failed(self) -> None:
        """The client must not believe that it gets events until its connection is closed."""
        earlier, answer = self.fail_later_watch()
        self.stage.drain()
        answer()
        self.assertEqual(self.client.events(), [{"event": "draining"}])
        self.assertEqual(self.client.reply(earlier)["status"], "success")
        self.assertEqual(self.client.events(), [])

    def test_a_watch_that_is_answered_after_the_client_did_not_read_ends_with_a_gap(self) -> None:
        self.client.ask("watch")
        self.stage.runner.slow = True
        request = self.client.start("watch")
        [connection] = self.stage.lines.connections
        connection._subscriptions.end_watch_with_gap()
        connection._subscriptions.end_watch_with_gap()
        self.assertEqual(self.client.events(), [{"event": "gap"}])
        self.stage.runner.slow = False
        self.stage.runner.run_waiting()
        self.assertEqual(self.client.reply(request)["status"], "success")
        self.assertEqual(self.client.events(), [{"event": "gap"}])

    def test_changes_of_other_users_are_not_sent(self) -> None:
        eva = self.stage.client("eva")
        eva.ask("watch")
        self.add()
        self.assertEqual(self.events(eva), [])

    def test_every_connection_of_a_user_gets_the_events(self) -> None:
        others = [self.stage.client() for _ in range(2)]
        for client in (self.client, *others):
            client.ask("watch")
        task_id = self.add()
        for client in (self.client, *others):
            self.assertEqual(self.events(client), [(task_id, "queued", 1)])

    def test_output_of_running_tasks_is_sent_unchanged(self) -> None:
        task_id = self.add()
        self.stage.begin(task_id)
        self.client.ask("watch")
        self.stage.report(task_id, progress=0.5)
        self.stage.report(task_id, "a", "b", first_line=7)
        self.assertEqual(
            self.client.events(),
            [
                {"event": "progress", "task_id": task_id, "attempt": 1, "progress": 0.5, "note": None},
                {
                    "event": "log",
                    "task_id": task_id,
                    "attempt": 1,
                    "at": "2025-03-01T12:00:00Z",
                    "first_line": 7,
                    "lines": ["a", "b"],
                },
            ],
        )
        self.assertEqual(self.client.ask("get_tasks")["tasks"][0]["progress"], 0.5)

    def test_output_of_other_users_tasks_is_not_sent(self) -> None:
        task_id = self.add()
        self.stage.begin(task_id)
        eva = self.stage.client("eva")
        eva.ask("watch")
        self.stage.report(task_id, "secret", progress=0.5)
        self.assertEqual(eva.events(), [])
        self.assertEqual(self.client.events(), [], "this client does not watch")

    def test_output_before_the_snapshot_is_no_event(self) -> None:
        task_id = self.add()
        self.stage.begin(task_id)
        self.stage.runner.slow = True
        request = self.client.start("watch")
        self.stage.report(task_id, "a", progress=0.25)
        self.stage.runner.slow = False
        self.stage.runner.run_waiting()
        [task] = self.client.reply(request)["tasks"]
        self.assertEqual((task["progress"], self.client.events()), (0.25, []))
        self.stage.report(task_id, progress=0.5)
        self.assertEqual([event["event"] for event in self.client.events()], ["progress"])

    def test_without_watch_there_are_no_events(self) -> None:
        self.add()
        self.assertEqual(self.events(), [])
