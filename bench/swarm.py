"""Many connections of one process on plain sockets: clients that cost little beside the server.

Each connection comes from an address of its own choice in 127.0.0.0/8, which Linux routes to this machine as a whole.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from tests.services import HOST

_READ_BYTES = 65536


def address(group: int, number: int) -> str:
    """An address of this machine. Those of different groups and numbers (below 62,500) differ."""
    return f"127.{group}.{number // 250}.{number % 250 + 1}"


class Swarm:
    """A loop for connections to one port of a server."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.stopped = False
        """Whether this process was told to end, by SIGTERM."""
        self._epoll = select.epoll()
        self._peers: dict[int, Peer] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        signal.signal(signal.SIGTERM, self._stop)

    def run(self, done: Callable[[], bool] = lambda: False) -> None:
        """Until ``done()`` is true, or until SIGTERM."""
        while not self.stopped and not done():
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
            wait = min(0.1, self._timers[0][0] - time.monotonic()) if self._timers else 0.1
            for fd, _ in self._epoll.poll(max(0.0, wait)):
                if (peer := self._peers.get(fd)) is not None:
                    peer.ready()

    def run_for(self, seconds: float) -> None:
        """For so long, or until SIGTERM."""
        end = time.monotonic() + seconds
        self.run(lambda: time.monotonic() >= end)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call this after so many seconds."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), call))

    def add(self, peer: Peer, fd: int) -> None:
        """A connection is being opened."""
        self._peers[fd] = peer
        self._epoll.register(fd, select.EPOLLOUT)

    def read(self, fd: int, yes: bool) -> None:
        """Whether what arrives at this connection is to be read. Its end is noticed in any case."""
        self._epoll.modify(fd, select.EPOLLIN if yes else 0)

    def remove(self, fd: int) -> None:
        """A connection is about to be closed."""
        self._epoll.unregister(fd)
        del self._peers[fd]

    def _stop(self, *_: Any) -> None:
        self.stopped = True


class Peer:
    """A client with one connection at a time. Subclasses say what it does when something happens."""

    buffer = 0
    """Bytes that the system keeps until they are read; 0 for its own choice."""

    def __init__(self, swarm: Swarm, source: str) -> None:
        self.swarm = swarm
        self.source = source
        self._socket: socket.socket | None = None
        self._opened = False
        self._rest = b""

    def opened(self) -> None:
        """The connection is open."""

    def received(self, message: dict[str, Any]) -> None:
        """A line has arrived."""

    def lost(self) -> None:
        """The server has closed the connection, or could not be reached."""

    @property
    def connected(self) -> bool:
        """Whether there is a connection, or one is being opened."""
        return self._socket is not None

    def open(self) -> None:
        """Connect."""
        self._opened, self._rest = False, b""
        self._socket = connection = socket.socket()
        connection.setblocking(False)
        if self.buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.buffer)
        connection.bind((self.source, 0))
        if (status := connection.connect_ex((HOST, self.swarm.port))) not in (0, errno.EINPROGRESS):
            raise SystemExit(f"no connection from {self.source}: {os.strerror(status)}")
        self.swarm.add(self, connection.fileno())

    def send(self, **request: Any) -> None:
        """Send one request. It must fit into the buffer of the connection."""
        assert self._socket is not None
        line = json.dumps(request, ensure_ascii=False).encode() + b"\n"
        try:
            sent = self._socket.send(line)
        except ConnectionError:
            return  # the loop notices the end
        if sent != len(line):
            raise SystemExit(f"only {sent} of {len(line)} bytes could be sent")

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is not None:
            self.swarm.remove(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def stop_reading(self) -> None:
        """Leave in the system's buffers what arrives from now on."""
        assert self._socket is not None
        self.swarm.read(self._socket.fileno(), False)

    def ready(self) -> None:
        """The system says that something has happened. For Swarm."""
        connection = self._socket
        assert connection is not None
        if not self._opened:
            if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._end()
                return
            self._opened = True
            self.swarm.read(connection.fileno(), True)
            self.opened()
            return
        try:
            data = connection.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.received(json.loads(line))
            if self._socket is not connection:
                return  # that was its answer to this line
        if not data:
            self._end()

    def _end(self) -> None:
        self.close()
        self.lost()
