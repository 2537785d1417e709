"""A proxy before PostgreSQL that cuts a connection at a chosen statement, before or after PostgreSQL executes it.

It reads just enough of the protocol (PostgreSQL's manual, "Frontend/Backend Protocol", "Message Formats") to find the
beginning of a message. The statements of taskd are simple queries, each in its own transaction: the message ``EXECUTE
name`` includes the COMMIT, and the last message of the answer, ReadyForQuery, confirms it.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

_SIZE = struct.Struct("!I")
_REFUSES_TLS = {80877103: "SSLRequest", 80877104: "GSSENCRequest"}
"""Requests that the server declines. The client then sends another first packet."""

_RESET = struct.pack("ii", 1, 0)
"""The value of SO_LINGER that makes close() discard unsent data and reset the connection."""


class Moment(enum.Enum):
    """When to cut the connection."""

    BEFORE = "before the statement is forwarded"
    DURING = "once it is forwarded, while PostgreSQL works on it"
    AFTER = "after PostgreSQL has answered, before the answer is forwarded"
    SILENT = "never: the statement is forwarded, but its answer is not"


class Proxy:
    """Listens on ``port``. As a context manager it closes at the end of the block."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        self.cuts = 0
        self._lock = threading.Lock()
        self._armed: tuple[bytes, Moment] | None = None
        self._hit = threading.Event()
        self._connections: set[_ProxiedConnection] = set()
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def arm(self, statement: str, moment: Moment) -> None:
        """Cut the next connection that executes this prepared statement, once."""
        with self._lock:
            self._hit.clear()
            self._armed = (b"EXECUTE %s " % statement.encode(), moment)

    def wait_hit(self, timeout: float) -> bool:
        """Wait until that has happened. Returns False, and disarms the proxy, if it did not happen in time."""
        hit = self._hit.wait(timeout)
        with self._lock:
            self._armed = None
        return hit

    def triggered(self, query: bytes) -> Moment | None:
        """The moment to cut, if this query is the chosen statement; else None."""
        with self._lock:
            # a turn takes a lock first, in the same message
            if self._armed is None or b"; " + self._armed[0] not in b"; " + query.lstrip():
                return None
            moment = self._armed[1]
            self._armed = None
            self.cuts += 1
            return moment

    def done(self) -> None:
        """The connection has been cut."""
        self._hit.set()

    def ended(self, connection: _ProxiedConnection) -> None:
        """Forget a connection that has ended."""
        self._connections.discard(connection)

    def close(self) -> None:
        """Cut all connections."""
        self._listener.close()
        for connection in tuple(self._connections):
            connection.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target, 5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            connection = _ProxiedConnection(self, client, server)
            self._connections.add(connection)
            connection.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _ProxiedConnection:
    """One connection through the proxy, with one thread for each direction."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._moment: Moment | None = None
        self._reported = False
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        """Forward until one side closes."""
        for forward in (self._to_server, self._to_client):
            threading.Thread(target=self._guard, args=(forward,), name="proxied connection", daemon=True).start()

    def cut(self) -> None:
        """Reset the connection to the client, and close the one to the server."""
        with contextlib.suppress(OSError):
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        for each in (self._client, self._server):
            # this wakes the thread that reads from the socket
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _done(self) -> None:
        # report once only: the proxy may be armed again by the second time
        if not self._reported:
            self._reported = True
            self._proxy.done()

    def _guard(self, forward: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):
            forward()
        # the end of the client must not disturb a statement that PostgreSQL still executes
        if self._moment in (None, Moment.SILENT) or forward == self._to_client:
            self.cut()
            self._proxy.ended(self)

    def _to_server(self) -> None:
        reader = _Reader(self._client)
        for packet in reader.start():
            self._server.sendall(packet)
        for kind, message in reader.messages():
            moment = self._proxy.triggered(message[5:]) if kind == b"Q" else None
            if moment is None:
                self._server.sendall(message)
                continue
            self._moment = moment
            if moment is not Moment.BEFORE:
                self._server.sendall(message)
            if moment is Moment.BEFORE:
                self.cut()
                self._done()
                return
            if moment is Moment.DURING:
                self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                self._client.close()
                self._done()
                return

    def _to_client(self) -> None:
        end = b""
        while data := self._server.recv(65536):
            end = (end + data)[-6:]
            if self._moment is None:
                self._client.sendall(data)
            elif self._moment is Moment.SILENT:
                self._done()
            # ReadyForQuery ends an answer and has six bytes
            elif end[:-1] == b"Z\0\0\0\5":
                self.cut()
                self._done()
                return


class _Reader:
    """Splits the bytes of a client into messages."""

    def __init__(self, source: socket.socket) -> None:
        self._source = source
        self._buffer = bytearray()

    def start(self) -> Iterator[bytes]:
        """The packets before the first message. They have no type."""
        while True:
            packet = self._take(self._size(0))
            yield packet
            if _SIZE.unpack_from(packet, 4)[0] not in _REFUSES_TLS:
                return

    def messages(self) -> Iterator[tuple[bytes, bytes]]:
        """Pairs of a message's type and the whole message."""
        while True:
            size = self._size(1)
            message = self._take(1 + size)
            yield message[:1], message

    def _size(self, at: int) -> int:
        self._fill(at + 4)
        return int(_SIZE.unpack_from(self._buffer, at)[0])

    def _take(self, size: int) -> bytes:
        self._fill(size)
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _fill(self, size: int) -> None:
        while len(self._buffer) < size:
            data = self._source.recv(65536)
            if not data:
                raise ConnectionError
            self._buffer += data
