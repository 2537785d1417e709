"""What the client does by itself about secrets: local logins over a UNIX socket, and none over the network in clear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from taskd.cli.errors import NOT_LOGGED_IN, USAGE
from taskd.client.address import is_unix, normalized
from taskd.client.connection import SECRET, Connection
from taskd.client.errors import NeedsTls
from taskd.client.sessions import Session
from taskd.model.errors import RateLimited
from tests.unit.test_client_connection import TlsTransport
from tests.unit.test_client_harness import Stage

UNIX = "unix:/run/taskd/taskd.sock"
PASSWORD = "correct horse"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A server on a UNIX socket, on whose machine the user is called ana."""
    stage = Stage(tmp_path / "state", server=UNIX)
    stage.network.peer = UNIXAddress("/run/taskd/taskd.sock")
    stage.taskd.local = "ana"
    return stage


class TestLocalLogin:
    def test_a_command_logs_in_by_itself_and_keeps_the_session(self, stage: Stage) -> None:
        run = stage.run("whoami")
        assert (run.status, run.out, run.err) == (0, "ana\n", "")
        assert [stage.taskd.actions(n) for n in (0, 1)] == [["login"], ["login", "whoami"]]
        assert stage.sessions.load() == Session(UNIX, "ana", "token-0")
        assert stage.run("whoami").status == 0
        assert stage.network.attempts == 3, "with the session"

    @pytest.mark.parametrize("command", [["add", "one"], ["list"], ["sessions"], ["add", "-"]])
    def test_all_kinds_of_commands(self, stage: Stage, command: list[str]) -> None:
        assert stage.run(*command, lines=["one"]).status == 0

    def test_it_is_for_unix_sockets_only(self, tmp_path: Path) -> None:
        stage = Stage(tmp_path)
        stage.taskd.local = "ana"
        assert stage.run("whoami").status == NOT_LOGGED_IN
        assert stage.network.attempts == 0

    def test_a_given_token_is_used(self, stage: Stage) -> None:
        stage.env["TASKD_TOKEN"] = stage.taskd.user("ben")
        assert stage.run("whoami").out == "ben\n"
        assert stage.sessions.load() is None

    def test_a_stored_session_is_used(self, stage: Stage) -> None:
        stage.sessions.save(Session(UNIX, "ben", stage.taskd.user("ben")))
        assert stage.run("whoami").out == "ben\n"

    @pytest.mark.parametrize(
        ("lang", "says"),
        [
            ("en", "No login without a password: local logins are off here.\ntaskclient: not logged in at unix:"),
            ("es", "No se pudo entrar sin contraseña: no se permite a su usuario de esta máquina: local logins are"),
        ],
    )
    def test_a_refusal(self, stage: Stage, lang: str, says: str) -> None:
        stage.taskd.local, stage.lang = None, lang
        run = stage.run("whoami")
        assert (run.status, run.out) == (NOT_LOGGED_IN, "")
        assert run.err.startswith(says)

    def test_an_older_server(self, stage: Stage) -> None:
        stage.taskd.old = True
        run = stage.run("whoami")
        assert run.status == NOT_LOGGED_IN
        assert run.err.startswith("No login without a password: the server is older than taskclient.\n")

    def test_another_error_ends_the_command(self, stage: Stage) -> None:
        stage.taskd.refusals["login"] = RateLimited("too many logins")
        run = stage.run("whoami")
        assert (run.status, run.err) == (1, "taskclient: too many logins\n")

    def test_login_without_a_name(self, stage: Stage) -> None:
        run = stage.run("login")
        assert (run.status, run.out) == (0, "Logged in as ana.\n")
        assert stage.sessions.load() == Session(UNIX, "ana", "token-0")

    def test_login_with_a_name_asks_for_the_password(self, stage: Stage) -> None:
        stage.taskd.user("ben", PASSWORD)
        run = stage.run("login", "ben", tty=True, lines=[PASSWORD])
        assert run.status == 0
        assert run.source.secret == [PASSWORD]
        assert stage.run("whoami").out == "ben\n"

    def test_login_asks_after_a_refusal(self, stage: Stage) -> None:
        stage.taskd.local = None
        stage.taskd.user("ben", PASSWORD)
        run = stage.run("login", tty=True, lines=["ben", PASSWORD])
        assert run.status == 0
        assert run.err == "No login without a password: local logins are off here.\n"
        assert "Logged in as ben." in run.out

    def test_the_menu(self, stage: Stage) -> None:
        run = stage.run(tty=True, open=True, lines=["2", ""])
        assert "Username (Enter for your user of this machine): " in run.out
        assert "Logged in as ana." in run.out
        stage.taskd.end_sessions("ana")
        stage.settle()
        run.type("1")
        assert run.out.count("Logged in as ana.") == 2, "without a question"
        run.type("3", "2", "ben", PASSWORD)
        assert "wrong password or username" in run.out


def test_addresses_of_unix_sockets() -> None:
    assert is_unix(normalized(" unix:/run/taskd/taskd.sock"))
    assert not is_unix(normalized("unix.example.org"))
    assert not is_unix(normalized("tls:unix:5000"))


def sent(stage: Stage) -> list[str]:
    """The actions of all connections."""
    return [action for n in range(stage.network.attempts) for action in stage.taskd.actions(n)]


class TestPlaintext:
    def network(self, tmp_path: Path, lang: str = "en") -> Stage:
        """A server on another machine, without TLS."""
        stage = Stage(tmp_path / "state", lang)
        stage.network.peer = IPv4Address("TCP", "192.0.2.7", 5000)
        stage.taskd.user("ana", PASSWORD)
        return stage

    @pytest.mark.parametrize(
        ("lang", "says"),
        [
            ("en", "taskclient: nothing secret is sent to 127.0.0.1:5000 without TLS"),
            ("es", "taskclient: no se envía nada secreto a 127.0.0.1:5000 sin TLS"),
        ],
    )
    def test_nothing_secret_is_sent(self, tmp_path: Path, lang: str, says: str) -> None:
        stage = self.network(tmp_path, lang)
        for argv in (["login", "ana"], ["register", "ben"], ["passwd", "--code", "ana"]):
            run = stage.run(*argv, lines=[PASSWORD, PASSWORD])
            assert run.status == USAGE
            assert run.err.startswith(says)
            assert "tls:HOST:" in run.err and "TASKD_ALLOW_PLAINTEXT=1" in run.err
            assert run.err.count("\n") == 1
        stage.env["TASKD_TOKEN"] = "token-0"
        assert stage.run("list").status == USAGE
        assert stage.run("list", "--json").objects[0]["code"] == "forbidden"
        assert not sent(stage)

    def test_the_menu_goes_on(self, tmp_path: Path) -> None:
        stage = self.network(tmp_path)
        run = stage.run(tty=True, open=True, lines=["2", "ana", PASSWORD])
        assert "nothing secret is sent" in run.out
        assert not run.over
        assert not sent(stage)

    @pytest.mark.parametrize("value", ["1", "yes", "TRUE"])
    def test_a_network_that_is_trusted(self, tmp_path: Path, value: str) -> None:
        stage = self.network(tmp_path)
        stage.env["TASKD_ALLOW_PLAINTEXT"] = value
        assert stage.run("login", "ana", lines=[PASSWORD]).status == 0
        assert stage.run("whoami").out == "ana\n"

    @pytest.mark.parametrize("value", ["0", "", "no", "maybe"])
    def test_one_that_is_not(self, tmp_path: Path, value: str) -> None:
        stage = self.network(tmp_path)
        stage.env["TASKD_ALLOW_PLAINTEXT"] = value
        assert stage.run("login", "ana", lines=[PASSWORD]).status == USAGE


def connected(peer: Any, allow: bool = False, tls: bool = False) -> Connection:
    """A connection to this address."""
    transport = (TlsTransport if tls else StringTransport)(peerAddress=peer)
    connection = Connection(Clock(), "tasks.example.org:5000", allow)
    connection.makeConnection(transport)
    return connection


@pytest.mark.parametrize(
    ("peer", "private"),
    [
        (IPv4Address("TCP", "127.0.0.1", 1), True),
        (IPv4Address("TCP", "127.1.2.3", 1), True),
        (IPv6Address("TCP", "::1", 1), True),
        (IPv6Address("TCP", "::ffff:127.0.0.1", 1), True),
        (UNIXAddress("/run/taskd/taskd.sock"), True),
        (IPv4Address("TCP", "192.0.2.7", 1), False),
        (IPv4Address("TCP", "10.0.0.1", 1), False),
        (IPv6Address("TCP", "fe80::1%eth0", 1), False),
        (IPv6Address("TCP", "::ffff:192.0.2.7", 1), False),
        (object(), False),
    ],
)
def test_the_address_that_was_connected_to_counts(peer: Any, private: bool) -> None:
    for allow, tls in ((False, False), (True, False), (False, True)):
        connection: Any = connected(peer, allow, tls)
        for action in SECRET:
            if private or allow or tls:
                connection.request(action).addErrback(lambda failure: None)
            else:
                with pytest.raises(NeedsTls):
                    connection.request(action, password=PASSWORD)
        sent = connection.transport.value()
        assert sent.count(b"\n") == (len(SECRET) if private or allow or tls else 0)
        connection.request("ping").addErrback(lambda failure: None)
        assert b'"ping"' in connection.transport.value()


def test_what_is_secret() -> None:
    assert {"login", "register", "set_password", "change_password", "delete_account", "new_token"} <= SECRET
    assert not {"ping", "new_task", "watch"} & SECRET
