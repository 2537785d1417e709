"""taskd.server.line_connection: the line protocol, with clients that behave well and clients that do not."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from taskd.api.tarpit import CutOff
from taskd.events.watch_hub import DRAINING
from taskd.protocol.limits import MAX_LINE_BYTES, MAX_PAGE_CHARS, MAX_PIPELINE
from taskd.server.line_connection import CLOSE_SECONDS, LINGER_SECONDS, MAX_EVENT_BYTES
from tests.unit.stage import Client, StageCase, Transport

PING = {"action": "ping"}
LOGIN = {"action": "login", "username": "ana", "password": "correct horse"}


def padded(length: int, **fields: Any) -> bytes:
    """A ping of exactly this length."""
    start = b'{"action":"ping","id":1,"x":"'
    return start + b"y" * (length - len(start) - 2) + b'"}'


class MalformedLines(StageCase):
    def test_each_malformed_line_gets_one_error_and_the_connection_stays_open(self) -> None:
        client = self.stage.connect()
        self.assertTrue(client.ask("ping")["ok"])
        for line, code in {
            b"": "bad_json",
            b"   ": "bad_json",
            b"\xff\xfe": "bad_json",
            b"[]": "bad_json",
            b"5": "bad_json",
            b"\0": "bad_json",
            b"[" * 10_000: "bad_json",
            b'{"action":"ping","x":NaN}': "bad_json",
            b'{"action":"ping","x":"\\ud800"}': "bad_json",
            b'{"action":"ping","id":1e999}': "bad_request",
            b'{"action":"ping","id":' + b"9" * 5000 + b"}": "bad_request",
            b'{"action":"ping","id":{}}': "bad_request",
            b"{}": "bad_request",
            b'{"action":"new_task"}': "bad_request",
            b'{"action":"destroy"}': "unknown_action",
            b"x" * (MAX_LINE_BYTES + 1): "too_large",
        }.items():
            client.send(line)
            reply = client.line()
            self.assertEqual((reply["ok"], reply["status"], reply["code"]), (False, "error", code), line[:50])
            self.assertTrue(client.ask("ping")["ok"])
        self.assertFalse(client.closed)

    def test_an_http_request_gets_an_error_and_the_connection_is_closed(self) -> None:
        """A web page can make a browser send a request here, but its first line is always that of HTTP."""
        register = {"action": "register", "username": "eva", "password": "correct horse"}
        client = self.stage.connect()
        client.send(b"POST / HTTP/1.1\r", b"Host: localhost:5000\r", b"\r", register)
        self.assertIn("not HTTP", client.line()["message"])
        self.assertTrue(client.closed)
        self.assertEqual(self.stage.sql("SELECT * FROM users"), [])

    def test_an_http_request_behind_a_valid_line_is_only_a_malformed_line(self) -> None:
        client = self.stage.connect()
        client.send(PING, b"GET / HTTP/1.1", PING)
        self.assertEqual([line["ok"] for line in client.lines()], [True, False, True])

    def test_utf16_is_refused_line_by_line(self) -> None:
        client = self.stage.connect()
        client.ask("ping")
        client.connection.dataReceived('{"action":"ping"}\n{"action":"ping"}\n'.encode("utf-16"))
        self.assertEqual({line["code"] for line in client.lines()}, {"bad_json"})
        self.assertFalse(client.closed)

    def test_a_line_of_the_maximal_length_passes_and_one_byte_more_does_not(self) -> None:
        client = self.stage.connect()
        for end in (b"", b"\r"):
            client.send(padded(MAX_LINE_BYTES) + end)
            self.assertTrue(client.line()["ok"])
            client.send(padded(MAX_LINE_BYTES + 1) + end)
            reply = client.line()
            self.assertRefused(reply, "too_large")
            self.assertIn(str(MAX_LINE_BYTES), reply["message"])
        self.assertTrue(client.ask("ping")["ok"])

    def test_lines_behind_an_overlong_line_in_the_same_piece_are_answered(self) -> None:
        client = self.stage.connect()
        client.ask("ping")
        client.send(padded(MAX_LINE_BYTES + 100), PING, padded(MAX_LINE_BYTES + 1), PING)
        self.assertEqual([line.get("code", "ok") for line in client.lines()], ["too_large", "ok"] * 2)

    def test_an_overlong_line_is_refused_before_its_end(self) -> None:
        client = self.stage.connect()
        client.ask("ping")
        for _ in range(50):
            client.connection.dataReceived(b"x" * 40_000)
        self.assertRefused(client.line(), "too_large")
        client.send(b"the end", PING)
        self.assertTrue(client.line()["ok"])

    def test_a_line_may_arrive_byte_by_byte(self) -> None:
        client = self.stage.connect()
        for byte in b'{"action":"ping","id":"\xc3\xb1"}\r\n':
            client.connection.dataReceived(bytes([byte]))
        self.assertEqual(client.line(), {"id": "ñ", "ok": True, "status": "success"})

    def test_the_server_sends_nothing_before_a_request(self) -> None:
        client = self.stage.client()
        self.stage.clock.advance(3600)
        self.assertEqual(client.raw_lines(), [])


class PipedInput(StageCase):
    """``printf '...' | nc``: requests without ids, all in one write, then the end of input."""

    def test_lines_are_answered_in_order_login_included(self) -> None:
        client = self.stage.connect()
        register = {**LOGIN, "action": "register"}
        client.send(register, {"action": "whoami"}, LOGIN, {"action": "whoami"}, {"action": "new_task", "task": "x"})
        statuses = [line.get("code", line["status"]) for line in client.lines()]
        self.assertEqual(statuses, ["success", "auth_required", "logged_in", "success", "task_created"])

    def test_all_requests_are_answered_before_the_connection_is_closed(self) -> None:
        self.stage.client()
        client = self.stage.connect()
        self.stage.runner.slow = True
        client.send(LOGIN, {"action": "get_tasks"}, PING)
        client.half_close()
        while self.stage.runner.waiting:
            self.assertFalse(client.closed)
            self.stage.runner.run_waiting()
            self.stage.run_pending()
        self.assertEqual([line["status"] for line in client.lines()], ["logged_in", "no_tasks", "success"])
        self.assertTrue(client.closed)
        client.lose_connection()
        self.assertEqual(self.stage.timers(), [])

    def test_the_last_line_needs_no_line_end(self) -> None:
        client = self.stage.connect()
        client.connection.dataReceived(b'{"action":"ping"}\n{"action":"ping","id":5}')
        client.half_close()
        self.assertEqual([line.get("id") for line in client.lines()], [None, 5])
        self.assertTrue(client.closed)

    def test_a_last_line_that_is_too_long_is_answered_once(self) -> None:
        client = self.stage.connect()
        client.ask("ping")
        client.connection.dataReceived(b"x" * (MAX_LINE_BYTES + 5))
        client.half_close()
        self.assertRefused(client.line(), "too_large")
        self.assertTrue(client.closed)

    def test_a_connection_without_requests_is_closed_at_the_end_of_input(self) -> None:
        client = self.stage.connect()
        client.half_close()
        self.assertEqual(client.raw_lines(), [])
        self.assertTrue(client.closed)

    def test_a_wait_is_answered_before_the_connection_is_closed(self) -> None:
        client = self.stage.client()
        client.send({"action": "new_task", "task": "x"}, {"action": "wait", "task_ids": [1]})
        client.half_close()
        self.assertFalse(client.closed)
        self.stage.run(1)
        self.assertEqual([line.get("done") for line in client.lines()], [None, True])
        self.assertTrue(client.closed)

    def test_a_watch_ends_at_the_end_of_input(self) -> None:
        client = self.stage.client()
        client.send({"action": "watch"})
        client.half_close()
        self.stage.announce(self.stage.create())
        self.assertEqual([line["status"] for line in client.lines()], ["success"])

    def test_the_end_of_input_may_come_while_the_client_does_not_read(self) -> None:
        client = self.stage.connect()
        client.stop_reading()
        client.send(PING, PING)
        client.half_close()
        self.assertFalse(client.closed)
        client.resume_reading()
        self.assertEqual(len(client.lines()), 2)
        self.assertTrue(client.closed)

    def test_a_client_that_does_not_read_the_last_replies_is_disconnected(self) -> None:
        client = self.stage.client()
        client.half_close()
        self.stage.clock.advance(LINGER_SECONDS - 1)
        self.assertFalse(client.transport.disconnected)
        self.stage.clock.advance(1)
        self.assertTrue(client.transport.disconnected)

    def test_a_peer_that_closed_its_reading_side_is_disconnected(self) -> None:
        client = self.stage.connect()
        client.connection.writeConnectionLost()
        self.assertTrue(client.transport.disconnected)


class Backpressure(StageCase):
    def test_a_client_that_does_not_read_is_not_read(self) -> None:
        client = self.stage.connect()
        client.stop_reading()
        self.assertFalse(client.is_read_from)
        client.send(PING, PING)
        self.assertEqual(client.raw_lines(), [])
        client.resume_reading()
        self.assertTrue(client.is_read_from)
        self.assertEqual(len(client.lines()), 2)

    def test_a_flood_of_empty_lines_does_not_fill_the_memory(self) -> None:
        client = self.stage.connect()
        client.ask("ping")
        client.stop_reading(full=False)
        client.send(b"\n" * 65536)
        self.assertLess(client.unread_bytes, 70_000)
        replies = 0
        while client.unread_bytes:
            replies += len(client.lines())
            client.resume_reading()
        self.assertEqual(replies, 65537)

    def test_as_many_requests_as_the_pipeline_holds_are_taken(self) -> None:
        client = self.stage.client()
        self.stage.runner.slow = True
        client.send(*({"action": "cancel_task", "task_id": 1, "id": n} for n in range(MAX_PIPELINE + 10)))
        self.assertFalse(client.is_read_from)
        self.assertEqual(self.stage.runner.waiting, MAX_PIPELINE)
        self.stage.runner.slow = False
        self.stage.runner.run_waiting()
        self.stage.run_pending()
        self.assertTrue(client.is_read_from)
        self.assertEqual(len(client.lines()), MAX_PIPELINE + 10)

    def test_long_requests_fill_the_pipeline_sooner(self) -> None:
        client = self.stage.client()
        self.stage.runner.slow = True
        for n in range(100):
            if client.is_read_from:
                client.send({"action": "new_task", "task": "x", "id": n, "payload": {"x": "y" * 60_000}})
        self.assertLess(self.stage.runner.waiting, 20)
        self.assertFalse(client.is_read_from)

    def test_large_replies_are_not_made_for_a_client_that_does_not_read(self) -> None:
        self.stage.client()
        self.stage.create(count=300, task="ñ" * 4000)
        client = self.stage.client()
        client.stop_reading(full=False)
        requests: dict[str, dict[str, Any]] = {
            "get_tasks": {"limit": 500},
            "get_task": {"task_id": 1},
            "watch": {"limit": 500},
            "wait": {"task_ids": list(range(1, 301)), "timeout": 0},
        }
        for action, fields in requests.items():
            for n in range(10):
                client.send({"action": action, "id": f"{action}{n}", **fields})
        self.assertLess(client.unread_bytes, 5 * 2 * MAX_PAGE_CHARS)
        replies: list[Any] = []
        while client.unread_bytes:
            replies += client.resume_reading()
            client.stop_reading(full=False)
        self.assertEqual(len({line["id"] for line in replies}), len(replies))
        self.assertEqual(len(replies), 40)

    def test_large_replies_requested_before_the_client_stopped_reading_wait(self) -> None:
        client = self.stage.client()
        self.stage.create(count=300, task="x" * 4000)
        self.stage.runner.slow = True
        client.send(*({"action": "get_tasks", "limit": 200, "id": n} for n in range(30)))
        client.stop_reading(full=False)
        for replies in (4, 8, 12):
            while self.stage.runner.waiting:
                self.stage.runner.run_waiting()
                self.stage.run_pending()
            self.assertLess(client.unread_bytes, 4 * 200 * 4500)
            self.assertLessEqual(len(client.resume_reading()), 4, replies)
            client.stop_reading(full=False)

    def test_events_for_a_client_that_does_not_read_become_a_gap(self) -> None:
        client = self.stage.client()
        client.ask("watch")
        client.stop_reading()
        for _ in range(3):
            self.stage.announce(self.stage.create(count=200, task="x" * 4000))
        self.assertLess(client.unread_bytes, MAX_EVENT_BYTES + 200_000)
        events = client.resume_reading()
        self.assertEqual(events[-1], {"event": "gap"})
        self.assertEqual([line["event"] for line in events].count("gap"), 1)
        self.assertEqual([line["task"]["id"] for line in events[:-1]], list(range(1, len(events))))
        self.stage.announce(self.stage.create())
        self.assertEqual(client.lines(), [])
        snapshot = client.ask("watch", limit=1)["tasks"]
        self.assertEqual([task["id"] for task in snapshot], [601])
        [task] = self.stage.create()
        self.stage.announce([task])
        self.assertEqual([event["task"]["id"] for event in client.lines()], [602])

    def test_a_burst_of_events_ends_with_a_gap(self) -> None:
        client = self.stage.client()
        client.ask("watch")
        client.stop_reading(full=False)
        tasks = self.stage.create(count=500, task="x" * 4000)
        self.stage.publisher.publish(tasks)
        self.stage.run_pending()
        self.assertLess(client.unread_bytes, MAX_EVENT_BYTES + 300_000)
        self.assertEqual(client.lines()[-1], {"event": "gap"})

    def test_a_slow_reader_that_catches_up_in_time_misses_nothing(self) -> None:
        client = self.stage.client()
        client.ask("watch")
        for _ in range(5):
            client.stop_reading()
            self.stage.announce(self.stage.create(count=100, task="x" * 4000))
            self.assertEqual(len(client.resume_reading()), 100)


class Failures(StageCase):
    def test_a_connection_that_is_lost_already_is_cut(self) -> None:
        """A refusal that is held back may be cut off when its client has gone."""
        client = self.stage.connect()
        refusal: Deferred[None] = Deferred()

        async def perform(*request: Any) -> Any:
            await refusal

        self.stage.api.perform = perform  # type: ignore[method-assign, assignment]
        client.start("ping")
        client.lose_connection()
        refusal.errback(CutOff("too many"))
        client.connection.abort()
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertFalse(client.transport.disconnected)

    def test_a_defect_is_one_internal_error_and_the_connection_stays_open(self) -> None:
        client = self.stage.client()
        self.stage.runner.broken = True
        reply = client.ask("get_tasks")
        self.assertRefused(reply, "internal")
        self.assertNotIn("defect", reply["message"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.stage.runner.broken = False
        self.assertTrue(client.ask("get_tasks")["ok"])

    def test_the_store_is_away_and_comes_back(self) -> None:
        client = self.stage.client()
        self.stage.runner.away = True
        requests: dict[str, dict[str, Any]] = {
            "get_tasks": {},
            "new_task": {"task": "x"},
            "watch": {},
            "wait": {"task_ids": [1]},
            "cancel_task": {"task_id": 1},
            "get_task": {"task_id": 1},
            "logout": {},
            "login": {"username": "ana", "password": "correct horse"},
        }
        with capturedLogs() as logs:
            for action, fields in requests.items():
                reply = client.ask(action, **fields)
                self.assertRefused(reply, "unavailable")
                self.assertNotIn("I/O", reply["message"], "what the database says is for the log")
        [line] = [event for event in logs if event["log_namespace"].endswith("FloodLog")]
        self.assertIn("disk I/O error", line["detail"])
        self.assertTrue(client.ask("ping")["ok"])
        self.stage.runner.away = False
        self.assertEqual(client.ask("whoami")["username"], "ana")
        self.assertTrue(client.ask("new_task", task="x")["ok"])

    def test_an_action_that_fails_after_the_connection_was_lost_is_logged(self) -> None:
        client = self.stage.client()
        self.stage.draw_ids()
        self.stage.runner.slow = self.stage.runner.broken = True
        client.start("get_tasks")
        client.start("new_task", task="x")
        client.lose_connection()
        self.stage.runner.run_waiting()
        self.stage.run_pending()
        self.stage.runner.run_waiting()
        self.assertEqual(client.raw_lines(), [])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_a_defect_after_the_reply_is_logged_and_sends_no_second_reply(self) -> None:
        client = self.stage.client()

        def write(data: bytes) -> None:
            if data.startswith(b'{"event"'):
                raise ZeroDivisionError
            Transport.write(client.transport, data)

        client.transport.write = write  # type: ignore[method-assign]
        self.stage.runner.slow = True
        watch = client.start("watch")
        [task] = self.stage.create()
        task.version += 1
        self.stage.announce([task])
        self.stage.runner.run_waiting()
        self.assertTrue(client.reply(watch)["ok"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.stage.runner.slow = False
        self.assertTrue(client.ask("ping")["ok"])

    def test_requests_that_had_not_begun_when_the_connection_was_lost_never_begin(self) -> None:
        client = self.stage.client()
        self.stage.runner.slow = True
        client.send({"action": "new_task", "task": "begun"}, {"action": "new_task", "task": "not begun"})
        client.lose_connection()
        self.stage.runner.slow = False
        self.stage.runner.run_waiting()
        self.stage.run_pending()
        self.assertEqual([task.task for task in self.stage.tasks()], ["begun"])

    def test_a_lost_connection_leaves_nothing_behind(self) -> None:
        client = self.stage.client()
        client.ask("new_task", task="x")
        client.ask("watch")
        client.start("wait", task_ids=[1], timeout=3600)
        client.stop_reading()
        client.start("get_tasks")
        client.lose_connection()
        self.assertEqual(self.stage.lines.connections, set())
        self.assertEqual(self.stage.timers(), [])
        self.stage.announce(self.stage.create())
        self.stage.hub.gap()
        self.assertEqual(client.raw_lines(), [])

    def test_requests_of_a_lost_connection_do_not_read_the_store(self) -> None:
        client = self.stage.client()
        for _ in range(10):
            client.start("get_tasks")
        client.lines()
        self.stage.runner.slow = True
        for _ in range(10):
            client.start("get_tasks")
        calls = self.stage.runner.calls
        client.lose_connection()
        self.stage.runner.slow = False
        self.stage.runner.run_waiting()
        self.stage.run_pending()
        self.assertLess(self.stage.runner.calls - calls, 5)


class Draining(StageCase):
    def drain(self) -> None:
        self.stage.drain()
        self.stage.run_pending()

    def test_running_requests_are_answered_and_later_ones_are_refused(self) -> None:
        client = self.stage.client()
        self.stage.draw_ids()
        self.stage.runner.slow = True
        client.send({"action": "new_task", "task": "x"}, {"action": "new_task", "task": "y"}, {"id": 5, **PING})
        self.drain()
        self.assertFalse(client.closed)
        client.send({"id": 6, **PING})
        self.stage.runner.run_waiting()
        self.stage.run_pending()
        lines = client.lines()
        self.assertEqual([line.get("code", line["status"]) for line in lines], ["task_created", *["draining"] * 3])
        self.assertEqual(lines[1]["retry_after"], 1)
        self.assertTrue(client.closed)
        self.assertEqual(len(self.stage.tasks()), 1)

    def test_idle_connections_are_closed_and_new_ones_are_refused(self) -> None:
        clients = [self.stage.connect() for _ in range(3)]
        self.drain()
        self.assertTrue(all(client.closed for client in clients))
        self.assertIsNone(self.stage.lines.buildProtocol(None))

    def test_watchers_get_a_draining_event(self) -> None:
        client = self.stage.client()
        client.ask("watch")
        self.drain()
        self.stage.announce(self.stage.create())
        self.assertEqual(client.raw_lines(), [DRAINING.strip()])

    def test_a_client_that_does_not_watch_gets_no_draining_event(self) -> None:
        client = self.stage.client()
        client.ask("watch")
        client.ask("unwatch")
        self.drain()
        self.assertEqual(client.raw_lines(), [])

    def test_waits_are_answered_at_once(self) -> None:
        client = self.stage.client()
        client.ask("new_task", task="x")
        wait = client.start("wait", task_ids=[1], timeout=3600)
        self.drain()
        self.assertEqual(client.reply(wait)["done"], False)
        self.assertTrue(client.closed)

    def test_empty_fires_with_the_last_connection(self) -> None:
        self.successResultOf(self.stage.lines.empty())
        clients = [self.stage.connect() for _ in range(2)]
        empty = self.stage.lines.empty()
        self.drain()
        clients[0].lose_connection()
        self.assertNoResult(empty)
        clients[1].lose_connection()
        self.successResultOf(empty)
        self.assertEqual(self.stage.timers(), [])

    def test_a_client_that_stays_is_disconnected_after_a_while(self) -> None:
        client = self.stage.connect()
        self.drain()
        self.stage.clock.advance(CLOSE_SECONDS)
        self.assertTrue(client.transport.disconnected)

    def test_a_connection_that_was_already_closing_is_disconnected_as_soon(self) -> None:
        client = self.stage.connect()
        client.half_close()
        self.drain()
        self.stage.clock.advance(CLOSE_SECONDS)
        self.assertTrue(client.transport.disconnected)

    def test_abort_disconnects_all_clients(self) -> None:
        clients: list[Client] = [self.stage.connect() for _ in range(3)]
        self.stage.lines.abort()
        self.assertTrue(all(client.transport.disconnected for client in clients))
