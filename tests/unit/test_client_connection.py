"""The connection: requests and their answers, and what is made of everything that is not an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL
from service_identity import VerificationError
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
    """A transport that says it is TLS."""

    def getPeerCertificate(self) -> None:
        """None yet."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        """It has no buffer anyway."""

    def getTcpNoDelay(self) -> bool:
        """No buffer, no delay."""
        return True

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """It does not go away by itself."""

    def getTcpKeepAlive(self) -> bool:
        """Not needed."""
        return False

    def loseWriteConnection(self) -> None:
        """TLS cannot half-close."""


class Line:
    """A client by itself; the test plays the server."""

    def __init__(self, transport: StringTransport | None = None) -> None:
        self.clock = Clock()
        self.transport = transport or StringTransport()
        self.client = Connection(self.clock, SERVER)
        self.client.makeConnection(self.transport)

    def ask(self, action: str = "whoami", **fields: Any) -> list[Any]:
        """A request; the list gets the reply's body or the error."""
        results: list[Any] = []
        self.client.request(action, **fields).addCallbacks(
            lambda received: results.append(received.body), lambda failure: results.append(failure.value)
        )
        return results

    def gone(self) -> list[Any]:
        """Gets the reason once the connection is lost."""
        results: list[Any] = []
        self.client.wait_until_lost().addErrback(lambda failure: results.append(failure.value))
        return results

    def say(self, *messages: dict[str, Any] | bytes) -> None:
        """The server speaks."""
        for message in messages:
            data = message if isinstance(message, bytes) else json.dumps(message).encode()
            self.client.dataReceived(data + b"\n")

    def hang_up(self, reason: Exception | None = None) -> None:
        """The connection is lost."""
        self.client.connectionLost(Failure(reason or error.ConnectionDone()))


class TestRequests:
    def test_answers_may_come_in_any_order(self) -> None:
        line = Line()
        first, second = line.ask(), line.ask()
        line.say({"id": 2, "ok": True, "username": "b"}, {"id": 1, "ok": True, "username": "a"})
        assert (first[0].username, second[0].username) == ("a", "b")
        assert line.clock.getDelayedCalls() == []

    def test_an_answer_is_handed_on_byte_by_byte(self) -> None:
        line = Line()
        got: list[Received] = []
        line.client.request("whoami").addCallback(got.append)
        line.say(b'{"id": 1,  "ok":true, "unknown": {"a": [1]}}\r')
        assert got[0].line == b'{"id": 1,  "ok":true, "unknown": {"a": [1]}}'

    def test_a_refusal(self) -> None:
        line = Line()
        result = line.ask()
        line.say({"id": 1, "ok": False, "status": "error", "code": "draining", "message": "stopping"})
        assert isinstance(result[0], Refused)
        assert (result[0].code, result[0].transient) == ("draining", True)

    def test_a_refusal_of_something_that_was_not_understood(self) -> None:
        line = Line()
        results = line.ask(), line.ask()
        line.say({"ok": False, "status": "error", "code": "bad_json", "message": "?"})
        assert [result[0].code for result in results] == ["bad_json", "bad_json"]

    def test_answers_that_nobody_waits_for_any_more(self) -> None:
        line = Line()
        answer = line.client.request("whoami")
        answer.addErrback(lambda failure: failure.trap(CancelledError))
        answer.cancel()
        line.say({"id": 1, "ok": True}, {"id": 99, "ok": True}, {"id": "x", "ok": True}, {"id": None, "ok": True})
        assert line.client.lost is None
        assert line.clock.getDelayedCalls() == []

    def test_what_cannot_be_sent_leaves_no_trace(self) -> None:
        line = Line()
        deep: list[Any] = []
        # deeper than any Python's stack, and yet no line that is too long
        for _ in range(30_000):
            deep = [deep]
        for field, key in (("\udcff", "not_text"), (deep, "too_deep"), ("x" * 70_000, "line_too_large")):
            with pytest.raises(ClientError) as caught:
                line.client.request("new_task", task=field)
            assert caught.value.key == key
        assert line.transport.value() == b""
        line.ask()
        assert json.loads(line.transport.value())["id"] == 1

    def test_patience(self) -> None:
        line = Line()
        result, other, gone = line.ask(reply_timeout=5), line.ask(), line.gone()
        line.clock.advance(5)
        assert [error.key for error in (*result, *other, *gone)] == ["no_answer"] * 3
        assert line.transport.disconnecting or line.transport.disconnected

    def test_after_the_end(self) -> None:
        line = Line()
        line.hang_up()
        assert line.ask()[0].key == "closed_early"
        assert line.gone()[0].key == "closed_early"

    def test_close_is_no_loss(self) -> None:
        line = Line()
        gone = line.gone()
        line.client.keep_alive()
        line.client.close()
        assert line.clock.getDelayedCalls() == []
        line.hang_up()
        assert gone == []

    def test_a_listener_that_fails_ends_the_connection(self) -> None:
        line = Line()
        gone = line.gone()

        def broken(client: Connection, received: Received) -> None:
            raise KeyError(received.body.event)

        line.client.on_event = broken
        line.say({"event": "gap"}, {"event": "task"})
        assert [repr(why) for why in gone] == ["KeyError('gap')"]

    def test_signs_of_life(self) -> None:
        line = Line()
        gone = line.gone()
        line.client.keep_alive()
        line.clock.advance(KEEPALIVE_SECONDS)
        line.say({"id": 1, "ok": True})
        line.clock.advance(KEEPALIVE_SECONDS)
        assert line.transport.value().count(b'"ping"') == 2
        line.clock.advance(REPLY_SECONDS)
        assert gone[0].key == "no_answer"


class TestLost:
    def test_before_and_after_it_proved_to_be_a_taskd(self) -> None:
        for spoken, key in ((False, "closed_early"), (True, "lost")):
            line = Line()
            if spoken:
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
        ],
    )
    def test_tls(self, reason: Exception, key: str, transient: bool) -> None:
        trouble = lost_error(Failure(reason), SERVER, is_taskd=False)
        assert (trouble.key, trouble.transient) == (key, transient)
        assert lost_error(Failure(reason), SERVER, is_taskd=True).key == "lost"

    def test_a_handshake_that_is_not_answered(self) -> None:
        line = Line(TlsTransport())
        result = line.ask()
        line.clock.advance(CONNECT_SECONDS)
        assert result[0].key == "tls_silent"
        line = Line(TlsTransport())
        result = line.ask()
        line.client.handshakeCompleted()
        line.clock.advance(CONNECT_SECONDS)
        assert result == []

    def test_the_systems_own_words(self) -> None:
        inner = FileNotFoundError(2, "No such file or directory")
        assert os_reason(error.ConnectError(osError=inner)) == "No such file or directory"
        assert os_reason(PermissionError(13, "Permission denied")) == "Permission denied"
        assert os_reason(ValueError()) == "ValueError"


@implementer(IStreamClientEndpoint)
class Waiting:
    """An endpoint whose connection takes for ever."""

    def __init__(self) -> None:
        self.attempt: Deferred[IProtocol] = Deferred()

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        return self.attempt


@implementer(IStreamClientEndpoint)
class Failing:
    """An endpoint whose connection fails at once."""

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

    def test_nobody_waits_for_ever(self) -> None:
        clock = Clock()
        result = self.attempt(Waiting(), clock)
        clock.advance(CONNECT_SECONDS)
        assert [trouble.key for trouble in result] == ["connect_timeout"]

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
        (trouble,) = self.attempt(Failing(why), Clock())
        assert isinstance(trouble, ConnectionFailed)
        assert trouble.key == key


class TestTrouble:
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

    def test_a_task_that_is_no_task(self, stage: Stage) -> None:
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

    def test_a_refusal_whose_status_is_a_word_of_ours(self, stage: Stage) -> None:
        stage.logged_in().taskd.silent.add("whoami")
        run = stage.run("whoami")
        stage.taskd.connections[-1].transport.write(
            b'{"ok":false,"id":2,"status":"created","code":"menu.user","message":"no\\u001b[2J {id}"}\n'
        )
        stage.settle()
        assert (run.status, run.err) == (1, "taskclient: no\\x1b[2J {id}\n")
