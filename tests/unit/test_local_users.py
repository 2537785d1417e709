"""Local logins: users of the server's machine, whom the kernel names."""

from __future__ import annotations

import os
import socket
import struct
from ipaddress import IPv4Address as Address
from typing import Any

import pyotp
import pytest
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from taskd.api.login_throttle import LOCAL_LOGINS
from taskd.api.refusal_log import FLUSH_SECONDS
from taskd.model.errors import Unavailable
from taskd.model.uids import is_person
from taskd.model.users import Registration
from taskd.server import user_names
from taskd.server.peer import peer_uid
from taskd.server.proxy_header import ToldAddress
from taskd.server.user_names import LOOKUP_SECONDS, MAX_LOOKUPS, UserNames
from tests.unit.stage import ADMIN, NOON, PASSWORD, Client, Stage, StageCase, Transport, now

ANA, BEN = 1001, 1002


class Handle:
    """A socket whose peer the kernel knows."""

    def __init__(self, uid: int, family: int = socket.AF_UNIX, error: OSError | None = None) -> None:
        self.family = family
        self._uid = uid
        self._error = error

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        """SO_PEERCRED, and nothing else."""
        assert (level, option, size) == (socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        if self._error is not None:
            raise self._error
        return struct.pack("iII", 4711, self._uid, 100)


class UnixTransport(Transport):
    """The server's end of a UNIX socket."""

    def __init__(self, handle: Handle, peer: Any = None) -> None:
        super().__init__(peerAddress=peer or UNIXAddress(""))
        self._handle = handle

    def getHandle(self) -> Handle:
        """The socket."""
        return self._handle


class LocalCase(StageCase):
    def setUp(self) -> None:
        self.names: dict[int, str] = {ANA: "ana", BEN: "ben"}
        self.looked_up: list[int] = []
        self.stage = Stage(find_name=self.find_name)
        self.addCleanup(self.stage.close)

    async def find_name(self, uid: int) -> str | None:
        self.looked_up.append(uid)
        return self.names.get(uid)

    def connect(self, uid: int = ANA, **options: Any) -> Client:
        """A connection of this user of the machine."""
        return Client(self.stage, transport=UnixTransport(Handle(uid, **options)))

    def login(self, uid: int = ANA) -> dict[str, Any]:
        return self.connect(uid).ask("login", local=True)

    def assertRefusedLogin(self, reply: dict[str, Any], says: str) -> None:
        """Assert that a local login is refused for this reason."""
        self.assertRefused(reply, "forbidden", "local")
        self.assertIn(says, reply["message"])

    def audit(self, *columns: str) -> list[Any]:
        """The oldest first."""
        return self.stage.sql(f"SELECT {', '.join(columns)} FROM audit ORDER BY id")


class LoggingIn(LocalCase):
    def test_the_first_login_creates_the_account(self) -> None:
        client = self.connect()
        reply = client.ask("login", local=True)
        self.assertEqual(
            {name: reply[name] for name in ("status", "user_id", "username", "role", "expires_in")},
            {"status": "logged_in", "user_id": 1, "username": "ana", "role": "user", "expires_in": 86_400},
        )
        self.assertEqual(client.ask("whoami")["username"], "ana")
        self.assertEqual(self.login()["user_id"], 1)
        self.assertEqual(self.stage.sql("SELECT username, password, local_uid FROM users"), [("ana", "", ANA)])
        self.assertEqual(
            self.audit("action", "actor", "subject_id", "subject", "outcome", "details"),
            [
                ("register", "ana", 1, "ana", "ok", "local uid 1001"),
                *[("login", "ana", 1, "ana", "ok", "local uid 1001")] * 2,
            ],
        )

    def test_the_token_is_that_of_any_session(self) -> None:
        token = self.login()["token"]
        self.assertEqual(self.stage.connect().ask("login", token=token)["username"], "ana")

    def test_it_ends_the_session_that_the_connection_had(self) -> None:
        client = self.connect()
        token = client.ask("login", local=True)["token"]
        self.assertTrue(client.ask("login", local=True)["ok"])
        self.assertRefused(self.stage.connect().ask("login", token=token), "auth_required", "token")

    def test_the_uid_outlives_a_logout(self) -> None:
        client = self.connect()
        client.ask("login", local=True)
        client.ask("logout")
        self.assertTrue(client.ask("login", local=True)["ok"])

    def test_registration_may_be_closed(self) -> None:
        self.stage.accounts.registration = Registration.CLOSED
        self.assertTrue(self.login()["ok"])

    def test_the_account_belongs_to_the_uid_and_not_to_the_name(self) -> None:
        self.login()
        self.names = {ANA: "ana.garcia", BEN: "ana"}
        self.assertEqual(self.login()["username"], "ana")
        self.assertRefusedLogin(self.login(BEN), "another account has the username 'ana'")

    def test_two_first_logins_at_the_same_time(self) -> None:
        self.stage.runner.slow = True
        clients = [self.connect() for _ in range(2)]
        ids = [client.start("login", local=True) for client in clients]
        while self.stage.runner.waiting:
            self.stage.runner.run_waiting()
        self.assertEqual([client.reply(n)["user_id"] for client, n in zip(clients, ids, strict=True)], [1, 1])

    def test_nothing_may_stand_beside_it(self) -> None:
        for field in ("username", "password", "token"):
            reply = self.connect().ask("login", local=True, **{field: "x"})
            self.assertRefused(reply, "bad_request", "local")
        self.assertEqual(self.looked_up, [])


class Impersonation(LocalCase):
    def test_a_name_that_was_registered_is_not_taken_over(self) -> None:
        self.stage.connect().ask("register", username="Ana", password=PASSWORD)
        reply = self.login()
        self.assertRefusedLogin(reply, "another account has the username 'ana'")
        self.assertIn("taskadmin bind-local NAME 1001", reply["message"])
        self.assertEqual(self.stage.sql("SELECT local_uid FROM users"), [(None,)])

    def test_a_name_of_the_machine_is_not_registered(self) -> None:
        self.login()
        reply = self.stage.connect().ask("register", username="ANA", password=PASSWORD)
        self.assertRefused(reply, "conflict", "username")

    def test_the_administrator_binds_an_account(self) -> None:
        self.stage.connect().ask("register", username="Ana", password=PASSWORD)
        now(self.stage.store.bind_local("ana", ANA))
        self.assertEqual(self.login()["username"], "Ana")
        self.assertTrue(self.stage.connect().ask("login", username="ana", password=PASSWORD)["ok"])

    def test_an_account_that_is_unbound(self) -> None:
        client = self.connect()
        client.ask("login", local=True)
        now(self.stage.store.bind_local("ana", None))
        self.stage.pass_time(15, 5)
        self.assertRefused(client.ask("whoami"), "auth_required")
        self.assertRefusedLogin(self.login(), "another account")

    def test_the_name_of_an_admin_is_not_taken_by_coming_first(self) -> None:
        self.names[ANA] = ADMIN
        self.assertRefusedLogin(self.login(), "TASKD_ADMINS")
        now(self.stage.store.create_user(ADMIN, ADMIN, ""))
        now(self.stage.store.bind_local(ADMIN, ANA))
        self.assertEqual(self.login()["role"], "admin")

    def test_an_account_without_a_password_accepts_none(self) -> None:
        self.login()
        for password in ("", "x" * 12, "!"):
            reply = self.stage.connect().ask("login", username="ana", password=password)
            self.assertEqual((reply["code"], reply["status"]), ("forbidden", "wrong_credentials"))
            self.stage.clock.advance(10)


class Refusals(LocalCase):
    def test_not_a_unix_socket(self) -> None:
        for host in ("192.0.2.1", "127.0.0.1"):
            self.assertRefusedLogin(self.stage.connect(host).ask("login", local=True), "UNIX socket")
        tcp = UnixTransport(Handle(ANA, family=socket.AF_INET), IPv4Address("TCP", "127.0.0.1", 1))
        self.assertRefusedLogin(Client(self.stage, transport=tcp).ask("login", local=True), "UNIX socket")

    def test_the_setting_is_off(self) -> None:
        stage = Stage()
        self.addCleanup(stage.close)
        client = Client(stage, transport=UnixTransport(Handle(ANA)))
        self.assertRefusedLogin(client.ask("login", local=True), "TASKD_LOCAL_USERS=1")

    def test_behind_a_balancer(self) -> None:
        """The peer is the balancer, whatever its header says of the client."""
        for client in (Address("127.0.0.1"), None):
            connection: Any = self.stage.lines.buildProtocol(ToldAddress(None, client))
            transport = UnixTransport(Handle(ANA))
            connection.makeConnection(transport)
            connection.dataReceived(b'{"action":"login","local":true}\n')
            self.stage.run_pending()
            self.assertIn(b'"field":"local"', transport.value())
            self.assertIn(b"without a balancer", transport.value())
        self.assertEqual(self.looked_up, [])

    def test_users_who_are_no_persons(self) -> None:
        for uid in (0, 1, 33, 999, 61_200, 65_534, 2**32 - 1):
            self.names[uid] = f"u{uid}"
            self.assertRefusedLogin(self.login(uid), "uid of a person")
        self.assertEqual(self.looked_up, [])
        self.assertEqual(self.stage.sql("SELECT count(*) FROM users"), [(0,)])

    def test_a_uid_without_a_name(self) -> None:
        self.assertRefusedLogin(self.login(4000), "the uid 4000 has no name on this machine")
        self.login()
        del self.names[ANA]
        self.assertRefusedLogin(self.login(), "has no name")

    def test_a_name_that_is_no_username(self) -> None:
        for name in ("x" * 65, "a\u202eb", "an\u0430"):
            self.names[ANA] = name
            self.assertRefusedLogin(self.login(), "cannot be a username here")
        now(self.stage.store.create_user("Ana", "ana", ""))
        now(self.stage.store.bind_local("ana", ANA))
        self.assertTrue(self.login()["ok"], "a bound account has a name of its own")

    def test_a_disabled_account(self) -> None:
        self.login()
        now(self.stage.store.set_disabled("ana", True))
        self.assertRefusedLogin(self.login(), "disabled")

    def test_a_system_that_does_not_tell(self) -> None:
        self.assertRefusedLogin(self.connect(ANA, error=OSError(92, "no")).ask("login", local=True), "UNIX socket")

    def test_too_many(self) -> None:
        for _ in range(LOCAL_LOGINS):
            self.assertTrue(self.login()["ok"])
        client = self.connect()
        number = client.start("login", local=True)
        self.assertEqual(client.lines(), [], "it is answered late")
        self.stage.pass_time(5, 1)
        self.assertRefused(client.reply(number), "rate_limited")
        self.assertTrue(self.login(BEN)["ok"], "another user is not held up")

    def test_refusals_are_in_the_audit_and_are_no_guesses(self) -> None:
        self.stage.connect().ask("register", username="ana", password=PASSWORD)
        for _ in range(3):
            self.login()
        self.stage.clock.advance(FLUSH_SECONDS)
        self.assertEqual(
            self.audit("action", "subject", "outcome", "number", "details")[1:],
            [("login", "", "forbidden", 3, "local uid 1001")],
        )
        self.assertEqual(now(self.stage.store.count_refusals(["ana"], 3600)), [0])

    def test_a_machine_that_does_not_answer(self) -> None:
        async def hangs(uid: int) -> str | None:
            raise Unavailable("the machine does not say in time who you are; try again", retry_after=5)

        stage = Stage(find_name=hangs)
        self.addCleanup(stage.close)
        reply = Client(stage, transport=UnixTransport(Handle(ANA))).ask("login", local=True)
        self.assertRefused(reply, "unavailable")


@pytest.mark.parametrize(
    ("uid", "person"),
    [
        (0, False),
        (999, False),
        (1000, True),
        (61_184, False),
        (65_519, False),
        (65_533, True),
        (65_534, False),
        (2**32 - 2, True),
        (2**32 - 1, False),
    ],
)
def test_persons(uid: int, person: bool) -> None:
    assert is_person(uid) is person


class Holder:
    """A transport that has this socket."""

    def __init__(self, handle: socket.socket) -> None:
        self._handle = handle

    def getHandle(self) -> socket.socket:
        """The socket."""
        return self._handle


def test_the_kernel_is_asked() -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other, socket.socket() as inet:
        assert peer_uid(Holder(one)) == os.geteuid()
        assert peer_uid(Holder(inet)) is None
    assert peer_uid(StringTransport()) is None


class Looking(SynchronousTestCase):
    """taskd.server.user_names, whose threads end when the test says so."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.waiting: list[Deferred[Any]] = []
        self.patch(user_names, "deferToThreadPool", self.defer)
        self.names = UserNames(self.clock)

    def defer(self, reactor: Any, pool: Any, function: Any, uid: int) -> Deferred[Any]:
        self.waiting.append(Deferred())
        return self.waiting[-1]

    def look(self, uid: int = ANA) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.names(uid))

    def test_an_answer(self) -> None:
        looking = self.look()
        self.waiting[0].callback("ana")
        self.assertEqual(self.successResultOf(looking), "ana")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_answer_in_time(self) -> None:
        looking = self.look()
        self.clock.advance(LOOKUP_SECONDS)
        self.failureResultOf(looking, Unavailable)
        self.waiting[0].callback("ana")  # after the timeout: the answer has no effect

    def test_lookups_that_hang_are_bounded(self) -> None:
        for _ in range(MAX_LOOKUPS):
            self.look().addErrback(lambda failure: failure.trap(Unavailable))
        self.clock.advance(LOOKUP_SECONDS)
        self.failureResultOf(self.look(), Unavailable)
        self.assertEqual(len(self.waiting), MAX_LOOKUPS)
        self.waiting[0].callback(None)
        looking = self.look()
        self.waiting[-1].callback("ana")
        self.assertEqual(self.successResultOf(looking), "ana")

    def test_an_error_of_the_system(self) -> None:
        looking = self.look()
        self.waiting[0].errback(OSError(5, "I/O error"))
        self.failureResultOf(looking, Unavailable)

    def test_names_of_the_machine(self) -> None:
        self.assertEqual(user_names.find_name(0), "root")
        self.assertIsNone(user_names.find_name(2**31 - 7))
        self.assertIsNone(user_names.find_name(2**40))


class SecondFactor(LocalCase):
    """A local login needs the code of an account that has a second factor."""

    def setUp(self) -> None:
        super().setUp()
        client = self.stage.client("ana")
        self.secret = client.ask("totp_begin", password=PASSWORD)["secret"]
        self.assertTrue(client.ask("totp_confirm", code=self.code())["ok"])
        now(self.stage.store.bind_local("ana", ANA))
        self.stage.clock.advance(60)

    def code(self) -> str:
        """What an authenticator shows now."""
        seconds = NOON.timestamp() + self.stage.clock.seconds() - 1000.0
        return pyotp.TOTP(self.secret).at(seconds)

    def test_it_needs_the_code(self) -> None:
        self.assertRefused(self.login(), "totp_required", "code")
        client = self.connect()
        self.assertEqual(client.ask("login", local=True, code=self.code())["username"], "ana")
        self.assertIs(client.ask("whoami")["totp"], True)
        self.assertEqual(self.audit("action", "outcome", "details")[-1], ("login", "ok", "local uid 1001"))

    def test_each_code_lets_in_once(self) -> None:
        code = self.code()
        self.assertTrue(self.connect().ask("login", local=True, code=code)["ok"])
        self.assertRefused(self.connect().ask("login", local=True, code=code), "wrong_code", "code")

    def test_guesses_are_slowed_down(self) -> None:
        accepted = {self.code()}
        guesses = [f"{n:06}" for n in range(10) if f"{n:06}" not in accepted]
        codes = []
        for guess in guesses[:6]:
            client = self.connect()
            number = client.start("login", local=True, code=guess)
            self.stage.pass_time(5)
            codes.append(client.reply(number)["code"])
        self.assertEqual(codes[0], "wrong_code")
        self.assertIn("rate_limited", codes)

    def test_wrong_passwords_of_others_lock_nobody_out(self) -> None:
        for _ in range(12):
            other = self.connect(BEN)
            number = other.start("login", username="ana", password="wrong horse")
            self.stage.pass_time(6)
            other.reply(number)
        self.stage.clock.advance(60)
        self.assertTrue(self.connect().ask("login", local=True, code=self.code())["ok"])

    def test_a_second_factor_that_goes_away_meanwhile(self) -> None:
        find = self.stage.store.find_user

        def find_later(key: str, network: str = "") -> Any:
            now(self.stage.other_store.reset_totp("ana"))
            return find(key, network)

        self.stage.store.find_user = find_later  # type: ignore[method-assign]
        self.assertRefused(self.connect().ask("login", local=True, code="123456"), "auth_required")

    def test_a_uid_without_a_second_factor_needs_no_code(self) -> None:
        self.assertEqual(self.login(BEN)["username"], "ben")
