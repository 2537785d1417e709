"""One SQLite database: the connection, where its statements run, transactions, migrations."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from datetime import datetime
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from twisted.enterprise import adbapi
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime

from taskd.model.errors import BadRequest, DataInUse, SettingsError, Unavailable
from taskd.store import installation, migrations
from taskd.store.opening import MAX_DELAY, Startable
from taskd.store.refusals import closed
from taskd.store.sqlite.rows import from_micros

D = TypeVar("D", bound="SqliteDatabase")
P = ParamSpec("P")
R = TypeVar("R")

MIN_VERSION = (3, 35, 0)
"""The first SQLite that knows RETURNING."""

PRAGMAS = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA foreign_keys = ON;
PRAGMA busy_timeout = 5000;
"""


class SqliteDatabase(Startable):
    """The database behind ``runner``; stop() closes it. All times come from ``wall``, seconds since 1970, or else from
    ``clock``. ``installation`` is the id that the settings want, None if any will do; ``migrate`` is that of
    Startable. Raises SettingsError when this Python's SQLite is too old."""

    ready = False

    def __init__(
        self,
        runner: InlineRunner | _LockedPool,
        clock: IReactorTime,
        wall: Callable[[], float] | None = None,
        installation: str | None = None,
        migrate: bool = True,
    ) -> None:
        super().__init__("SQLite", clock, migrate)
        if sqlite3.sqlite_version_info < MIN_VERSION:
            wanted = ".".join(map(str, MIN_VERSION))
            raise SettingsError(f"SQLite {wanted} or newer is needed, this Python has {sqlite3.sqlite_version}")
        self._runner = runner
        self._wall = wall or clock.seconds
        self._wanted = installation

    def now(self) -> datetime:
        return from_micros(self._micros())

    def _micros(self) -> int:
        return round(self._wall() * 1_000_000)

    async def stop(self) -> None:
        self.ready = False
        if not self._stopped:
            await super().stop()
            self._runner.close()

    async def _open(self) -> str | None:
        try:
            self.installation = await self._runner.runInteraction(self._migrate)
        except sqlite3.OperationalError as e:
            # another process releases its lock sooner or later; any other error stays
            if "locked" in str(e):
                return str(e)
            raise _unavailable(e) from e
        except sqlite3.DatabaseError as e:
            raise SettingsError(f"the database file cannot be used: {e}") from None
        self.ready = not self._stopped
        return None

    def _migrate(self, db: sqlite3.Cursor) -> str:
        """Apply what the database lacks. Returns the id of the installation."""
        db.execute("BEGIN IMMEDIATE")
        db.execute(migrations.CREATE_TABLE)
        applied = db.execute(migrations.APPLIED).fetchall()
        pending = migrations.pending(migrations.load("sqlite"), applied)
        self._check_pending(len(pending))
        for migration in pending:
            for statement in _statements(migration.sql):
                db.execute(statement)
            db.execute("INSERT INTO schema_migrations VALUES (?, ?, datetime('now'))", migration[:2])
        if not db.execute(installation.FIND).fetchall():
            if self._wanted is None:
                db.execute(installation.MAKE_UP)
            else:
                db.execute("INSERT INTO installation VALUES (?)", (self._wanted,))
        [(found,)] = db.execute(installation.FIND)
        return installation.check(found, self._wanted)


def transaction(
    method: Callable[Concatenate[D, sqlite3.Cursor, int, P], R],
) -> Callable[Concatenate[D, P], Coroutine[Any, Any, R]]:
    """Make a coroutine method from one that takes a cursor and the time in microseconds before its other arguments, and
    that runs in the database's thread as one transaction.

    The coroutine raises Unavailable (nothing was changed), BadRequest, and what ``method`` raises.
    """

    @wraps(method)
    async def run(self: D, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._stopped:
            raise closed()
        if not self.ready:
            raise Unavailable("the database cannot be reached yet; try again", retry_after=MAX_DELAY)
        now = self._micros()
        try:
            return await self._runner.runInteraction(partial(method, self, **kwargs), now, *args)
        except sqlite3.OperationalError as e:
            raise _unavailable(e) from e
        except UnicodeEncodeError as e:
            raise BadRequest("text must be valid Unicode") from e
        except (sqlite3.IntegrityError, OverflowError) as e:
            raise BadRequest("a value of this request cannot be stored", detail=str(e)) from e

    return run


class InlineRunner:
    """A database whose interactions run at once, in the calling thread: for tests, which stay deterministic."""

    def __init__(self, path: str = ":memory:") -> None:
        self._connection = sqlite3.connect(path, check_same_thread=False)
        self._connection.execute("PRAGMA foreign_keys = ON")

    def runInteraction(self, interaction: Callable[..., R], *args: Any) -> Deferred[R]:
        """Call ``interaction(cursor, *args)`` and commit; roll back when it raises."""
        cursor = self._connection.cursor()
        try:
            result = interaction(cursor, *args)
            self._connection.commit()
        except Exception:
            self._connection.rollback()
            return fail()
        finally:
            # Do not leave this to the garbage collector: a statement with unread rows stays in use, and Python 3.10
            # may then fail to bind its parameters.
            cursor.close()
        return succeed(result)

    def close(self) -> None:
        """Close the connection; a database in memory is lost."""
        self._connection.close()


class _LockedPool(adbapi.ConnectionPool):
    """One connection in one thread, and the lock that keeps other servers away from the folder."""

    lock: int

    def close(self) -> None:
        """Close the connection, which empties the write-ahead log, and unlock the folder."""
        super().close()
        os.close(self.lock)


def open_sqlite(path: str | os.PathLike[str], reactor: Any) -> _LockedPool:
    """A runner on the database file ``path``. Creates missing folders and the file, readable for their owner only.

    Raises SettingsError when the folder cannot be used or another server uses it.
    """
    file = Path(path).absolute()
    lock = None
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(file.parent / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as e:
        if lock is not None:
            os.close(lock)
        if isinstance(e, BlockingIOError):
            raise DataInUse(f"another taskserver is using {file.parent}: stop it or choose another --data") from None
        raise SettingsError(f"cannot use the data folder {file.parent}: {e.strerror}") from None
    pool = _LockedPool(
        "sqlite3",
        os.fspath(file),
        check_same_thread=False,
        cp_min=1,
        cp_max=1,
        cp_openfun=_configure,
        cp_reactor=reactor,
    )
    pool.lock = lock
    return pool


def _configure(connection: sqlite3.Connection) -> None:
    try:
        connection.executescript(PRAGMAS)
    except sqlite3.Error:
        # adbapi drops a connection that it could not open, without closing it
        connection.close()
        raise


def _unavailable(e: sqlite3.OperationalError) -> Unavailable:
    # another process holds the lock, the disk is full, an I/O error: the data is intact, this change was not made
    return Unavailable("the database cannot be used now; try again", detail=str(e))


def _statements(script: str) -> Iterator[str]:
    # executescript() would commit the open transaction first
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
