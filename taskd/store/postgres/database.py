"""What the PostgreSQL store stands on: connecting, migrating, and running statements until their outcome is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import psycopg2
from twisted.internet.task import deferLater
from twisted.logger import Logger

from taskd.model.errors import BadRequest, SettingsError, Unavailable
from taskd.store import migrations
from taskd.store.postgres.connection import STATEMENT_SECONDS, PostgresConnection, is_dead
from taskd.store.postgres.pool import OutcomeUnknown, Pool, reason
from taskd.store.postgres.statements import PREPARED
from taskd.store.retrying import MAX_DELAY, MIN_DELAY, Pauses, closed

MIGRATION_SECONDS = 600
"""The longest that a server waits for its own migrations or for another server's."""

_MIGRATION_LOCK = 7_461_735_642

# By whether the statement may have been done
_GAVE_UP = {True: "the database connection was lost: {}", False: "the database is too busy now: {}"}

Rows = list[tuple[Any, ...]]


class PostgresBase:
    """Connections to PostgreSQL, and calls of the prepared statements.

    ``dsn`` has user, password, dbname, host and port as libpq knows them; ``size`` is the number of connections. In
    seconds: ``wait`` is how long a call waits for one of them, ``patience`` how long one statement may take, and
    ``retry`` how long a batch whose fate is unknown is tried again.
    """

    log = Logger()

    def __init__(
        self,
        dsn: Mapping[str, str | int],
        reactor: Any,
        size: int = 6,
        *,
        wait: float = 5.0,
        patience: int = STATEMENT_SECONDS,
        retry: float = 10.0,
    ) -> None:
        self._dsn = dsn
        self._reactor = reactor
        self._repeat_for = retry
        self._name = f"PostgreSQL at {dsn.get('host', 'localhost')}:{dsn.get('port', 5432)}"
        self._migrated = False
        self._pauses = Pauses(reactor)
        self._starting: PostgresConnection | None = None
        self._pool = Pool(
            reactor,
            lambda: PostgresConnection(dsn, reactor, PREPARED, patience),
            is_dead,
            name=self._name,
            size=size,
            wait=wait,
        )

    @property
    def ready(self) -> bool:
        """True while a connection is open."""
        return self._migrated and self._pool.live > 0

    # -- start and stop ----------------------------------------------------------------------------

    async def start(self) -> None:
        told = False
        while True:
            if self._pauses.stopped:
                raise closed()
            try:
                if not self._migrated:
                    await self._migrate()
                    self._pool.start()
                await self._call("find_user", "")
                return
            except psycopg2.errors.InsufficientPrivilege as e:
                raise SettingsError(f"{self._name}: user {self._dsn.get('user')}: {reason(e)}") from None
            except Exception as e:
                passes = is_dead(e) or (isinstance(e, psycopg2.Error) and isinstance(_translated(e), Unavailable))
                if not passes and not isinstance(e, Unavailable):
                    raise
                if not told and not self._migrated:
                    told = True
                    text = "{name}: cannot connect, trying on: {reason}"
                    self.log.warn(text, name=self._name, reason=reason(e))
            await self._pauses.pause()

    async def _migrate(self) -> None:
        connection = self._starting = PostgresConnection(self._dsn, self._reactor, {}, patience=MIGRATION_SECONDS)
        try:
            await connection.open(lambda e: None)
            await _migrate(connection)
            self._migrated = True
        finally:
            connection.close()
            self._starting = None

    async def stop(self) -> None:
        self._pauses.stop()
        self._pool.stop()
        if self._starting is not None:
            self._starting.close()

    # -- running statements ------------------------------------------------------------------------

    async def _run(self, work: Callable[[bool, PostgresConnection], Any], repeat: bool = True) -> Any:
        """Do ``work(again, connection)`` until its outcome is known; ``again``: it may have been done.

        Without ``repeat`` it is done once at most.
        """
        again = False
        deadline: float | None = None
        while True:
            try:
                return await self._pool.run(partial(work, again))
            except (OutcomeUnknown, Unavailable, psycopg2.extensions.TransactionRollbackError) as e:
                if isinstance(e, OutcomeUnknown):
                    again = True
                elif isinstance(e, Unavailable) and not again:
                    raise
                now = self._reactor.seconds()
                if deadline is None:
                    deadline = now + self._repeat_for
                if self._pauses.stopped:
                    raise closed() from e
                if now >= deadline or (again and not repeat):
                    raise Unavailable(_GAVE_UP[again].format(reason(e)), retry_after=MAX_DELAY) from e
            except psycopg2.Error as e:
                translated = _translated(e)
                if translated is None:
                    raise
                raise translated from e
            except UnicodeEncodeError as e:
                raise BadRequest("text must be valid Unicode") from e
            await deferLater(self._reactor, MIN_DELAY)

    async def _call(self, name: str, *args: Any, repeat: bool = True) -> Rows:
        rows: Rows = await self._run(lambda again, connection: connection.call(name, *args), repeat)
        return rows


async def _migrate(connection: PostgresConnection) -> None:
    known = migrations.load("postgres")
    await connection.query("BEGIN")
    await connection.query("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
    await connection.query(migrations.CREATE_TABLE)
    [(applied,)] = await connection.query(migrations.APPLIED)
    for migration in migrations.pending(known, applied):
        await connection.query(migration.sql)
        await connection.query("INSERT INTO schema_migrations VALUES (%s, %s, now())", migration[:2])
    await connection.query("COMMIT")


def _translated(e: psycopg2.Error) -> BadRequest | Unavailable | None:
    """A refused value is the caller's fault, a shortage passes, anything else is a defect of ours: None."""
    code = e.pgcode or ""
    if code.startswith(("22", "23", "54")):
        return BadRequest(f"cannot be stored: {reason(e)}")
    if code.startswith(("53", "58")) or code in {"57014", "55P03"}:
        return Unavailable(f"the database cannot do this now: {reason(e)}", retry_after=MAX_DELAY)
    return None
