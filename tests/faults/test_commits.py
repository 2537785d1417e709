"""Connections to PostgreSQL that break at the worst moment."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import psycopg2
import pytest
from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from taskd.store.postgres_connection import PostgresConnection
from tests.faults.scenarios import play
from tests.faults.stage import Services


def test_cuts_around_a_commit(own: Services) -> None:
    """Right before a statement is forwarded, while PostgreSQL works on it, and before its answer comes back."""
    assert play("commits_cut", own)["cuts"] == 12


class Handshake(TestCase):
    """A server that goes away in the middle of the handshake."""

    async def test_nothing_is_left_in_the_reactor(self) -> None:
        """libpq closes its socket in the middle of a step: the reactor must not watch that number any longer."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=_decline_and_go, args=(listener,), daemon=True).start()
            dsn = {"host": "127.0.0.1", "port": listener.getsockname()[1], "user": "u", "dbname": "d"}
            before = _watched()
            for _ in range(5):
                connection = PostgresConnection(dsn, reactor, {})
                with pytest.raises(psycopg2.OperationalError, match="closed the connection"):
                    await connection.open(lambda e: None)
                connection.close()
            self.assertEqual(_watched(), before)


def _watched() -> set[object]:
    """Those that the reactor would call, itself excepted."""
    everything: set[object] = {*reactor.getReaders(), *reactor.getWriters()}
    return {each for each in everything if not type(each).__module__.startswith("twisted.internet.")}


def _decline_and_go(listener: socket.socket) -> None:
    for client in _accepted(listener):
        with client:
            # it asks for TLS first, as a packet of eight bytes
            if client.recv(8)[:4] == b"\0\0\0\x08":
                client.sendall(b"N")


def _accepted(listener: socket.socket) -> Iterator[socket.socket]:
    while True:
        try:
            yield listener.accept()[0]
        except OSError:
            return
