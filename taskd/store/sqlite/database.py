"""What the SQLite store stands on: migrating, running interactions, telling the time."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from taskd.model.errors import BadRequest, SettingsError, Unavailable
from taskd.store import migrations
from taskd.store.retrying import MAX_DELAY, Pauses, closed
from taskd.store.sqlite.runner import IRunner

R = TypeVar("R")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(0, 0, 1)


def from_micros(micros: int) -> datetime:
    """The moment that a column says."""
    # by position: three times as fast as by name, and there are four in a row
    return _EPOCH + timedelta(0, 0, micros)


def to_micros(moment: datetime) -> int:
    """What a column says of a moment, which is aware."""
    return (moment - _EPOCH) // _MICROSECOND


class SqliteBase:
    """A database behind ``runner``, which stop() closes. ``clock`` tells the time."""

    log = Logger()

    def __init__(self, runner: IRunner, clock: IReactorTime) -> None:
        self._runner = runner
        self._clock = clock
        self._pauses = Pauses(clock)
        self.ready = False

    def _now(self) -> int:
        return round(self._clock.seconds() * 1_000_000)

    async def _run(self, interaction: Callable[..., R], *args: Any) -> R:
        if not self.ready:
            raise self._not_ready()
        return await self._interact(interaction, *args)

    def _not_ready(self) -> Unavailable:
        if self._pauses.stopped:
            return closed()
        return Unavailable("the database cannot be reached yet; try again", retry_after=MAX_DELAY)

    async def _interact(self, interaction: Callable[..., R], *args: Any) -> R:
        try:
            return await self._runner.runInteraction(interaction, *args)
        except sqlite3.OperationalError as e:
            # locked by somebody else's shell, disk full, I/O error: the data is whole, this was not done
            raise Unavailable(f"the database cannot be used now: {e}") from e
        except (sqlite3.IntegrityError, OverflowError, UnicodeEncodeError) as e:
            raise BadRequest(f"cannot be stored: {e}") from e

    # -- start and stop ----------------------------------------------------------------------------

    async def start(self) -> None:
        told = False
        while not self.ready:
            if self._pauses.stopped:
                raise closed()
            try:
                await self._interact(_migrate)
                self.ready = not self._pauses.stopped
            except Unavailable as e:
                # somebody else's shell lets go of it some day; nothing else passes by itself
                if "locked" not in e.message:
                    raise
                if not told:
                    told = True
                    self.log.warn("SQLite: trying on: {reason}", reason=e.message)
                await self._pauses.pause()
            except sqlite3.DatabaseError as e:
                raise SettingsError(f"the database file cannot be used: {e}") from None

    async def stop(self) -> None:
        self.ready = False
        if not self._pauses.stopped:
            self._pauses.stop()
            self._runner.close()


def _migrate(db: sqlite3.Cursor) -> None:
    known = migrations.load("sqlite")
    db.execute("BEGIN IMMEDIATE")
    db.execute(migrations.CREATE_TABLE)
    for migration in migrations.pending(known, db.execute(migrations.APPLIED).fetchone()[0]):
        for statement in _statements(migration.sql):
            db.execute(statement)
        db.execute("INSERT INTO schema_migrations VALUES (?, ?, datetime('now'))", migration[:2])


def _statements(script: str) -> Iterator[str]:
    # executescript() would commit first
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
