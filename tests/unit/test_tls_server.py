"""TLS of the server: versions and ciphers, files that cannot be used, and certificates that are read again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, capturedLogs, formatEvent

from taskd.model.errors import SettingsError
from taskd.server.tls import Listeners, ServerTls
from tests.certificates import Certificate, authority
from tests.unit.tls_pair import Careless, Pair

CA = authority()
SERVER = CA.issue("localhost", with_rsa=True)


@pytest.fixture
def tls(tmp_path: Path) -> ServerTls:
    return ServerTls(*SERVER.write(tmp_path))


def common_name(pair: Pair) -> str:
    """The name in the certificate that the client got."""
    found = pair.connection.get_peer_certificate(as_cryptography=True)
    assert found is not None
    return found.subject.rfc4514_string().removeprefix("CN=")


class TestHandshake:
    @pytest.mark.parametrize(("version", "name"), [(SSL.TLS1_2_VERSION, "TLSv1.2"), (SSL.TLS1_3_VERSION, "TLSv1.3")])
    def test_modern_versions(self, tls: ServerTls, version: int, name: str) -> None:
        pair = Pair(Careless(version), tls)
        assert pair.talk()
        assert pair.connection.get_protocol_version_name() == name

    @pytest.mark.parametrize("version", [SSL.TLS1_VERSION, SSL.TLS1_1_VERSION])
    def test_old_versions(self, tls: ServerTls, version: int) -> None:
        pair = Pair(Careless(version, b"ALL"), tls)
        assert not pair.talk()

    @pytest.mark.parametrize("cipher", ["ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-CHACHA20-POLY1305"])
    def test_ciphers_with_forward_secrecy(self, tls: ServerTls, cipher: str) -> None:
        pair = Pair(Careless(SSL.TLS1_2_VERSION, cipher.encode()), tls)
        assert pair.talk()
        assert pair.connection.get_cipher_name() == cipher

    @pytest.mark.parametrize(
        "cipher",
        [
            b"AES256-GCM-SHA384",  # static RSA
            b"AES128-SHA",
            b"ECDHE-RSA-AES256-SHA384",  # CBC
            b"ECDHE-RSA-AES128-SHA",
            b"DHE-RSA-AES256-GCM-SHA384",
        ],
    )
    def test_other_ciphers(self, tls: ServerTls, cipher: bytes) -> None:
        pair = Pair(Careless(SSL.TLS1_2_VERSION, cipher), tls)
        assert not pair.talk()

    def test_the_chain_may_stand_in_the_same_file_or_in_another(self, tmp_path: Path) -> None:
        middle = CA.issue("middle", authority=True)
        key, together = middle.issue("localhost").write(tmp_path, middle)
        rest = tmp_path / "chain.pem"
        rest.write_bytes(middle.pem)
        for certificate, chain in ((together, None), (together, rest)):
            pair = Pair(Careless(), ServerTls(key, certificate, chain))
            found = pair.connection.get_peer_cert_chain(as_cryptography=True)
            assert found is not None
            assert [each.subject.rfc4514_string() for each in found] == ["CN=localhost", "CN=middle"]


class TestFiles:
    def refusal(self, key: Path, certificate: Path) -> str:
        with pytest.raises(SettingsError) as refused:
            ServerTls(key, certificate)
        text = str(refused.value)
        assert "\n" not in text
        return text

    def test_files_that_cannot_be_used(self, tmp_path: Path) -> None:
        key, certificate = SERVER.write(tmp_path)
        missing, empty = tmp_path / "missing", tmp_path / "empty"
        empty.touch()
        locked, other = tmp_path / "locked", tmp_path / "other"
        locked.write_bytes(SERVER.key_pem("secret"))
        other.write_bytes(CA.key_pem())
        assert "missing: the key cannot be read: No such file" in self.refusal(missing, certificate)
        assert "missing: the certificate cannot be read: No such file" in self.refusal(key, missing)
        assert "empty has no private key in PEM form" in self.refusal(empty, certificate)
        assert "empty has no certificate in PEM form" in self.refusal(key, empty)
        assert "the key has a passphrase" in self.refusal(locked, certificate)
        assert "does not belong to the certificate" in self.refusal(other, certificate)

    def test_a_key_that_everybody_can_read(self, tmp_path: Path) -> None:
        key, certificate = SERVER.write(tmp_path)
        for mode, lines in ((0o600, 0), (0o640, 0), (0o644, 1)):
            key.chmod(mode)
            with capturedLogs() as logs:
                ServerTls(key, certificate)
            assert len(logs) == lines
        assert (
            formatEvent(logs[0]) == f"{key}: every user of this machine can read this private key; run: chmod 600 {key}"
        )
        assert logs[0]["log_level"] == LogLevel.warn

    def test_an_expired_certificate_is_served_with_a_warning(self, tmp_path: Path) -> None:
        expired = CA.issue("localhost", days=(-9, -2))
        with capturedLogs() as logs:
            ServerTls(*expired.write(tmp_path))
        assert f"the certificate expired on {expired.last_day}" in (formatEvent(logs[0]) or "")


class TestReload:
    @pytest.fixture
    def listeners(self, tmp_path: Path) -> Listeners:
        SERVER.write(tmp_path)
        self.reactor = MemoryReactorClock()
        listeners = Listeners(self.reactor)
        files = f"privateKey={tmp_path}/key.pem:certKey={tmp_path}/cert.pem"
        listeners.endpoint(self.reactor, f"ssl:5001:{files}").listen(Factory())
        return listeners

    @property
    def creator(self) -> Any:
        """What the reactor would listen with."""
        return self.reactor.sslServers[0][2]

    def reload(self, listeners: Listeners) -> list[str]:
        with capturedLogs() as logs:
            listeners.hangup()
        return [formatEvent(event) or "" for event in logs]

    def test_new_connections_get_the_new_certificate(self, listeners: Listeners, tmp_path: Path) -> None:
        old = Pair(Careless(), self.creator)
        CA.issue("renewed").write(tmp_path)
        assert self.reload(listeners) == [f"SIGHUP: new connections get the certificate of {tmp_path}/cert.pem"]
        assert common_name(Pair(Careless(), self.creator)) == "renewed"
        assert old.talk()

    @pytest.mark.parametrize(
        ("spoil", "why"),
        [
            (lambda folder: (folder / "cert.pem").write_text("nonsense"), "has no certificate in PEM form"),
            (lambda folder: (folder / "key.pem").unlink(), "the key cannot be read: No such file or directory"),
            (lambda folder: (folder / "key.pem").write_bytes(CA.key_pem()), "does not belong to the certificate"),
            (lambda folder: CA.issue("localhost", days=(-9, -2)).write(folder), "the certificate expired on"),
            (lambda folder: CA.issue("localhost", days=(2, 9)).write(folder), "the certificate is not valid before"),
        ],
    )
    def test_a_bad_certificate_changes_nothing(
        self, listeners: Listeners, tmp_path: Path, spoil: Any, why: str
    ) -> None:
        spoil(tmp_path)
        [line] = self.reload(listeners)
        assert line.startswith("SIGHUP: the old certificate stays in use: ") and why in line
        assert common_name(Pair(Careless(), self.creator)) == "localhost"

    def test_without_tls_there_is_nothing_to_read(self) -> None:
        assert "no endpoint uses TLS" in self.reload(Listeners(MemoryReactorClock()))[0]

    def test_a_closed_terminal_stops_the_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The kernel sends SIGHUP then, too."""
        reactor = MemoryReactorClock()
        stopped: list[bool] = []
        reactor.stop = lambda: stopped.append(True)  # type: ignore[method-assign]
        listeners = Listeners(reactor)
        terminal = True
        monkeypatch.setattr(os, "isatty", lambda fd: terminal)
        listeners.reload_on_hangup()
        self.reload(listeners)
        assert stopped == []
        terminal = False
        self.reload(listeners)
        assert stopped == [True]

    def test_the_signal(self, listeners: Listeners, monkeypatch: pytest.MonkeyPatch) -> None:
        called: list[Any] = []
        monkeypatch.setattr(self.reactor, "callFromThread", called.append, raising=False)
        listeners.reload_on_hangup()
        os.kill(os.getpid(), signal.SIGHUP)
        assert called == [listeners.hangup]

    @pytest.fixture(autouse=True)
    def handler(self) -> Iterator[None]:
        """Leave the process's handler as it was."""
        before = signal.getsignal(signal.SIGHUP)
        yield
        signal.signal(signal.SIGHUP, before)


class TestDescriptions:
    def test_where_it_listens(self, tmp_path: Path) -> None:
        key, certificate = SERVER.write(tmp_path)
        both = tmp_path / "both: key=and certificate.pem"
        both.touch(0o600)
        both.write_bytes(key.read_bytes() + certificate.read_bytes())
        reactor = MemoryReactorClock()
        listeners = Listeners(reactor)
        quoted = str(both).replace(":", "\\:")
        listeners.endpoint(reactor, f"ssl:5001:interface=\\:\\:1:privateKey={quoted}:backlog=7").listen(Factory())
        listeners.endpoint(reactor, "tcp:5003:interface=127.0.0.1").listen(Factory())
        [first] = reactor.sslServers
        assert (first[0], first[3], first[4]) == (5001, 7, "::1")
        assert isinstance(first[2], ServerTls)
        assert reactor.tcpServers[0][0] == 5003

    @pytest.mark.parametrize(
        ("description", "why"),
        [
            ("ssl:5001:sslmethod=TLSv1_METHOD", "unknown argument sslmethod; an ssl: endpoint has a port and"),
            ("ssl:5001:dhParameters=dh.pem", "unknown argument dhParameters"),
            ("ssl:privateKey=key.pem", "begins with its port"),
            ("ssl:99999", "begins with its port"),
            ("ssl:5001:backlog=x", "backlog must be a whole number"),
            ("ssl:5001", "server.pem"),
        ],
    )
    def test_refused(self, description: str, why: str) -> None:
        with pytest.raises(SettingsError, match=why):
            reactor = MemoryReactorClock()
            Listeners(reactor).endpoint(reactor, description)


def test_a_weak_certificate_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By OpenSSL, whose reason is passed on."""
    from cryptography.hazmat.primitives.asymmetric import rsa

    weak = rsa.generate_private_key(65537, 1024)
    monkeypatch.setattr(rsa, "generate_private_key", lambda *_: weak)
    with pytest.raises(SettingsError, match=r"OpenSSL refuses the certificate in .*: .*too small"):
        ServerTls(*Certificate("localhost", hosts=("localhost",), with_rsa=True).write(tmp_path))
