"""taskd.server.admission and what stands around it: who may connect, for how long, and how much a client may leave
unread."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import ISSLTransport
from twisted.logger import LogLevel, capturedLogs, formatEvent
from zope.interface import directlyProvides

from taskd.config import ConnectionLimits
from taskd.events.records import EventBatch
from taskd.model.addresses import network_of
from taskd.protocol.limits import MAX_LINE_BYTES
from taskd.protocol.messages import encode
from taskd.server.admission import SETTLE_SECONDS
from taskd.server.flood_log import FloodLog
from taskd.server.line_connection import CLOSE_SECONDS, MAX_CLOSING, LineFactory
from tests.unit.stage import PASSWORD, Client, StageCase, Transport, now

MIB = 1024 * 1024
HOUR = 3600.0
REGISTER = b'{"action":"register","username":"eva","password":"correct horse"}'
PROXY_2 = b"\r\n\r\n\0\r\nQUIT\n!\x11\0\x0c" + b"\1" * 12


class LimitedCase(StageCase):
    """A stage whose connections have these limits."""

    limits = ConnectionLimits(allow_plaintext=True)
    max_connections: int | None = None

    def setUp(self) -> None:
        super().setUp()
        stage = self.stage
        stage.lines = stage.server.lines = LineFactory(stage.api, stage.clock, self.limits, self.max_connections)

    def flood_of(self, count: int, host: str = "192.0.2.1") -> list[Client]:
        """So many strangers from one address."""
        return [self.stage.connect(host) for _ in range(count)]


class FirstLine(LimitedCase):
    def refused(self, *pieces: bytes) -> dict[str, Any]:
        """Send these pieces and what a page would have carried out. Returns the only reply."""
        client = self.stage.connect()
        for piece in (*pieces, b"\n", REGISTER, b"\n", REGISTER + b"\n"):
            client.connection.dataReceived(piece)
        self.stage.run_pending()
        self.assertTrue(client.closed, pieces)
        reply = client.line()
        self.assertFalse(reply["ok"])
        self.assertEqual(self.stage.sql("SELECT * FROM users"), [])
        client.lose_connection()
        self.assertEqual(self.stage.clock.getDelayedCalls()[1:], [])
        return reply

    def test_nothing_behind_a_first_line_that_is_no_object_is_carried_out(self) -> None:
        for start in (
            b"",
            b"\r",
            b" \t ",
            b"POST /",
            b"POST /" + b"a" * 66_000 + b" HTTP/1.1\r\nHost: x\r\n",
            b"post / HTTP/1.1",
            b"POST  / HTTP/1.1",
            b"PUT / HTTP/1.1",
            b"GET / HTTP/1.1",
            b"PRI * HTTP/2.0\r\n\r\nSM",
            b"PROXY TCP4 192.0.2.9 192.0.2.1 1 2\r",
            PROXY_2,
            b"\x16\x03\x01\x02\x00",
            b"\xef\xbb\xbf",
            b"\xff\xfe",
            b"[]",
            b'"{"',
            b"null",
            b"\0",
            b"\x0b{}",
            b"\xa0{}",
            b"}",
        ):
            self.assertEqual(self.refused(start)["code"], "bad_json", start[:30])
            self.refused(start * 2)
            self.refused(*(start[i : i + 1] for i in range(min(len(start), 40))))

    def test_the_error_says_what_the_client_speaks(self) -> None:
        for start, words in {
            b"\x16\x03\x01": "does not speak TLS",
            b"GET / HTTP/1.1": "not HTTP",
            b"\xef\xbb\xbf{}": "byte order mark",
            b"PROXY TCP4 ": "TASKD_TRUSTED_PROXIES",
            PROXY_2: "TASKD_TRUSTED_PROXIES",
            b"hello": "one JSON object",
        }.items():
            self.assertIn(words, self.refused(start)["message"])

    def test_an_overlong_first_line_is_refused_and_ends_the_connection(self) -> None:
        for start in (b'{"x":"' + b"y" * MAX_LINE_BYTES, b" " * (MAX_LINE_BYTES + 1), b"{" + b" " * MAX_LINE_BYTES):
            pieces = [start[i : i + 10_000] for i in range(0, len(start), 10_000)]
            for reply in (self.refused(start), self.refused(*pieces)):
                self.assertEqual(reply["code"], "too_large")

    def test_blanks_before_the_object_are_allowed(self) -> None:
        for start in (b" ", b" \t \t", b"\r"):
            client = self.stage.connect()
            for byte in start + b'{"action":"ping"}\r\n':
                client.connection.dataReceived(bytes([byte]))
            self.assertTrue(client.line()["ok"])
            self.assertFalse(client.closed)

    def test_a_first_line_that_is_a_malformed_object_is_only_a_malformed_line(self) -> None:
        client = self.stage.connect()
        client.send(b"{action:ping}")
        self.assertRefused(client.line(), "bad_json")
        self.assertTrue(client.ask("ping")["ok"])

    def test_a_connection_with_nothing_but_blanks_ends_with_its_input(self) -> None:
        client = self.stage.connect()
        client.connection.dataReceived(b"  ")
        client.half_close()
        self.assertTrue(client.closed)
        self.assertEqual(client.raw_lines(), [])

    def test_a_client_that_does_not_take_the_error_is_cut(self) -> None:
        client = self.stage.connect()
        client.send(b"GET / HTTP/1.1")
        self.stage.clock.advance(CLOSE_SECONDS)
        self.assertTrue(client.transport.disconnected)


class TimeToLogIn(LimitedCase):
    def test_a_stranger_has_half_a_minute_whatever_else_it_sends(self) -> None:
        clients = [self.stage.connect() for _ in range(3)]
        for _ in range(29):
            clients[1].ask("ping")
            self.stage.clock.advance(1)
        clients[2].connection.dataReceived(b'{"action":')
        self.assertFalse(any(client.closed for client in clients))
        self.stage.clock.advance(1)
        for client in clients:
            reply = client.line()
            self.assertRefused(reply, "auth_required")
            self.assertIn("30 seconds", reply["message"])
            self.assertTrue(client.closed)

    def test_who_logs_in_may_stay(self) -> None:
        client = self.stage.client()
        self.stage.clock.advance(23 * HOUR)
        self.assertTrue(client.ask("whoami")["ok"])

    def test_who_logs_out_is_a_stranger_again(self) -> None:
        client = self.stage.client()
        self.stage.clock.advance(HOUR)
        client.ask("logout")
        self.stage.clock.advance(29)
        self.assertFalse(client.closed)
        self.stage.clock.advance(1)
        self.assertTrue(client.closed)

    def test_a_login_under_way_gets_the_time_once_more(self) -> None:
        self.stage.client()
        client = self.stage.connect()
        self.stage.clock.advance(29)
        self.stage.runner.slow = True
        request = client.start("login", username="ana", password=PASSWORD)
        self.stage.clock.advance(20)
        self.assertFalse(client.closed)
        self.stage.runner.slow = False
        self.stage.runner.run_waiting()
        self.stage.run_pending()
        self.assertTrue(client.reply(request)["ok"])
        self.stage.clock.advance(HOUR)
        self.assertFalse(client.closed)

    def test_a_login_that_waits_for_long_is_answered(self) -> None:
        """The line of logins may be longer than the time. Who has failed in the end has the time once more."""
        client = self.stage.connect()
        self.stage.runner.slow = True
        client.start("login", username="ana", password=PASSWORD)
        self.stage.clock.advance(30)
        self.stage.clock.advance(30)
        client.send({"action": "ping"})
        self.stage.runner.slow = False
        self.stage.runner.run_waiting()
        self.stage.run_pending()
        reply, pong = client.lines()
        self.assertEqual((reply["code"], pong["ok"], client.closed), ("forbidden", True, False))
        self.stage.clock.advance(30)
        self.assertRefused(client.line(), "auth_required")
        self.assertTrue(client.closed)

    def test_strangers_need_one_timer(self) -> None:
        clients = self.flood_of(50)
        self.assertEqual(len(self.stage.clock.getDelayedCalls()), 1)
        for client in clients:
            client.lose_connection()
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])


class Strangers(LimitedCase):
    limits = ConnectionLimits(allow_plaintext=True, strangers=4)

    def test_a_newcomer_is_refused_while_the_others_have_just_come(self) -> None:
        first = self.flood_of(4)
        newcomer = self.stage.connect()
        reply = newcomer.line()
        self.assertRefused(reply, "rate_limited")
        self.assertGreater(reply["retry_after"], 0)
        self.assertTrue(newcomer.closed)
        self.assertFalse(any(client.closed for client in first))

    def test_later_the_oldest_that_asks_for_nothing_makes_room(self) -> None:
        first = self.flood_of(4)
        self.stage.runner.slow = True
        first[0].start("login", username="ana", password=PASSWORD)
        first[1].connection.dataReceived(b"{")
        self.stage.clock.advance(SETTLE_SECONDS)
        newcomer = self.stage.connect()
        self.assertEqual([client.closed for client in first], [False, True, False, False])
        self.assertRefused(first[1].line(), "rate_limited")
        self.assertTrue(newcomer.ask("ping")["ok"])

    def test_other_addresses_and_logged_in_connections_do_not_count(self) -> None:
        self.stage.client()
        self.stage.client()
        self.flood_of(4)
        self.assertTrue(self.stage.connect("192.0.2.2").ask("ping")["ok"])
        self.flood_of(3, "2001:db8::1")
        self.stage.connect("2001:db8::2")
        self.assertTrue(self.stage.connect("2001:db8::3").closed)
        self.assertFalse(self.stage.connect("2001:db8:0:1::3").closed)

    def test_a_lost_connection_and_a_login_make_room(self) -> None:
        self.stage.client()
        first = self.flood_of(4)
        first[0].lose_connection()
        self.assertFalse(self.stage.connect().closed)
        self.assertTrue(self.stage.connect().closed)
        self.assertTrue(first[1].ask("login", username="ana", password=PASSWORD)["ok"])
        self.assertFalse(self.stage.connect().closed)

    def test_a_flood_is_a_line_a_minute(self) -> None:
        self.flood_of(4)
        with capturedLogs() as logs:
            self.flood_of(100)
            self.stage.clock.advance(20)
            self.flood_of(100, "192.0.2.2")
            self.assertEqual(len(logs), 1)
            self.stage.clock.advance(40)
        lines = [event["log_level"] for event in logs]
        self.assertEqual(lines, [LogLevel.warn] * 2)
        self.assertGreaterEqual(logs[1]["count"], 195)
        self.assertIn("not logged in: ", logs[1]["reasons"])


class Refusals(StageCase):
    def test_after_the_end_each_is_said_at_once_without_a_timer(self) -> None:
        log = FloodLog(self.stage.clock, "closed a connection")
        timers = len(self.stage.clock.getDelayedCalls())
        with capturedLogs() as logs:
            for _ in range(3):
                log.note("too many", "192.0.2.1")
            log.close()
            for _ in range(2):
                log.note("too late", detail="after all")
            log.close()
        first = "closed a connection from 192.0.2.1: too many; more within a minute are only counted"
        late = "closed a connection from this machine: too late (after all)"
        count = "closed a connection 2 more times within a minute: too many: 2"
        self.assertEqual([formatEvent(event) for event in logs], [first, count, late, late])
        self.assertEqual(len(self.stage.clock.getDelayedCalls()), timers)


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8:0:1::1", "2001:db8::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("127.0.0.1", "::1", False),
        (None, "127.0.0.1", False),
        ("not an address", "not an address", True),
    ],
)
def test_one_address(left: str | None, right: str | None, same: bool) -> None:
    assert (network_of(left) == network_of(right)) is same


class Users(LimitedCase):
    limits = ConnectionLimits(allow_plaintext=True, user_connections=3)

    def test_a_login_on_one_connection_more_is_refused(self) -> None:
        clients = [self.stage.client() for _ in range(3)]
        more = self.stage.connect()
        reply = more.ask("login", username="ana", password=PASSWORD)
        self.assertRefused(reply, "rate_limited")
        self.assertIn("3 connections", reply["message"])
        self.assertRefused(more.ask("get_tasks"), "auth_required")
        self.assertTrue(self.stage.client("ben").ask("whoami")["ok"])
        clients[0].lose_connection()
        self.assertTrue(more.ask("login", username="ana", password=PASSWORD)["ok"])

    def test_logging_in_again_and_as_another_user_moves_the_count(self) -> None:
        self.stage.client("ben")
        clients = [self.stage.client() for _ in range(3)]
        for _ in range(5):
            self.assertTrue(clients[0].ask("login", username="ana", password=PASSWORD)["ok"])
        self.assertTrue(clients[0].ask("login", username="ben", password=PASSWORD)["ok"])
        self.assertTrue(self.stage.client().ask("whoami")["ok"])
        clients[1].ask("logout")
        self.assertTrue(self.stage.client().ask("whoami")["ok"])
        refused = clients[0].ask("login", username="ana", password=PASSWORD)
        self.assertRefused(refused, "rate_limited")
        self.assertEqual(clients[0].ask("whoami")["username"], "ben")

    def end_elsewhere(self) -> None:
        """Another process ends all sessions of ana, as a new password does."""
        ana = self.stage.user_id()
        now(self.stage.other_store.end_sessions(ana, None))
        self.stage.broker.announce(encode(EventBatch(self.stage.store.installation, "other", rights=[ana])))
        self.stage.run_pending()

    def test_connections_of_an_ended_session_do_not_count(self) -> None:
        """Else whoever has a stolen token could keep the user out."""
        thieves = [self.stage.client() for _ in range(3)]
        self.end_elsewhere()
        self.assertTrue(self.stage.client().ask("whoami")["ok"])
        for thief in thieves:
            self.assertRefused(thief.ask("whoami"), "auth_required")
        self.stage.clock.advance(29)
        self.assertFalse(any(thief.closed for thief in thieves))
        self.stage.clock.advance(1)
        self.assertTrue(all(thief.closed for thief in thieves))

    def test_after_the_end_of_a_session_the_client_may_log_in_again(self) -> None:
        clients = [self.stage.client() for _ in range(3)]
        clients[0].ask("watch")
        self.end_elsewhere()
        self.assertEqual(clients[0].events(), [{"event": "session_ended"}])
        for client in clients:
            self.assertTrue(client.ask("login", username="ana", password=PASSWORD)["ok"])
        self.assertRefused(self.stage.connect().ask("login", username="ana", password=PASSWORD), "rate_limited")
        self.stage.clock.advance(HOUR)
        self.assertFalse(any(client.closed for client in clients))
        for client in clients:
            client.lose_connection()
        self.assertTrue(self.stage.client().ask("whoami")["ok"])

    def test_a_session_that_ends_while_its_client_does_not_read(self) -> None:
        client = self.stage.client()
        client.ask("watch")
        client.stop_reading()
        self.end_elsewhere()
        self.assertGreater(self.stage.lines.unread.total, 0)
        client.lose_connection()
        self.assertEqual(self.stage.lines.unread.total, 0)
        self.assertEqual(self.stage.timers(), [])


class Capacity(LimitedCase):
    limits = ConnectionLimits(allow_plaintext=True, strangers=1000)
    max_connections = 10

    def test_newcomers_are_closed_at_once_when_all_have_just_come(self) -> None:
        self.flood_of(10)
        for _ in range(3):
            self.assertIsNone(self.stage.lines.buildProtocol(None))

    def test_a_newcomer_takes_the_place_of_the_oldest_idle_stranger(self) -> None:
        first = self.flood_of(10)
        self.stage.clock.advance(SETTLE_SECONDS)
        newcomer = self.stage.connect("192.0.2.2")
        self.assertTrue(newcomer.ask("ping")["ok"])
        self.assertEqual([client.closed for client in first], [True] + [False] * 9)

    def test_connections_that_are_about_to_close_are_bounded_too(self) -> None:
        self.flood_of(10)
        for _ in range(MAX_CLOSING):
            self.stage.clock.advance(SETTLE_SECONDS)
            self.stage.connect()
        self.assertEqual(len(self.stage.lines.connections), 10 + MAX_CLOSING)
        self.stage.clock.advance(SETTLE_SECONDS)
        self.assertIsNone(self.stage.lines.buildProtocol(None))

    def test_one_user_cannot_take_all(self) -> None:
        clients = [self.stage.client() for _ in range(5)]
        self.assertRefused(self.stage.connect().ask("login", username="ana", password=PASSWORD), "rate_limited")
        self.assertTrue(all(client.ask("ping")["ok"] for client in clients))


class Idle(LimitedCase):
    limits = ConnectionLimits(allow_plaintext=True, idle_seconds=600)

    def test_a_silent_connection_is_closed_and_a_ping_keeps_it(self) -> None:
        silent, pinging, waiting, watching = (self.stage.client() for _ in range(4))
        watching.ask("watch")
        [task] = self.stage.create()
        waiting.start("wait", task_ids=[task.id], timeout=HOUR)
        for _ in range(15):
            self.stage.clock.advance(60)
            pinging.ask("ping")
        for client, closed in ((silent, True), (pinging, False), (waiting, False), (watching, True)):
            self.assertEqual(client.closed, closed)

    def test_no_connection_is_closed_before_its_time(self) -> None:
        client = self.stage.client()
        for start in (1, 150, 299):
            self.stage.clock.advance(start)
            client.ask("ping")
            self.stage.clock.pump([100.0] * 5 + [99.0])
            self.assertFalse(client.closed)
            client.ask("ping")

    def test_without_connections_there_is_no_timer(self) -> None:
        client = self.stage.client()
        client.lose_connection()
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])


class ShortIdle(LimitedCase):
    """The looks follow each other faster than a client may read its last replies."""

    limits = ConnectionLimits(allow_plaintext=True, idle_seconds=4)

    def test_an_idle_client_that_does_not_read_is_cut(self) -> None:
        client = self.stage.client()
        with capturedLogs() as logs:
            for _ in range(6 + int(CLOSE_SECONDS)):
                self.assertFalse(client.transport.disconnected)
                self.stage.clock.advance(1)
        self.assertTrue(client.transport.disconnected)
        self.assertEqual([event["why"] for event in logs if "why" in event], ["it was idle for too long"])


class Unread(LimitedCase):
    limits = ConnectionLimits(allow_plaintext=True, user_unread=4 * MIB, unread=8 * MIB)

    def setUp(self) -> None:
        super().setUp()
        self.stage.client()
        self.stage.create(count=200, task="x" * 4000)

    def unreading(self, count: int, name: str = "ana") -> list[Client]:
        """Clients of one user that ask for many replies of most of a mebibyte and read none."""
        clients = []
        for _ in range(count):
            client = self.stage.client(name)
            client.stop_reading(full=False)
            client.send(*({"action": "get_tasks", "limit": 200, "id": n} for n in range(10)))
            clients.append(client)
        for _ in range(20):
            self.stage.clock.advance(0)
        return clients

    def test_the_unread_bytes_of_a_user_are_bounded(self) -> None:
        with capturedLogs() as logs:
            clients = self.unreading(30)
        self.assertLess(sum(c.unread_bytes for c in clients if not c.transport.disconnected), 5 * MIB)
        self.assertEqual(len(logs), 1)
        self.assertIn("the user's connections hold too many", logs[0]["why"])
        self.assertLessEqual(self.stage.lines.unread.total, 4 * MIB)

    def test_a_client_that_reads_is_left_alone(self) -> None:
        reader = self.stage.client()
        self.unreading(30)
        self.assertTrue(reader.ask("get_tasks", limit=200)["ok"])
        self.assertFalse(reader.closed)

    def test_the_unread_bytes_of_all_are_bounded(self) -> None:
        clients = []
        for n in range(6):
            name = f"user{n}"
            self.stage.create(name, count=200, task="x" * 4000)
            secret = self.stage.sql("SELECT password FROM users WHERE username_key = 'ana'")[0][0]
            self.stage.sql("UPDATE users SET password = ? WHERE username_key = ?", secret, name)
            clients += self.unreading(2, name)
        self.assertLess(sum(c.unread_bytes for c in clients if not c.transport.disconnected), 9 * MIB)
        self.assertLessEqual(self.stage.lines.unread.total, 8 * MIB)

    def test_what_is_read_or_lost_does_not_count(self) -> None:
        clients = self.unreading(2)
        self.assertGreater(self.stage.lines.unread.total, MIB)
        clients[0].lose_connection()
        for _ in range(10):
            clients[1].resume_reading()
        self.assertEqual(self.stage.lines.unread.total, 0)

    def test_the_connection_with_the_most_unread_bytes_is_closed(self) -> None:
        small = self.stage.client()
        small.ask("watch")
        small.stop_reading()
        self.stage.announce(self.stage.create(count=20, task="x" * 4000))
        clients = self.unreading(30)
        self.assertTrue(any(client.transport.disconnected for client in clients))
        self.assertFalse(small.transport.disconnected)


class TLSTransport(Transport):
    """Looks like a TLS connection before its handshake."""

    protocol: Any = None

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Only there."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Only there."""


class Handshakes(LimitedCase):
    def test_a_handshake_has_ten_seconds(self) -> None:
        clients = [self.connect_tls() for _ in range(2)]
        clients[1].protocol.handshakeCompleted()
        self.stage.clock.advance(10)
        self.assertEqual([client.disconnected for client in clients], [True, False])

    def test_a_flood_does_not_wait_for_handshakes(self) -> None:
        clients = [self.connect_tls() for _ in range(70)]
        self.assertEqual([client.disconnected for client in clients], [False] * 64 + [True] * 6)
        self.stage.clock.advance(SETTLE_SECONDS)
        self.assertFalse(self.connect_tls().disconnected)
        self.assertTrue(clients[0].disconnected)

    def connect_tls(self) -> TLSTransport:
        """A connection whose handshake has not begun."""
        transport = TLSTransport(peerAddress=IPv4Address("TCP", "192.0.2.1", 54321))
        directlyProvides(transport, ISSLTransport)
        transport.protocol = self.stage.lines.buildProtocol(None)
        transport.protocol.makeConnection(transport)
        return transport
