"""Whether SQLite takes changes now."""

from __future__ import annotations

from sqlite3 import Cursor

from taskd.store import migrations
from taskd.store.sqlite.database import SqliteDatabase, transaction


class SqliteHealth(SqliteDatabase):
    """The part of IStore that tells whether the database is well."""

    @transaction
    def check_writable(self, db: Cursor, now: int) -> int:
        db.execute("BEGIN IMMEDIATE")  # takes the lock of a writer; without a change nothing is written
        [(version,)] = db.execute(migrations.LATEST)
        return int(version)
