"""Answers health checks of a worker on a local UNIX socket: one line of JSON to everybody who connects."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol

from taskd.health import Health, HealthCheck
from taskd.protocol.messages import encode


class HealthSocket:
    """``path`` is the socket, which only this process's user may open. One that a killed worker left is replaced."""

    def __init__(self, reactor: Any, check: HealthCheck, path: Path) -> None:
        self._reactor = reactor
        self._path = path
        self._factory = HealthFactory(check)
        self._port: IListeningPort | None = None

    def start(self) -> None:
        """Answer from now on. Raises CannotListenError, or OSError for a path that cannot be used."""
        # Twisted's wantPID would keep a lock with the process id, which is the same after each start of a container
        if self._path.is_socket() and not _answers(self._path):
            self._path.unlink()
        self._port = self._reactor.listenUNIX(os.fspath(self._path), self._factory, mode=0o600)

    async def stop(self) -> None:
        """Answer no more, and remove the socket."""
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
            self._path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    """Whether a process listens on this socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        try:
            connection.connect(os.fspath(path))
        except ConnectionRefusedError:
            return False
        return True


class HealthFactory(Factory):
    """Makes the connections."""

    noisy = False

    def __init__(self, check: HealthCheck) -> None:
        self.check = check

    def buildProtocol(self, addr: object) -> HealthConnection:
        return HealthConnection(self.check)


class HealthConnection(Protocol):
    """Writes one line and closes."""

    def __init__(self, check: HealthCheck) -> None:
        self._check = check

    def connectionMade(self) -> None:
        Deferred.fromCoroutine(self._check.check()).addCallback(self._answer)

    def _answer(self, health: Health) -> None:
        assert self.transport is not None
        self.transport.write(encode(health) + b"\n")
        self.transport.loseConnection()
