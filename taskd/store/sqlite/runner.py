"""Where SQLite's statements run: in a thread of their own, or, for tests in memory, at once."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from twisted.enterprise import adbapi
from twisted.internet.defer import Deferred, fail, succeed

from taskd.model.errors import SettingsError

R = TypeVar("R")
OLDEST = (3, 35, 0)
"""The first SQLite that knows RETURNING."""

PRAGMAS = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA foreign_keys = ON;
PRAGMA busy_timeout = 5000;
"""


class IRunner(Protocol):
    """Runs a function in a transaction, as ``twisted.enterprise.adbapi.ConnectionPool`` does."""

    def runInteraction(self, interaction: Callable[..., R], *args: Any) -> Deferred[R]:
        """Call ``interaction(cursor, *args)`` and commit; roll back when it raises."""

    def close(self) -> None:
        """Close the connection."""


class InlineRunner:
    """A database in memory whose interactions run at once: everything above it stays deterministic."""

    def __init__(self, path: str = ":memory:") -> None:
        check_version()
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
            # not left to the collector: a statement with rows left is in use, and Python 3.10 may fail to bind it
            cursor.close()
        return succeed(result)

    def close(self) -> None:
        """Forget the database."""
        self._connection.close()


class _LockedPool(adbapi.ConnectionPool):
    """One connection in one thread, and the lock that keeps other servers away from the folder."""

    def __init__(self, path: Path, lock: int, reactor: Any) -> None:
        super().__init__(
            "sqlite3",
            os.fspath(path),
            check_same_thread=False,
            cp_min=1,
            cp_max=1,
            cp_openfun=lambda connection: connection.executescript(PRAGMAS),
            cp_reactor=reactor,
        )
        self._lock: int | None = lock

    def close(self) -> None:
        """Close the connection, which empties the write-ahead log, and let go of the folder."""
        super().close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def open_sqlite(path: str | os.PathLike[str], reactor: Any) -> _LockedPool:
    """A runner on the database file ``path``; folder and file are made when missing, for us alone to read.

    Raises SettingsError when the folder cannot be used or another server has it.
    """
    check_version()
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
            message = f"another taskserver is using {file.parent}: stop it or choose another --data"
            raise SettingsError(message) from None
        raise SettingsError(f"cannot use the data folder {file.parent}: {e.strerror}") from None
    return _LockedPool(file, lock, reactor)


def check_version() -> None:
    """Raises SettingsError when this Python's SQLite is too old."""
    if sqlite3.sqlite_version_info < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise SettingsError(f"SQLite {wanted} or newer is needed, this Python has {sqlite3.sqlite_version}")
