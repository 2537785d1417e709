"""A TLS connection that ends while its client does not read, over a transport that behaves as a socket does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from taskd.server.listening import TLSFactory
from taskd.server.tls import ServerTls
from tests.certificates import authority

SIZE = 500_000


class Selector(Clock):
    """A reactor that only remembers which descriptors wait."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()
        self.addReader, self.removeReader = self.readers.add, self.readers.discard
        self.addWriter, self.removeWriter = self.writers.add, self.writers.discard


class Socket(FileDescriptor):
    """Twisted's descriptor with its buffers, over a socket whose other end is ``sent``."""

    def __init__(self, selector: Selector, protocol: Any) -> None:
        super().__init__(selector)  # type: ignore[arg-type]
        self._selector = selector
        self._protocol = protocol
        self.connected = 1
        self.sent = b""
        self.startReading()

    def writeSomeData(self, data: bytes) -> int:
        self.sent += bytes(data)
        return len(data)

    def getPeer(self) -> Any:
        return None

    def getHost(self) -> Any:
        return None

    def run(self) -> bytes:
        """The client reads until nothing is left to write."""
        while self in self._selector.writers:
            reason = self.doWrite()
            if isinstance(reason, Exception):
                self.connectionLost(Failure(reason))
                self._protocol.connectionLost(Failure(reason))
        sent, self.sent = self.sent, b""
        return sent


@implementer(IPushProducer)
class Busy(Protocol):
    """Has a lot to say when it hears something."""

    transport: Any

    def __init__(self) -> None:
        self.paused = False
        self.reasons: list[Failure] = []

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(b"x" * SIZE)

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def stopProducing(self) -> None:
        pass

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008 (the base's signature)
        self.reasons.append(reason)


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
@pytest.mark.parametrize("end", ["close_notify", "garbage"])
def test_it_is_closed_when_the_buffer_is_empty(tmp_path: Path, version: int, end: str) -> None:
    selector = Selector()
    busy = Busy()
    tls = ServerTls(*authority().issue("localhost").write(tmp_path))
    protocol = TLSFactory(tls, False, Factory.forProtocol(lambda: busy), selector).buildProtocol(None)
    socket = Socket(selector, protocol)
    protocol.makeConnection(socket)
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_max_proto_version(version)
    client = SSL.Connection(context, None)
    client.set_connect_state()

    def send() -> None:
        protocol.dataReceived(client.bio_read(2**16))
        selector.advance(0)

    while True:
        try:
            client.do_handshake()
            break
        except SSL.WantReadError:
            send()
            client.bio_write(socket.run())
    client.send(b"hello")
    send()
    assert busy.paused
    if end == "close_notify":
        client.shutdown()
        send()
    else:
        protocol.dataReceived(b"\x17\x03\x03\x00\x20" + b"z" * 32)
    assert not busy.reasons
    assert len(socket.run()) > SIZE
    [reason] = busy.reasons
    if end == "close_notify":
        assert reason.check(ConnectionDone)
    assert not selector.readers and not selector.writers
