"""Connections that end during a step of libpq. The reactor must forget their file descriptors, which the next sockets
get."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.trial.unittest import TestCase

from taskd.store.postgres.beats import BeatConnection
from taskd.store.postgres.beats import _wait as wait
from taskd.store.postgres.connection import PostgresConnection
from tests import services

BIG = "x" * 20_000_000
"""More than fits into the buffers of a socket."""


def watched() -> set[object]:
    """The readers and writers of the reactor, except its own. Raises when it watches a file descriptor without one."""
    everything: set[object] = {*reactor.getReaders(), *reactor.getWriters()}
    return {each for each in everything if not type(each).__module__.startswith("twisted.internet.")}


class Wire:
    """Forwards one connection at a time to PostgreSQL in threads, so that it can be cut without the reactor."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._target = ("127.0.0.1", port)
        self.port: int = self._listener.getsockname()[1]
        self._client: socket.socket | None = None
        self._flowing = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def pause(self) -> None:
        """Stop reading from the current client."""
        self._flowing.clear()

    def reset(self) -> None:
        """Reset the current connection at once."""
        assert self._client is not None
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # a reading thread keeps the socket open; shutdown() wakes it, and sends nothing on a connection that is then
        # reset
        self._client.shutdown(socket.SHUT_RD)
        self._client.close()

    def end(self) -> None:
        """Close our side of the connection to the client, and stop reading from it."""
        assert self._client is not None
        self.pause()
        self._client.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Accept no more connections."""
        self._listener.close()

    def _serve(self) -> None:
        for client in _accepted(self._listener):
            self._client = client
            self._flowing.set()
            server = socket.create_connection(self._target)
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError), source, sink:
            while data := source.recv(65536):
                sink.sendall(data)
                if source is self._client:
                    self._flowing.wait()


class Handshake(TestCase):
    """A server that closes the connection during the handshake."""

    async def test_nothing_is_left_in_the_reactor(self) -> None:
        """libpq closes its socket during a step."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=_decline_and_go, args=(listener,), daemon=True).start()
            dsn = {"host": "127.0.0.1", "port": listener.getsockname()[1], "user": "u", "dbname": "d"}
            before = watched()
            for _ in range(5):
                connection = PostgresConnection(dsn, reactor, {})
                with pytest.raises(psycopg2.OperationalError, match="closed the connection"):
                    await connection.open(lambda e: None)
                connection.close()
            self.assertEqual(watched(), before)


class Statements(TestCase):
    """A connection that ends while a statement runs."""

    def setUp(self) -> None:
        """A PostgreSQL server, and a wire to it that can be cut."""
        services.require("postgres")
        self.wire = Wire(services.postgres().port)
        self.addCleanup(self.wire.close)
        self.before = watched()

    async def opened(self, on_lost: Callable[[BaseException], None] = lambda e: None) -> PostgresConnection:
        """A connection over the wire."""
        dsn = services.postgres().dsn() | {"port": self.wire.port}
        connection = PostgresConnection(dsn, reactor, {})
        await connection.open(on_lost)
        return connection

    async def after(self, step: Callable[[PostgresConnection], Any]) -> BaseException:
        """The error of a step. The connection is closed, the reactor forgets it, and the next connection works."""
        connection = await self.opened()
        try:
            await step(connection)
        except Exception as e:
            error = e
        else:
            self.fail("the step raised nothing")
        connection.close()
        self.assertEqual(watched(), self.before)
        another = await self.opened()
        self.assertEqual(await another.query("SELECT 1"), [(1,)])
        another.close()
        self.assertEqual(watched(), self.before)
        return error

    async def test_a_backend_gives_up_a_client_that_is_cut_off(self) -> None:
        """It does not wait for minutes with its locks."""
        connection = await self.opened()
        self.assertEqual(await connection.query("SHOW tcp_user_timeout"), [("8000",)])
        connection.close()
        watchdog = BeatConnection(services.postgres().dsn())
        with watchdog.connect().cursor() as cursor:
            cursor.execute("SHOW tcp_user_timeout")
            wait(watchdog.connect(), 5)
            self.assertEqual(cursor.fetchall(), [("8000",)])
        watchdog.close()

    async def test_rows_of_the_last_statement_of_a_message(self) -> None:
        """And nothing of the others."""
        connection = await self.opened()
        self.assertEqual(await connection.query("SELECT 1; BEGIN; SELECT 2; COMMIT; SELECT %s", [3]), [(3,)])
        connection.close()

    async def test_closed_while_it_waits_for_an_answer(self) -> None:
        """This happens to a statement that takes too long."""

        def step(connection: PostgresConnection) -> Any:
            reactor.callLater(0.05, connection.close)
            return connection.query("SELECT pg_sleep(30)")

        self.assertIsInstance(await self.after(step), ConnectionDone)

    async def test_closed_while_it_sends(self) -> None:
        """The reactor watches the socket for writing then."""

        def step(connection: PostgresConnection) -> Any:
            self.wire.pause()
            reactor.callLater(0.05, connection.close)
            return connection.query("SELECT %s", [BIG])

        self.assertIsInstance(await self.after(step), ConnectionDone)

    async def test_cut_while_it_sends(self) -> None:
        """The reactor gets an error, not data."""

        def step(connection: PostgresConnection) -> Any:
            self.wire.pause()
            reactor.callLater(0.05, self.wire.reset)
            return connection.query("SELECT %s", [BIG])

        self.assertIsInstance(await self.after(step), psycopg2.OperationalError)

    async def test_cut_before_it_sends(self) -> None:
        """The statement is the first to fail."""

        async def step(connection: PostgresConnection) -> None:
            self.wire.reset()
            await connection.query("SELECT %s", [BIG])

        self.assertIsInstance(await self.after(step), psycopg2.Error)

    async def test_ended_before_it_sends(self) -> None:
        """libpq closes its socket while it sends."""

        async def step(connection: PostgresConnection) -> None:
            self.wire.end()
            await connection.query("SELECT %s", [BIG])

        self.assertIsInstance(await self.after(step), psycopg2.Error)

    async def test_cut_while_idle(self) -> None:
        """``on_lost`` is called once."""
        lost: Deferred[BaseException] = Deferred()
        connection = await self.opened(lost.callback)
        self.wire.reset()
        self.assertIsInstance(await lost, psycopg2.OperationalError)
        connection.close()
        self.assertEqual(watched(), self.before)


def _decline_and_go(listener: socket.socket) -> None:
    for client in _accepted(listener):
        with client:
            # libpq asks for TLS first, in a packet of eight bytes
            if client.recv(8)[:4] == b"\0\0\0\x08":
                client.sendall(b"N")


def _accepted(listener: socket.socket) -> Iterator[socket.socket]:
    while True:
        try:
            yield listener.accept()[0]
        except OSError:
            return
