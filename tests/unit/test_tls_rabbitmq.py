"""RabbitMQ over TLS: its certificate is checked before pika sends anything, and the log says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet import endpoints
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from taskd.broker.rabbitmq.connection import Connection
from taskd.broker.rabbitmq.reconnecting import OutageReporter, ReconnectingConnection
from taskd.config import RabbitMQ
from taskd.model.errors import SettingsError
from taskd.server.tls import ServerTls
from taskd.tls.client import ClientTls
from taskd.tls.files import Authorities
from tests.certificates import Certificate, authority
from tests.unit.tls_pair import Pair, Wire

CA = authority()
HOST = "mq.example.org"
SETTINGS = RabbitMQ(HOST, 5671, "taskd", "secret", tls=True)


def _keep(failure: Failure, failed: list[Any]) -> None:
    failed.append(failure.value)


def connect(folder: Path, server: Certificate) -> tuple[Pair, list[Any]]:
    """A connection of the broker; the list gets why it could not be opened."""
    ca = folder / "ca.pem"
    ca.write_bytes(CA.pem)
    client = Connection(Clock(), SETTINGS, "test")
    failed: list[Any] = []
    client.opened.addErrback(_keep, failed)
    return Pair(ClientTls(HOST, Authorities(ca)), ServerTls(*server.write(folder)), client), failed


def test_a_good_certificate(tmp_path: Path) -> None:
    pair, failed = connect(tmp_path, CA.issue(HOST))
    assert pair.server.received == b"AMQP\x00\x00\x09\x01"
    assert failed == [] and pair.client.close_reason is None


@pytest.mark.parametrize(
    ("server", "says"),
    [
        (CA.issue("other.example.org"), "its certificate is for another host: other.example.org"),
        (CA.issue(HOST, days=(-9, -2)), "its certificate expired on 20"),
        (authority("Other").issue(HOST), "its certificate is from an authority that is not trusted: CN=Other"),
    ],
)
def test_a_bad_certificate(tmp_path: Path, server: Certificate, says: str) -> None:
    pair, [failed] = connect(tmp_path, server)
    assert str(failed).startswith(says)
    assert str(failed).endswith(" (see RABBITMQ_CAFILE and RABBITMQ_HOST)")
    assert pair.server.received == b""


def lost(client: Connection, reason: Exception) -> str:
    """Why it was lost."""
    client.opened.addErrback(lambda failure: None)
    client.connectionLost(Failure(reason))
    return str(client.close_reason)


def test_a_port_without_tls() -> None:
    client = Connection(Clock(), SETTINGS, "test")
    client.makeConnection(Wire(client, isServer=False))
    error = SSL.Error([("SSL routines", "", "wrong version number")])
    assert lost(client, error) == "TLS failed: wrong version number (see RABBITMQ_TLS and RABBITMQ_PORT)"


def test_a_port_with_tls_and_a_plain_connection() -> None:
    client = Connection(Clock(), RabbitMQ(HOST, 5671, "taskd", "secret"), "test")
    client.makeConnection(Wire(client, isServer=False))
    client.dataReceived(b"\x15\x03\x03\x00\x02\x02\x0a")
    assert lost(client, ConnectionDone()).startswith("it uses TLS on this port; set RABBITMQ_TLS=1")


class TestSettings:
    def connection(self, **settings: Any) -> ReconnectingConnection:
        found = RabbitMQ(**{"host": HOST, "port": 5671, "user": "u", "password": "p", **settings})

        async def set_up(_: Connection) -> None:
            """Nothing."""

        return ReconnectingConnection(MemoryReactorClock(), found, "test", set_up, OutageReporter("RabbitMQ"))

    def test_the_endpoint(self, tmp_path: Path) -> None:
        ca = tmp_path / "ca.pem"
        ca.write_bytes(CA.pem)
        assert isinstance(self.connection()._endpoint, endpoints.HostnameEndpoint)
        for cafile in (None, ca, tmp_path):
            assert not isinstance(self.connection(tls=True, cafile=cafile)._endpoint, endpoints.HostnameEndpoint)

    def test_authorities_that_cannot_be_used(self, tmp_path: Path) -> None:
        for name, why in (("missing", "No such file or directory"), ("", "has no file")):
            with pytest.raises(SettingsError, match=f"RABBITMQ_CAFILE: {tmp_path}.*{why}"):
                self.connection(tls=True, cafile=tmp_path / name)
