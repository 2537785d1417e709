"""PostgreSQL over TLS: the store, the watchdog's connection, and what is refused."""

from __future__ import annotations

from typing import Any

import psycopg2
from twisted.internet import reactor

from taskd.store.postgres.beats import BeatConnection
from taskd.store.postgres.connection import PostgresConnection
from tests import services
from tests.conformance import tls_services
from tests.conformance.postgres import Hooks
from tests.conformance.store.creation import CreationTests


class TlsHooks(Hooks):
    """A database on the server with TLS, whose certificate and host name are checked."""

    async def make(self) -> Any:
        if self.database is None:
            services.require("postgres")
            self.server = tls_services.postgres()
            self.new_database()
        return await super().make()

    def tls(self, **options: str) -> dict[str, str]:
        """Settings of libpq."""
        checked = {"host": "localhost", "sslmode": "verify-full", "sslrootcert": f"{tls_services.folder()}/ca.pem"}
        return {**checked, **options}

    def build(self, **options: Any) -> Any:
        return super().build(**{**options, "dsn": {**self.tls(), **options.get("dsn", {})}})


class CreationOverTls(TlsHooks, CreationTests):
    """A part of the suite."""


class Tls(TlsHooks):
    """What is encrypted, and what is refused."""

    def encrypted(self, application: str) -> set[bool]:
        text = """
            SELECT s.ssl FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid)
            WHERE a.datname = %s AND a.application_name = %s
        """
        return {ssl for (ssl,) in self.sql(text, self.database, application)}

    async def test_every_connection_is_encrypted(self) -> None:
        self.assertEqual(self.encrypted("taskd"), {True})

    async def test_the_watchdog_too(self) -> None:
        watchdog = BeatConnection({**self.server.dsn(self.database), **self.tls()})
        self.addCleanup(watchdog.close)
        self.assertEqual(watchdog.vouch("nobody", None), 0)
        self.assertEqual(self.encrypted("taskd watchdog"), {True})

    async def test_answers_of_all_sizes_arrive(self) -> None:
        """Bytes that TLS has decrypted, but libpq has not read yet, do not wake the reactor."""
        connection = await self.store._pool.acquire()
        try:
            for size in (*range(7_900, 33_000, 317), 100_000, 1_000_003, 5_000_011):
                [(text,)] = await connection.query("SELECT repeat('x', %s)", (size,))
                self.assertEqual(len(text), size)
                rows = await connection.query("SELECT repeat('y', %s) FROM generate_series(1, 7)", (size // 7,))
                self.assertEqual([len(row[0]) for row in rows], [size // 7] * 7)
        finally:
            self.store._pool.release(connection)

    async def refused(self, server: services.Postgres, **options: str) -> str:
        """Why a connection cannot be opened."""
        connection = PostgresConnection({**server.dsn("postgres"), **self.tls(**options)}, reactor, {})
        self.addCleanup(connection.close)
        try:
            await connection.open(lambda e: None)
        except psycopg2.OperationalError as e:
            return " ".join(str(e).split())
        raise AssertionError("it was opened")

    async def test_another_authority(self) -> None:
        other = f"{tls_services.folder()}/other.pem"
        self.assertIn("certificate verify failed", await self.refused(self.server, sslrootcert=other))

    async def test_another_host(self) -> None:
        self.assertIn("does not match host name", await self.refused(self.server, host="127.0.0.1"))

    async def test_a_server_without_tls(self) -> None:
        self.assertIn("does not support SSL", await self.refused(services.postgres(), host="localhost"))


del Hooks, TlsHooks, CreationTests
