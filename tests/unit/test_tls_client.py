"""TLS of the client: real certificates, and what the user reads when one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport

from taskd.cli.texts.catalogue import Texts
from taskd.client.address import endpoint
from taskd.client.connection import Connection
from taskd.client.errors import BadAddress, ConnectionFailed
from taskd.server.tls import ServerTls
from taskd.tls.client import ClientTls
from taskd.tls.files import Authorities, arguments
from tests.certificates import Certificate, authority
from tests.unit.tls_pair import End, Pair

ADDRESS = "tls:tasks.example.org:5001"
CA = authority("Lab authority")
GOOD = CA.issue("tasks.example.org", "*.lab.example.org", "10.0.0.1", "::1")


def connect(folder: Path, server: Certificate, *chain: Certificate, host: str = "tasks.example.org") -> Pair:
    """A connection of the client that trusts CA."""
    ca = folder / "ca.pem"
    ca.write_bytes(CA.pem)
    client = Connection(Clock(), ADDRESS)
    return Pair(ClientTls(host, Authorities(ca)), ServerTls(*server.write(folder, *chain)), client)


def said(client: Any, language: str = "en") -> str:
    """The line that the user reads."""
    error = client.lost
    assert isinstance(error, ConnectionFailed) and not error.transient and error.nothing_done
    return Texts(language)(error.key, **error.fields)


class TestCertificates:
    @pytest.mark.parametrize("host", ["tasks.example.org", "TASKS.example.org", "a.lab.example.org", "10.0.0.1", "::1"])
    def test_a_good_one(self, tmp_path: Path, host: str) -> None:
        pair = connect(tmp_path, GOOD, host=host)
        answer = pair.client.request("ping")
        pair.flush()
        assert b'"ping"' in pair.server.received
        pair.server.transport.write(b'{"id":1,"ok":true}\n')
        pair.flush()
        assert answer.called and pair.client.lost is None

    def test_a_chain(self, tmp_path: Path) -> None:
        middle = CA.issue("middle", authority=True)
        server = middle.issue("tasks.example.org")
        assert connect(tmp_path, server, middle).client.lost is None
        assert "its issuer is CN=middle" in said(connect(tmp_path, server).client)

    def test_another_host(self, tmp_path: Path) -> None:
        pair = connect(tmp_path, GOOD, host="other.example.org")
        names = "tasks.example.org, *.lab.example.org, 10.0.0.1, ::1"
        assert said(pair.client) == f"the certificate of {ADDRESS} is for another host name; it is for: {names}"
        assert said(pair.client, "es") == f"el certificado de {ADDRESS} es de otro nombre de host; es para: {names}"
        assert "10.0.0.1" in said(connect(tmp_path, GOOD, host="10.0.0.2").client)
        assert pair.server.received == b""

    def test_no_host(self, tmp_path: Path) -> None:
        """The common name does not count."""
        named = Certificate("tasks.example.org", issuer=CA)
        assert "names no host; it needs the name as a subjectAltName" in said(connect(tmp_path, named).client)

    def test_an_expired_one(self, tmp_path: Path) -> None:
        expired = CA.issue("tasks.example.org", days=(-9, -2))
        pair = connect(tmp_path, expired)
        assert said(pair.client).startswith(f"the certificate of {ADDRESS} expired on {expired.last_day};")
        assert said(pair.client, "es").startswith(f"el certificado de {ADDRESS} caducó el {expired.last_day};")

    def test_one_that_is_not_valid_yet(self, tmp_path: Path) -> None:
        early = CA.issue("tasks.example.org", days=(2, 9))
        assert f"is not valid before {early.first_day}; check the clock" in said(connect(tmp_path, early).client)

    def test_another_authority(self, tmp_path: Path) -> None:
        other = authority("Evil\x1b[31m authority").issue("tasks.example.org")
        text = said(connect(tmp_path, other).client)
        assert "is not trusted: its issuer is CN=Evil?[31m authority; " in text and "--cafile FILE" in text

    def test_a_self_signed_one(self, tmp_path: Path) -> None:
        own = Certificate("tasks.example.org", hosts=("tasks.example.org",))
        assert "is not trusted: its issuer is CN=tasks.example.org" in said(connect(tmp_path, own).client)
        trusting = ClientTls("tasks.example.org", Authorities(own.write(tmp_path)[1]))
        assert Pair(trusting, ServerTls(*own.write(tmp_path))).talk()


class TestOtherProtocol:
    def test_tls_to_a_plain_port(self) -> None:
        """The server answers in plain text."""
        client = Connection(Clock(), ADDRESS)
        factory = TLSMemoryBIOFactory(ClientTls("tasks.example.org"), True, Factory.forProtocol(lambda: client))
        outer = factory.buildProtocol(None)
        outer.makeConnection(FakeTransport(outer, isServer=False))
        outer.dataReceived(b'{"ok":false,"status":"error","code":"bad_json"}\n')
        outer.connectionLost(Failure(ConnectionDone()))
        assert said(client) == f"{ADDRESS} does not use TLS; use HOST:PORT without tls:, or the server's TLS port"

    def test_plain_to_a_tls_port_that_answers_with_an_alert(self) -> None:
        client = Connection(Clock(), "tasks.example.org:5001")
        client.makeConnection(StringTransport())
        client.dataReceived(b"\x15\x03\x01\x00\x02\x02\x46")
        client.connectionLost(Failure(ConnectionDone()))
        assert isinstance(client.lost, ConnectionFailed)
        assert client.lost.key == "needs_tls" and not client.lost.transient


class TestAuthorities:
    """``--cafile``: a file or a folder."""

    def trusts(self, path: Path, server: Certificate, folder: Path) -> bool:
        client = ClientTls("tasks.example.org", Authorities(path))
        return Pair(client, ServerTls(*server.write(folder)), End()).talk()

    def test_a_bundle_and_a_folder(self, tmp_path: Path) -> None:
        other = authority()
        bundle, folder, files = tmp_path / "bundle", tmp_path / "folder", tmp_path / "files"
        bundle.write_bytes(b"# ours\n" + other.pem + CA.pem + CA.pem)
        folder.mkdir()
        files.mkdir()
        (folder / "other.pem").write_bytes(other.pem)
        (folder / "lab.crt").write_bytes(CA.pem)
        (folder / "README").write_text("not a certificate")
        for path in (bundle, folder):
            assert self.trusts(path, GOOD, files)
        assert not self.trusts(folder / "other.pem", GOOD, files)

    @pytest.mark.parametrize(
        ("make", "says"),
        [
            (lambda path: None, "there is no such file or folder"),
            (lambda path: path.mkdir(), "has no certificates"),
            (lambda path: path.write_text("nonsense"), "has no certificates"),
            (lambda path: path.symlink_to(path), "cannot be read"),
        ],
    )
    def test_one_that_cannot_be_used(self, tmp_path: Path, make: Any, says: str) -> None:
        path = tmp_path / "ca"
        make(path)
        for address, cafile in ((ADDRESS, str(path)), (f"{ADDRESS}:trustRoots={path}", None)):
            with pytest.raises(BadAddress) as caught:
                endpoint(MemoryReactorClock(), address, cafile)
            text = Texts("en")(caught.value.key, **caught.value.fields)
            assert says in text and str(path) in text and "--cafile" in text

    def test_trust_roots_of_the_address_come_first(self, tmp_path: Path) -> None:
        good = tmp_path / "ca.pem"
        good.write_bytes(CA.pem)
        endpoint(MemoryReactorClock(), f"{ADDRESS}:trustRoots={good}", str(tmp_path / "missing"))

    def test_a_certificate_of_the_client(self, tmp_path: Path) -> None:
        key, certificate = GOOD.write(tmp_path)
        endpoint(MemoryReactorClock(), f"{ADDRESS}:certificate={certificate}:privateKey={key}:timeout=5")
        with pytest.raises(BadAddress):
            endpoint(MemoryReactorClock(), f"{ADDRESS}:timeout=soon")


@pytest.mark.parametrize(
    ("description", "plain", "named"),
    [
        ("ssl:5001", ["5001"], {}),
        ("tls:a:1:x=1=2:y=", ["a", "1"], {"x": "1=2", "y": ""}),
        (r"tls:\:\:1:1:p=C\:\\x", ["::1", "1"], {"p": "C:\\x"}),
        ("ssl:", [""], {}),
        ("ssl", [], {}),
    ],
)
def test_arguments(description: str, plain: list[str], named: dict[str, str]) -> None:
    """As Twisted reads them."""
    assert arguments(description) == (plain, named)
