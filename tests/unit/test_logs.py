"""The action get_log, and following a log through the protocol."""

from __future__ import annotations

import base64
from typing import Any

from taskd.api.log_follow import MAX_EVENT_CHARS, PACE, RECHECK
from taskd.api.log_pages import CHUNKS
from taskd.model.limits import MAX_LINE_CHARS
from taskd.model.states import State
from taskd.protocol import limits
from tests.unit.stage import Client
from tests.unit.test_actions import ActionCase


def texts(found: dict[str, Any]) -> list[str]:
    """The lines of a reply or an event."""
    return [line["text"] for line in found["lines"]]


class LogCase(ActionCase):
    def running(self, client: Client | None = None) -> int:
        """Create and begin a task. Returns its id."""
        task_id = self.add(client)
        self.stage.begin(task_id)
        return task_id

    def log(self, task_id: int, **fields: Any) -> dict[str, Any]:
        """The reply of get_log, which must be a success."""
        reply = self.client.ask("get_log", task_id=task_id, **fields)
        self.assertEqual(reply.get("status"), "success", reply)
        return reply

    def pass_time(self, seconds: float = PACE) -> None:
        for _ in range(round(seconds / PACE)):
            self.stage.clock.advance(PACE)
        self.stage.run_pending()

    def try_again(self, task_id: int) -> None:
        """Fail the attempt and begin the next one."""
        self.stage.finish(task_id, state=State.WAITING, error="no")
        self.stage.run_maintenance()
        self.stage.begin(task_id)


class GetLogAction(LogCase):
    def test_a_task_without_output_has_an_empty_log(self) -> None:
        reply = self.log(self.add())
        del reply["id"]
        self.assertEqual(
            reply, {"ok": True, "status": "success", "lines": [], "cursor": None, "more": False, "cut": False}
        )

    def test_a_log_is_read_from_its_first_line(self) -> None:
        task_id = self.running()
        self.stage.report(task_id, "one", "two ñ")
        self.stage.clock.advance(1.5)
        self.stage.report(task_id, "three", first_line=3)
        reply = self.log(task_id)
        self.assertEqual(
            reply["lines"],
            [
                {"attempt": 1, "line": 1, "at": "2025-03-01T12:00:00Z", "text": "one"},
                {"attempt": 1, "line": 2, "at": "2025-03-01T12:00:00Z", "text": "two ñ"},
                {"attempt": 1, "line": 3, "at": "2025-03-01T12:00:01.500000Z", "text": "three"},
            ],
        )
        self.assertEqual((reply["more"], reply["cut"]), (False, False))

    def test_a_log_is_read_in_pages(self) -> None:
        task_id = self.running()
        for n in range(3):
            self.stage.report(task_id, *(f"{n}.{i}" for i in range(3)), first_line=1 + 3 * n)
        found, more, cursor = [], [], None
        for _ in range(3):
            reply = self.log(task_id, limit=4, cursor=cursor)
            cursor = reply["cursor"]
            found.append(texts(reply))
            more.append(reply["more"])
        wanted = [["0.0", "0.1", "0.2", "1.0"], ["1.1", "1.2", "2.0", "2.1"], ["2.2"]]
        self.assertEqual((found, more), (wanted, [True, True, False]))

    def test_an_empty_page_returns_the_given_cursor(self) -> None:
        task_id = self.running()
        self.stage.report(task_id, "one")
        cursor = self.log(task_id)["cursor"]
        reply = self.log(task_id, cursor=cursor)
        self.assertEqual((reply["lines"], reply["cursor"], reply["more"]), ([], cursor, False))
        self.stage.report(task_id, "two", first_line=2)
        self.assertEqual(texts(self.log(task_id, cursor=cursor)), ["two"])

    def test_the_log_has_all_attempts_in_order_including_those_before_a_retry(self) -> None:
        task_id = self.running()
        self.stage.report(task_id, "first")
        self.try_again(task_id)
        self.stage.report(task_id, "second")
        self.stage.finish(task_id, state=State.FAILED, error="no")
        self.client.ask("retry_task", task_id=task_id)
        self.stage.run_pending()
        self.stage.begin(task_id)
        self.stage.report(task_id, "once more")
        reply = self.log(task_id)
        self.assertEqual([(x["attempt"], x["text"]) for x in reply["lines"]],
            [(1, "first"), (2, "second"), (1, "once more")])  # fmt: skip
        cursor = self.log(task_id, limit=1)["cursor"]
        self.assertEqual(texts(self.log(task_id, cursor=cursor)), ["second", "once more"])

    def test_the_tail_gives_the_last_lines(self) -> None:
        task_id = self.running()
        numbers = list(range(1, 3 * CHUNKS + 2))
        for n in numbers:
            self.stage.report(task_id, f"{n}", first_line=n)
        reply = self.log(task_id, tail=True, limit=5)
        self.assertEqual([x["line"] for x in reply["lines"]], numbers[-5:])
        self.assertEqual((reply["more"], reply["cut"]), (False, False))
        self.assertEqual(self.log(task_id, cursor=reply["cursor"])["lines"], [])
        self.assertEqual(len(self.log(task_id, limit=1000)["lines"]), len(numbers))
        early = self.log(task_id, limit=len(numbers) - 3)["cursor"]
        self.assertEqual(texts(self.log(task_id, cursor=early, tail=True)), [str(n) for n in numbers[-3:]])
        self.assertEqual(self.log(self.add(), tail=True)["lines"], [])

    def test_a_reply_says_whether_lines_before_it_were_cut(self) -> None:
        task_id = self.running()
        self.stage.report(task_id, "one", "two")
        behind_one = self.log(task_id, limit=1)["cursor"]
        self.stage.report(task_id, "three", "four", first_line=3)
        behind_three = self.log(task_id, limit=3)["cursor"]
        self.assertFalse(self.log(task_id)["cut"])
        self.stage.report(task_id, "five", first_line=5, keep_from=3)
        for fields, first, cut in (
            ({}, "three", True),
            ({"cursor": behind_one}, "three", True),
            ({"cursor": behind_three}, "four", False),
            ({"tail": True, "limit": 2}, "four", False),
            ({"tail": True}, "three", True),
        ):
            reply = self.log(task_id, **fields)
            self.assertEqual((texts(reply)[0], reply["cut"]), (first, cut), fields)

    def test_lines_cut_from_a_later_attempt_count_as_well(self) -> None:
        task_id = self.running()
        self.stage.report(task_id, "one")
        cursor = self.log(task_id)["cursor"]
        self.try_again(task_id)
        self.stage.report(task_id, "again")
        self.assertFalse(self.log(task_id, cursor=cursor)["cut"])
        self.stage.report(task_id, "two", first_line=2, keep_from=2)
        reply = self.log(task_id, cursor=cursor)
        self.assertEqual((texts(reply), reply["cut"]), (["two"], True))

    def test_a_reply_is_bounded(self) -> None:
        task_id = self.running()
        lines = ["x" * MAX_LINE_CHARS] * 100
        for n in range(6):
            self.stage.report(task_id, *lines, first_line=1 + 100 * n)
        for tail in (False, True):
            reply = self.log(task_id, limit=1000, tail=tail)
            size = sum(map(len, texts(reply)))
            self.assertGreater(size, limits.MAX_PAGE_CHARS - MAX_LINE_CHARS)
            self.assertLessEqual(size, limits.MAX_PAGE_CHARS)
            self.assertEqual(reply["more"], not tail)
        self.assertEqual(reply["lines"][-1]["line"], 600)
        self.assertEqual(len(self.log(task_id)["lines"]), limits.DEFAULT_LOG_LINES)

    def test_invalid_cursors_are_refused(self) -> None:
        task_id = self.running()
        encoded = (b"l1.1", b"l1.1.-1", b"l1.1.1.1", b"l%d.1.1" % 2**31, b"l1.1.1\n", b"l\xb2.1.1")
        cursors = [base64.urlsafe_b64encode(raw).decode() for raw in encoded]
        for cursor in ("", "x", "!!!", "ñ", "\0", "A" * 60_000, "YjY", *cursors):
            self.assertRefused(self.client.ask("get_log", task_id=task_id, cursor=cursor), "bad_request", "cursor")

    def test_the_logs_of_other_users_tasks_are_not_found(self) -> None:
        task_id = self.running()
        self.stage.report(task_id, "secret")
        eva = self.stage.client("eva")
        for follow in (False, True):
            self.assertRefused(eva.ask("get_log", task_id=task_id, follow=follow), "not_found", "task_id")
        self.stage.report(task_id, "another", first_line=2)
        self.pass_time()
        self.assertEqual(eva.events(), [])

    def test_reading_a_log_with_the_store_away_is_unavailable(self) -> None:
        task_id = self.running()
        self.stage.runner.away = True
        self.assertRefused(self.client.ask("get_log", task_id=task_id), "unavailable")


class FollowLog(LogCase):
    def follow(self, task_id: int, **fields: Any) -> dict[str, Any]:
        return self.log(task_id, follow=True, **fields)

    def received(self, client: Client | None = None) -> list[Any]:
        """The received events: texts of log events, states of log_end events."""
        return [
            texts(event) if event["event"] == "log" else event.get("state", event["event"])
            for event in (client or self.client).events()
        ]

    def test_new_lines_and_the_end_are_sent_as_events(self) -> None:
        task_id = self.running()
        self.stage.report(task_id, "one")
        self.assertEqual(texts(self.follow(task_id)), ["one"])
        self.stage.report(task_id, "two", "three", first_line=2)
        self.pass_time()
        [event] = self.client.events()
        self.assertEqual(list(event), ["event", "task_id", "lines", "cursor", "cut"])
        self.assertEqual((event["event"], event["task_id"], event["cut"]), ("log", task_id, False))
        self.assertEqual(event["lines"][0], {**event["lines"][1], "line": 2, "text": "two"})
        self.assertEqual(self.log(task_id, cursor=event["cursor"])["lines"], [])
        self.stage.finish(task_id)
        self.pass_time()
        self.assertEqual(self.client.events(), [{"event": "log_end", "task_id": task_id, "state": "completed"}])
        self.assertEqual(self.stage.timers(), [])
        self.assertEqual(self.stage.hub._listeners, {})

    def test_following_an_ended_task_sends_the_remaining_lines_and_the_end(self) -> None:
        task_id = self.running()
        self.stage.report(task_id, *"abc")
        self.stage.finish(task_id, state=State.FAILED, error="no")
        self.assertEqual(texts(self.follow(task_id, limit=1)), ["a"])
        self.pass_time()
        self.assertEqual(self.received(), [["b", "c"], "failed"])

    def test_a_log_can_be_followed_from_a_cursor_and_from_the_tail(self) -> None:
        task_id = self.running()
        self.stage.report(task_id, *"abc")
        cursor = self.log(task_id, limit=1)["cursor"]
        self.assertEqual(texts(self.follow(task_id, cursor=cursor, limit=1)), ["b"])
        self.assertEqual(self.received(), [["c"]])
        self.assertEqual(texts(self.follow(task_id, tail=True, limit=1)), ["c"])
        self.stage.report(task_id, "d", first_line=4)
        self.pass_time()
        self.assertEqual(self.received(), [["d"]])

    def test_a_task_that_has_not_begun_can_be_followed(self) -> None:
        task_id = self.add(delay=3600)
        self.follow(task_id)
        self.assertEqual(self.received(), [])
        self.client.ask("cancel_task", task_id=task_id)
        self.pass_time()
        self.assertEqual(self.received(), ["cancelled"])

    def test_a_log_is_followed_through_all_attempts(self) -> None:
        task_id = self.running()
        self.follow(task_id)
        self.stage.report(task_id, "one")
        self.try_again(task_id)
        self.stage.report(task_id, "two")
        self.pass_time()
        self.pass_time()
        self.assertEqual(self.received(), [["one", "two"]])

    def test_at_most_four_events_a_second_are_sent(self) -> None:
        task_id = self.running()
        self.follow(task_id)
        for n in range(1, 101):
            self.stage.report(task_id, str(n), first_line=n)
            self.stage.clock.advance(0.02)
        self.pass_time()
        events = self.received()
        self.assertLessEqual(len(events), 2 / PACE + 2)
        self.assertGreaterEqual(len(events), 2 / PACE - 1)
        self.assertEqual([int(text) for event in events for text in event], list(range(1, 101)))

    def test_a_lost_event_batch_is_made_up_for_by_the_next_recheck(self) -> None:
        task_id = self.running()
        self.follow(task_id)
        self.stage.broker.ready = False
        self.stage.report(task_id, "one")
        self.pass_time(1)
        self.assertEqual(self.received(), [])
        self.pass_time(RECHECK - 1)
        self.assertEqual(self.received(), [["one"]])
        self.stage.finish(task_id)
        self.stage.hub.gap()
        self.pass_time()
        self.assertEqual(self.received(), ["completed"])

    def test_a_repeated_event_batch_repeats_no_lines(self) -> None:
        task_id = self.running()
        self.follow(task_id)
        self.stage.report(task_id, "one")
        self.stage.report(task_id, "one")
        for body in tuple(self.stage.broker.event_batches):
            self.stage.broker.announce(body)
        self.pass_time()
        self.assertEqual(self.received(), [["one"]])

    def test_a_line_at_any_moment_is_sent_exactly_once(self) -> None:
        for moment in range(5):
            client = self.stage.client()
            task_id = self.running(client)
            self.stage.runner.slow = True

            def say(now: bool, task_id: int = task_id) -> None:
                if now:
                    self.stage.report(task_id, "one")
                    self.stage.finish(task_id)

            say(moment == 0)
            request = client.start("get_log", task_id=task_id, follow=True)
            say(moment == 1)
            self.stage.runner.run_waiting()
            say(moment == 2)
            self.stage.runner.run_waiting()
            say(moment == 3)
            for _ in range(6):
                self.stage.runner.run_waiting()
                self.stage.run_pending()
            say(moment == 4)
            self.stage.runner.slow = False
            self.stage.runner.run_waiting()
            self.pass_time()
            self.pass_time()
            lines = texts(client.reply(request))
            received = self.received(client)
            self.assertEqual(lines + [t for event in received[:-1] for t in event], ["one"], moment)
            self.assertEqual(received[-1], "completed")
            client.lose_connection()

    def test_following_a_task_again_replaces_the_first_follow(self) -> None:
        task_id = self.running()
        self.follow(task_id)
        self.follow(task_id)
        self.stage.report(task_id, "one")
        self.pass_time()
        self.assertEqual(self.received(), [["one"]])

    def test_two_simultaneous_follows_of_a_task_are_one(self) -> None:
        task_id = self.running()
        self.stage.runner.slow = True
        for _ in range(2):
            self.client.start("get_log", task_id=task_id, follow=True)
        self.stage.runner.slow = False
        self.stage.runner.run_waiting()
        self.stage.report(task_id, "one")
        self.pass_time()
        self.assertEqual(self.received(), [["one"]])

    def test_a_follow_that_fails_does_not_end_the_earlier_one(self) -> None:
        task_id = self.running()
        self.follow(task_id)
        self.stage.runner.away = True
        self.assertRefused(self.client.ask("get_log", task_id=task_id, follow=True), "unavailable")
        self.stage.runner.away = False
        self.stage.report(task_id, "one")
        self.pass_time()
        self.assertEqual(self.received(), [["one"]])

    def test_the_follows_of_a_connection_are_limited(self) -> None:
        tasks = self.stage.create(count=limits.MAX_FOLLOWS + 1)
        for task in tasks[:-1]:
            self.follow(task.id)
        self.follow(tasks[0].id)
        reply = self.client.ask("get_log", task_id=tasks[-1].id, follow=True)
        self.assertRefused(reply, "rate_limited")
        self.assertTrue(self.stage.client().ask("get_log", task_id=tasks[-1].id, follow=True)["ok"])
        self.client.ask("cancel_task", task_id=tasks[5].id)
        self.pass_time()
        self.assertEqual(self.received(), ["cancelled"])
        self.follow(tasks[-1].id)

    def test_the_limit_holds_for_pipelined_requests(self) -> None:
        tasks = self.stage.create(count=limits.MAX_FOLLOWS + 5)
        self.client.send(*({"action": "get_log", "task_id": t.id, "id": t.id, "follow": True} for t in tasks))
        replies = self.client.lines()
        self.assertEqual([reply["ok"] for reply in replies].count(False), 5)

    def check_silent(self, task_id: int, client: Client | None = None) -> None:
        """Assert that the follow has ended: new output of its task sends no event."""
        self.stage.report(task_id, "more", first_line=50)
        self.pass_time(RECHECK)
        self.assertEqual([e for e in (client or self.client).events() if e["event"].startswith("log")], [])
        self.assertEqual(self.stage.hub._listeners, {})

    def test_unwatch_logout_and_login_end_a_follow(self) -> None:
        other = self.stage.client("eva")
        for end in (
            lambda c: c.ask("unwatch"),
            lambda c: c.ask("logout"),
            lambda c: c.ask("login", username="eva", password="correct horse"),
        ):
            client = self.stage.client()
            task_id = self.running(client)
            client.ask("get_log", task_id=task_id, follow=True)
            self.assertTrue(end(client)["ok"])
            self.check_silent(task_id, client)
        self.assertEqual(other.events(), [])

    def test_unwatch_ends_a_follow_that_is_not_answered_yet(self) -> None:
        task_id = self.running()
        self.stage.runner.slow = True
        request = self.client.start("get_log", task_id=task_id, follow=True)
        self.client.ask("unwatch")
        self.stage.runner.slow = False
        self.stage.runner.run_waiting()
        self.stage.run_pending()
        self.assertTrue(self.client.reply(request)["ok"])
        self.check_silent(task_id)

    def test_a_repeated_watch_does_not_end_a_follow(self) -> None:
        task_id = self.running()
        self.follow(task_id)
        for _ in range(2):
            self.client.ask("watch")
        self.stage.report(task_id, "one")
        self.pass_time()
        logs = [event for event in self.client.events() if event["event"] == "log"]
        self.assertEqual(
            ["cursor" in event for event in logs], [False, True], "one event of the watch, one of the follow"
        )

    def test_a_lost_connection_ends_its_follows(self) -> None:
        task_id = self.running()
        self.follow(task_id)
        self.client.lose_connection()
        self.assertEqual(self.stage.timers(), [])
        self.assertEqual(self.stage.hub._listeners, {})

    def test_a_draining_server_ends_follows_with_a_draining_event(self) -> None:
        self.follow(self.running())
        self.stage.drain()
        self.assertEqual(self.client.events(), [{"event": "draining"}])
        self.assertTrue(self.client.closed)
        self.assertEqual(self.stage.hub._listeners, {})

    def test_a_client_that_does_not_read_gets_the_rest_when_it_reads_again(self) -> None:
        task_id = self.running()
        self.follow(task_id)
        self.client.stop_reading()
        lines = ["x" * MAX_LINE_CHARS] * 20
        for n in range(20):
            self.stage.report(task_id, *lines, first_line=1 + 20 * n)
            self.pass_time()
        self.assertLess(self.client.unread_bytes, 2 * MAX_EVENT_CHARS)
        self.stage.finish(task_id)
        found: list[Any] = []
        for _ in range(20):
            found += self.client.resume_reading()
            self.pass_time()
        numbers = [line["line"] for event in found if event["event"] == "log" for line in event["lines"]]
        self.assertEqual(numbers, list(range(1, 401)))
        self.assertEqual(found[-1]["event"], "log_end")

    def test_an_event_says_whether_lines_before_it_were_cut(self) -> None:
        task_id = self.running()
        self.stage.report(task_id, "one")
        self.follow(task_id)
        self.pass_time()
        self.client.stop_reading()
        self.stage.report(task_id, "two", first_line=2)
        self.stage.report(task_id, "three", first_line=3)
        self.stage.report(task_id, "four", first_line=4, keep_from=3)
        self.pass_time()
        [event] = [*self.client.resume_reading(), *self.client.events()]
        self.assertEqual((texts(event), event["cut"]), (["three", "four"], True))

    def test_a_follow_continues_after_the_store_was_away(self) -> None:
        task_id = self.running()
        self.follow(task_id)
        self.pass_time()
        self.stage.report(task_id, "one")
        self.stage.runner.away = True
        self.pass_time(3 * RECHECK)
        self.assertIn(self.received(), ([], [["one"]]))
        self.stage.runner.away = False
        self.stage.report(task_id, "two", first_line=2)
        self.pass_time(RECHECK)
        self.assertEqual(self.received()[-1][-1], "two")

    def test_a_defect_is_logged_and_the_follow_continues(self) -> None:
        task_id = self.running()
        self.follow(task_id)
        self.pass_time()
        self.stage.runner.broken = True
        self.stage.hub.gap()
        self.stage.run_pending()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.stage.runner.broken = False
        self.stage.report(task_id, "one")
        self.pass_time()
        self.assertEqual(self.received(), [["one"]])

    def test_the_follow_of_a_deleted_task_ends_without_a_state(self) -> None:
        task_id = self.running()
        self.follow(task_id)
        self.pass_time()
        self.stage.sql("DELETE FROM tasks WHERE id = ?", task_id)
        self.pass_time(RECHECK)
        self.assertEqual(self.client.events(), [{"event": "log_end", "task_id": task_id, "state": None}])
