"""A PostgreSQL database: connecting, migrating, and running statements until their outcome is known.

Every batch is one statement in a transaction of its own. When the connection is lost while it runs, nobody knows
whether it was committed. It then runs again on another connection, for a limited time; every statement is harmless when
it runs twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar

import psycopg2
from psycopg2.errors import InsufficientPrivilege
from psycopg2.extensions import TransactionRollbackError
from twisted.internet.task import deferLater

from taskd.model.errors import BadRequest, SettingsError, Unavailable
from taskd.store import installation, migrations
from taskd.store.opening import MAX_DELAY, MIN_DELAY, Startable
from taskd.store.postgres.connection import STATEMENT_SECONDS, PostgresConnection, is_dead
from taskd.store.postgres.pool import OutcomeUnknown, Pool, reason
from taskd.store.refusals import closed, nul_refused

CLOCK_WAS_SET = timedelta(seconds=5)
"""No answer is so late that its time would lag so far behind: somebody has set the database's clock back."""

MIGRATION_SECONDS = 600
"""How long a server waits for its own migrations or for those of another server."""

_MIGRATION_LOCK = 7_461_735_642

_HAS_MIGRATIONS = "SELECT to_regclass('schema_migrations') IS NOT NULL"

PREPARED = {"clock": "SELECT clock_timestamp()"}

# Key: whether the statement may have been committed
_GAVE_UP = {True: "the connection to the database was lost; try again", False: "the database is too busy; try again"}


class PostgresDatabase(Startable):
    """Connections to PostgreSQL, and calls of the statements that are ``prepared`` on them.

    ``dsn`` has user, password, dbname, host and port as libpq names them; ``size`` is the number of connections. In
    seconds: ``wait`` is how long a call waits for a connection, ``statement_timeout`` how long one statement may take,
    and ``retry`` how long a batch with an unknown outcome is repeated. ``installation`` is the id that the settings
    want, None if any will do; ``migrate`` is that of Startable.
    """

    prepared: ClassVar[Mapping[str, str]]

    def __init__(
        self,
        dsn: Mapping[str, str | int],
        reactor: Any,
        size: int = 6,
        *,
        wait: float = 5.0,
        statement_timeout: int = STATEMENT_SECONDS,
        retry: float = 10.0,
        installation: str | None = None,
        migrate: bool = True,
    ) -> None:
        super().__init__(f"PostgreSQL at {dsn.get('host', 'localhost')}:{dsn.get('port', 5432)}", reactor, migrate)
        self._dsn = dsn
        self._wanted = installation
        self._repeat_seconds = retry
        self._migrating: PostgresConnection | None = None
        # the database's time less the seconds of the clock
        self._zero: datetime | None = None
        self._pool = Pool(
            reactor,
            lambda: PostgresConnection(dsn, reactor, self.prepared, statement_timeout),
            name=self._name,
            size=size,
            wait=wait,
        )

    @property
    def ready(self) -> bool:
        """True while a connection is open."""
        return self._pool.live > 0

    def now(self) -> datetime:
        if self._zero is None:
            return datetime.now(timezone.utc)
        return self._zero + timedelta(seconds=self._clock.seconds())

    def _told(self, now: datetime) -> None:
        """The database has just said what time it is. A slow answer is late, so the latest of all counts, until the
        database's clock is set."""
        zero = now - timedelta(seconds=self._clock.seconds())
        if self._zero is None or zero > self._zero or self._zero - zero > CLOCK_WAS_SET:
            self._zero = zero

    async def stop(self) -> None:
        await super().stop()
        self._pool.stop()
        if self._migrating is not None:
            self._migrating.close()

    async def _open(self) -> str | None:
        try:
            if not self._pool.running:
                await self._migrate()
                self._pool.start()
            await self._call("find_users", "{}", "{}", 0)
            [(now,)] = await self._call("clock")
            self._told(now)
        except InsufficientPrivilege as e:
            hint = ": run taskadmin migrate with a role that owns the database" if self.migrated else ""
            raise SettingsError(f"{self._name}: user {self._dsn.get('user')}: {reason(e)}{hint}") from None
        except Exception as e:
            if is_dead(e) or isinstance(e, Unavailable) or isinstance(_refusal(e), Unavailable):
                return reason(e)
            raise
        return None

    async def _call(
        self, work: str | Callable[..., Awaitable[Any]], *args: Any, repeat: bool = True, brief: bool = False
    ) -> Any:
        """The rows of the prepared statement ``work``, or the result of ``work(connection, again, *args)``; repeated
        until the outcome is known. ``again`` is True when an earlier run may have been committed.

        With ``repeat`` False a run that may have been committed is not repeated: that is for statements whose rows a
        second run could not return. Raises Unavailable then, so that the caller knows that something may have changed;
        its next call finds what is left. ``brief`` is for a prepared statement, see :meth:`PostgresConnection.call`.
        Raises BadRequest, and what ``work`` raises.
        """
        again = False
        deadline = float("inf")
        while True:
            try:
                connection = await self._pool.acquire()
                try:
                    if isinstance(work, str):
                        result = await connection.call(work, *args, brief=brief)
                    else:
                        result = await work(connection, again, *args)
                except BaseException as e:
                    self._pool.release_failed(connection, e)
                    raise
                self._pool.release(connection)
                return result
            except (OutcomeUnknown, Unavailable, TransactionRollbackError) as e:
                if isinstance(e, OutcomeUnknown):
                    again = True
                elif isinstance(e, Unavailable) and not again:
                    raise
                now = self._clock.seconds()
                deadline = min(deadline, now + self._repeat_seconds)
                if self._stopped:
                    raise closed() from e
                if now >= deadline or (again and not repeat):
                    raise Unavailable(_GAVE_UP[again], retry_after=MAX_DELAY, detail=reason(e)) from e
            except (psycopg2.Error, ValueError) as e:
                if refusal := _refusal(e):
                    raise refusal from e
                raise
            await deferLater(self._clock, MIN_DELAY)

    async def _migrate(self) -> None:
        connection = self._migrating = PostgresConnection(self._dsn, self._clock, {}, MIGRATION_SECONDS)
        try:
            await connection.open(lambda e: None)
            await connection.query("BEGIN")
            await connection.query("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
            # Not CREATE TABLE IF NOT EXISTS: a role that may create no tables is refused even where the table exists
            [(exists,)] = await connection.query(_HAS_MIGRATIONS)
            applied = await connection.query(migrations.APPLIED) if exists else []
            wanted = migrations.load("postgres")
            pending = migrations.pending(wanted, applied)
            self._check_pending(len(pending))
            try:
                if not exists:
                    await connection.query(migrations.CREATE_TABLE)
                for migration in pending:
                    await connection.query(migration.sql)
                    await connection.query("INSERT INTO schema_migrations VALUES (%s, %s, now())", migration[:2])
            except InsufficientPrivilege as e:
                raise SettingsError(
                    f"{self._name}: the schema has version {len(applied)}, this taskd needs {len(wanted)}, and user"
                    f" {self._dsn.get('user')} may not change it ({reason(e)}): run bin/taskadmin migrate as the owner"
                    " of the tables, then start the daemons again"
                ) from None
            self.installation = installation.check(await self._identify(connection), self._wanted)
            await connection.query("COMMIT")
        finally:
            connection.close()

    async def _identify(self, connection: PostgresConnection) -> str:
        if not await connection.query(installation.FIND):
            if self._wanted is None:
                await connection.query(installation.MAKE_UP)
            else:
                await connection.query("INSERT INTO installation VALUES (%s)", (self._wanted,))
        [(found,)] = await connection.query(installation.FIND)
        return str(found)


def _refusal(e: Exception) -> BadRequest | Unavailable | None:
    """The caller's error for a value that PostgreSQL refuses, Unavailable for a shortage that passes, None for anything
    else, which is a defect of taskd."""
    if isinstance(e, UnicodeEncodeError):
        return BadRequest("text must be valid Unicode")
    if isinstance(e, ValueError) and "NUL" in str(e):
        return nul_refused()
    if not isinstance(e, psycopg2.Error):
        return None
    code = e.pgcode or ""
    if code.startswith(("22", "23", "54")):
        return BadRequest("a value of this request cannot be stored", detail=reason(e))
    if code.startswith(("53", "58")) or code in {"57014", "55P03"}:
        return Unavailable("the database cannot do this now; try again", retry_after=MAX_DELAY, detail=reason(e))
    return None
