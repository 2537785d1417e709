"""The connection: requests and their replies, and the errors when there is no valid reply."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL
from service_identity import VerificationError
from service_identity.exceptions import IPAddressMismatch
from service_identity.hazmat import IPAddress_ID
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IProtocol, IProtocolFactory, ISSLTransport, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from taskd.client.connection import CONNECT_SECONDS, KEEPALIVE_SECONDS, REPLY_SECONDS, Connection, connect
from taskd.client.connection_errors import lost_error, os_reason
from taskd.client.errors import ClientError, ConnectionFailed, Refused
from taskd.client.messages import Received
from taskd.model.errors import Draining, RateLimited, Unavailable
from tests.unit.test_client_harness import SERVER, Stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "state")


@implementer(ISSLTransport)
class TlsTransport(StringTransport):
    """A transport that claims to be TLS."""

    def getPeerCertificate(self) -> None:
        """None yet."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing to set."""

    def getTcpNoDelay(self) -> bool:
        """Always without delay."""
        return True

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Nothing to set."""

    def getTcpKeepAlive(self) -> bool:
        """Never set."""
        return False

    def loseWriteConnection(self) -> None:
        """TLS cannot half-close."""


class OneConnection:
    """A connection whose server is the test."""

    def __init__(self, transport: StringTransport | None = None) -> None:
        self.clock = Clock()
        self.transport = transport or StringTransport()
        self.client = Connection(self.clock, SERVER)
        self.client.makeConnection(self.transport)

    def ask(self, action: str = "whoami", **fields: Any) -> list[Any]:
        """Send a request; the list gets the reply's body or the error."""
        results: list[Any] = []
        self.client.request(action, **fields).addCallbacks(
            lambda received: results.append(received.body), lambda failure: results.append(failure.value)
        )
        return results

    def lost(self) -> list[Any]:
        """A list that gets the reason when the connection is lost."""
        results: list[Any] = []
        self.client.wait_until_lost().addErrback(lambda failure: results.append(failure.value))
        return results

    def say(self, *messages: dict[str, Any] | bytes) -> None:
        """The server sends these messages."""
        for message in messages:
            data = message if isinstance(message, bytes) else json.dumps(message).encode()
            self.client.dataReceived(data + b"\n")

    def hang_up(self, reason: Exception | None = None) -> None:
        """The connection is lost."""
        self.client.connectionLost(Failure(reason or error.ConnectionDone()))


class TestRequests:
    def test_answers_may_come_in_any_order(self) -> None:
        line = OneConnection()
        first, second = line.ask(), line.ask()
        line.say({"id": 2, "ok": True, "username": "b"}, {"id": 1, "ok": True, "username": "a"})
        assert (first[0].username, second[0].username) == ("a", "b")
        assert line.clock.getDelayedCalls() == []

    def test_a_reply_keeps_its_bytes(self) -> None:
        line = OneConnection()
        got: list[Received] = []
        line.client.request("whoami").addCallback(got.append)
        line.say(b'{"id": 1,  "ok":true, "unknown": {"a": [1]}}\r')
        assert got[0].line == b'{"id": 1,  "ok":true, "unknown": {"a": [1]}}'

    def test_a_refusal(self) -> None:
        line = OneConnection()
        result = line.ask()
        line.say({"id": 1, "ok": False, "status": "error", "code": "draining", "message": "stopping"})
        assert isinstance(result[0], Refused)
        assert (result[0].code, result[0].transient) == ("draining", True)

    def test_a_refusal_without_an_id_fails_all_requests(self) -> None:
        line = OneConnection()
        results = line.ask(), line.ask()
        line.say({"ok": False, "status": "error", "code": "bad_json", "message": "?"})
        assert [result[0].code for result in results] == ["bad_json", "bad_json"]

    def test_replies_to_cancelled_requests_are_ignored(self) -> None:
        line = OneConnection()
        answer = line.client.request("whoami")
        answer.addErrback(lambda failure: failure.trap(CancelledError))
        answer.cancel()
        line.say({"id": 1, "ok": True}, {"id": 99, "ok": True}, {"id": "x", "ok": True}, {"id": None, "ok": True})
        assert line.client.lost is None
        assert line.clock.getDelayedCalls() == []

    def test_a_request_that_cannot_be_sent_changes_nothing(self) -> None:
        line = OneConnection()
        deep: list[Any] = []
        # too deep for the encoder of any Python, but not too long for a line
        for _ in range(30_000):
            deep = [deep]
        for field, key in (("\udcff", "not_text"), (deep, "too_deep"), ("x" * 70_000, "line_too_large")):
            with pytest.raises(ClientError) as caught:
                line.client.request("new_task", task=field)
            assert caught.value.key == key
        assert line.transport.value() == b""
        line.ask()
        assert json.loads(line.transport.value())["id"] == 1

    def test_no_reply_in_time(self) -> None:
        line = OneConnection()
        result, other, lost = line.ask(reply_timeout=5), line.ask(), line.lost()
        line.clock.advance(5)
        assert [error.key for error in (*result, *other, *lost)] == ["no_answer"] * 3
        assert line.transport.disconnecting or line.transport.disconnected

    def test_a_request_on_a_lost_connection(self) -> None:
        line = OneConnection()
        line.hang_up()
        assert line.ask()[0].key == "closed_early"
        assert line.lost()[0].key == "closed_early"

    def test_close_does_not_count_as_lost(self) -> None:
        line = OneConnection()
        lost = line.lost()
        line.client.keep_alive()
        line.client.close()
        assert line.clock.getDelayedCalls() == []
        line.hang_up()
        assert lost == []

    def test_a_listener_that_fails_ends_the_connection(self) -> None:
        line = OneConnection()
        lost = line.lost()

        def broken(client: Connection, received: Received) -> None:
            raise KeyError(received.body.event)

        line.client.on_event = broken
        line.say({"event": "gap"}, {"event": "task"})
        assert [repr(why) for why in lost] == ["KeyError('gap')"]

    def test_pings(self) -> None:
        line = OneConnection()
        lost = line.lost()
        line.client.keep_alive()
        line.clock.advance(KEEPALIVE_SECONDS)
        line.say({"id": 1, "ok": True})
        line.clock.advance(KEEPALIVE_SECONDS)
        assert line.transport.value().count(b'"ping"') == 2
        line.clock.advance(REPLY_SECONDS)
        assert lost[0].key == "no_answer"


class TestLost:
    def test_before_and_after_the_first_reply(self) -> None:
        for is_taskd, key in ((False, "closed_early"), (True, "lost")):
            line = OneConnection()
            if is_taskd:
                line.ask()
                line.say({"id": 1, "ok": True})
            result = line.ask()
            line.hang_up(error.ConnectionLost())
            assert result[0].key == key
            assert result[0].transient

    @pytest.mark.parametrize(
        ("reason", "key", "transient"),
        [
            (SSL.Error([("SSL routines", "", "certificate verify failed")]), "tls_untrusted", False),
            (SSL.Error([("SSL routines", "", "wrong version number")]), "tls_plain", False),
            (SSL.Error([("SSL routines", "", "tlsv13 alert certificate required")]), "tls_failed", True),
            (SSL.Error([("SSL routines", "", "unexpected eof while reading")]), "closed_early", True),
            (SSL.SysCallError(-1, "Unexpected EOF"), "closed_early", True),
            (SSL.SysCallError(104, "ECONNRESET"), "tls_failed", True),
            (SSL.Error(), "tls_failed", True),
            (VerificationError(errors=[]), "tls_name", False),
            (VerificationError(errors=[IPAddressMismatch(IPAddress_ID("127.0.0.1"))]), "tls_name", False),
        ],
    )
    def test_tls(self, reason: Exception, key: str, transient: bool) -> None:
        failed = lost_error(Failure(reason), SERVER, is_taskd=False)
        assert (failed.key, failed.transient) == (key, transient)
        assert lost_error(Failure(reason), SERVER, is_taskd=True).key == "lost"

    def test_a_handshake_that_is_not_answered(self) -> None:
        line = OneConnection(TlsTransport())
        result = line.ask()
        line.clock.advance(CONNECT_SECONDS)
        assert result[0].key == "tls_silent"
        line = OneConnection(TlsTransport())
        result = line.ask()
        line.client.handshakeCompleted()
        line.clock.advance(CONNECT_SECONDS)
        assert result == []

    def test_the_reason_of_the_operating_system(self) -> None:
        inner = FileNotFoundError(2, "No such file or directory")
        assert os_reason(error.ConnectError(osError=inner)) == "No such file or directory"
        assert os_reason(PermissionError(13, "Permission denied")) == "Permission denied"
        assert os_reason(ValueError()) == "ValueError"


@implementer(IStreamClientEndpoint)
class Waiting:
    """An endpoint that never connects."""

    def __init__(self) -> None:
        self.attempt: Deferred[IProtocol] = Deferred()

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        return self.attempt


@implementer(IStreamClientEndpoint)
class Failing:
    """An endpoint that fails at once."""

    def __init__(self, why: Exception) -> None:
        self._why = why

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        return fail(self._why)


class TestConnect:
    def attempt(self, endpoint: IStreamClientEndpoint, clock: Clock) -> list[Any]:
        results: list[Any] = []
        work = Deferred.fromCoroutine(connect(endpoint, clock, SERVER))
        self.work = work
        work.addErrback(lambda failure: results.append(failure.value))
        return results

    def test_connecting_has_a_time_limit(self) -> None:
        clock = Clock()
        result = self.attempt(Waiting(), clock)
        clock.advance(CONNECT_SECONDS)
        assert [failed.key for failed in result] == ["connect_timeout"]

    def test_cancelled(self) -> None:
        result = self.attempt(Waiting(), Clock())
        self.work.cancel()
        assert isinstance(result[0], CancelledError)

    @pytest.mark.parametrize(
        ("why", "key"),
        [
            (error.ConnectionRefusedError(), "refused_connection"),
            (ConnectionRefusedError(111, "Connection refused"), "refused_connection"),
            (error.TimeoutError(), "connect_timeout"),
            (error.DNSLookupError(), "dns_failed"),
            (error.NoRouteError(), "unreachable"),
            (ValueError("invalid hostname"), "unreachable"),
        ],
    )
    def test_failed(self, why: Exception, key: str) -> None:
        (failed,) = self.attempt(Failing(why), Clock())
        assert isinstance(failed, ConnectionFailed)
        assert failed.key == key


class TestErrors:
    @pytest.mark.parametrize(
        ("failure", "says"),
        [
            (error.ConnectionRefusedError(), "nothing listens at 127.0.0.1:5000"),
            (error.DNSLookupError(), "no such host name"),
            (error.TimeoutError(), "did not answer within 10 s"),
            (error.NoRouteError(113, "No route to host"), "cannot reach 127.0.0.1:5000"),
            (FileNotFoundError(2, "No such file or directory"), "No such file or directory"),
        ],
    )
    def test_no_connection(self, stage: Stage, failure: Exception, says: str) -> None:
        stage.logged_in().network.failing = failure
        run = stage.run("whoami")
        assert (run.status, run.out) == (1, "")
        assert says in run.err
        assert len(run.err.splitlines()) == 1
        assert stage.run("whoami", "--json").objects[0]["code"] == "unavailable"

    @pytest.mark.parametrize(
        "garbage",
        [
            b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n",
            b"220 mail.example.org ESMTP\r\n",
            b"\x15\x03\x01\x00\x02\x02\x50\n",
            b"[1]\n",
            b'{"id":1}\n',
            b'{"ok":true,"id":2,"task":[\n',
            b"x" * 17_000_000,
        ],
    )
    def test_not_a_taskd(self, stage: Stage, garbage: bytes) -> None:
        stage.logged_in().taskd.silent.add("login")
        run = stage.run("whoami")
        stage.taskd.connections[-1].transport.write(garbage)
        stage.settle()
        assert (run.status, run.out) == (1, "")
        assert run.err == f"taskclient: the server at {SERVER} is not a taskd server; check --server\n"

    def test_a_server_that_hangs_up_at_once(self, stage: Stage) -> None:
        stage.logged_in().taskd.silent.add("login")
        run = stage.run("whoami")
        stage.cut()
        assert run.status == 1
        assert "closed the connection without an answer" in run.err

    def test_a_server_that_never_answers(self, stage: Stage) -> None:
        stage.logged_in().taskd.silent.add("whoami")
        run = stage.run("whoami")
        stage.advance(60)
        assert run.status == 1
        assert "does not answer" in run.err

    @pytest.mark.parametrize(
        ("refusal", "english", "spanish"),
        [
            (Unavailable("the store is away"), "the store is away", "no tiene acceso a su base de datos"),
            (Draining("stopping", retry_after=1), "stopping", "se está deteniendo"),
            (RateLimited("slower\x1b[1m"), "slower\\x1b[1m", "demasiadas peticiones"),
        ],
    )
    def test_a_refusal_in_both_languages(self, stage: Stage, refusal: Unavailable, english: str, spanish: str) -> None:
        stage.logged_in().taskd.refusals["whoami"] = refusal
        assert english in stage.run("whoami").err
        stage.lang = "es"
        assert spanish in stage.run("whoami").err

    def test_a_malformed_task(self, stage: Stage) -> None:
        stage.logged_in().taskd.silent.add("get_tasks")
        run = stage.run("list")
        stage.taskd.connections[-1].transport.write(
            b'{"ok":true,"id":2,"status":"success","tasks":[{}],"cursor":null}\n'
        )
        stage.settle()
        assert (run.status, run.err.count("is not a taskd")) == (1, 1)

    def test_a_login_without_a_token(self, stage: Stage) -> None:
        stage.taskd.silent.add("login")
        run = stage.run("login", "ana", lines=["correct horse"])
        stage.taskd.connections[-1].transport.write(b'{"ok":true,"id":1}\n')
        stage.settle()
        assert (run.status, run.err.count("is not a taskd")) == (1, 1)
        assert not stage.sessions.path.exists()

    def test_a_refusal_whose_code_is_the_key_of_a_text(self, stage: Stage) -> None:
        stage.logged_in().taskd.silent.add("whoami")
        run = stage.run("whoami")
        stage.taskd.connections[-1].transport.write(
            b'{"ok":false,"id":2,"status":"created","code":"menu.user","message":"no\\u001b[2J {id}"}\n'
        )
        stage.settle()
        assert (run.status, run.err) == (1, "taskclient: no\\x1b[2J {id}\n")
