"""The numbered schema files: none is missing, and each is applied once."""

from __future__ import annotations

import re
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from taskd.model.errors import SchemaTooNew, SettingsError, Unavailable
from taskd.store import migrations
from taskd.store.migrations import Migration
from taskd.store.opening import MAX_DELAY
from taskd.store.sqlite.database import InlineRunner
from taskd.store.sqlite.store import SqliteStore

THREE = [Migration(1, "one", "1"), Migration(2, "two", "2"), Migration(3, "three", "3")]


class RuleTests(TestCase):
    """Which files there are and which of them are applied."""

    def test_both_dialects_have_the_same_migrations(self) -> None:
        postgres, sqlite = migrations.load("postgres"), migrations.load("sqlite")
        names = [[m.name.split()[0] for m in each] for each in (postgres, sqlite)]
        self.assertEqual(names[0], names[1])
        self.assertEqual([m.version for m in sqlite], list(range(1, len(sqlite) + 1)))

    def test_everything_is_pending_on_an_empty_database(self) -> None:
        self.assertEqual(list(migrations.pending(THREE, [])), THREE)

    def test_only_what_is_newer_is_pending(self) -> None:
        for applied in (1, 2, 3):
            self.assertEqual(list(migrations.pending(THREE, [m[:2] for m in THREE[:applied]])), THREE[applied:])

    def test_a_newer_database_is_refused(self) -> None:
        with self.assertRaisesRegex(SchemaTooNew, "schema version 4, this taskd knows only 3"):
            migrations.pending(THREE, [(4, "four")])

    def test_a_database_of_other_files_is_refused(self) -> None:
        with self.assertRaisesRegex(SettingsError, "made by an unreleased taskd: its migration 2 is not"):
            migrations.pending(THREE, [(1, "one"), (2, "two of yesterday")])

    def test_every_column_of_sqlite_has_its_comment(self) -> None:
        for migration in migrations.load("sqlite"):
            for table in re.findall(r"CREATE TABLE \w+ \(\n(.*?)\n\)", migration.sql, re.DOTALL):
                for line in table.splitlines():
                    if re.match(r"    [a-z]", line):
                        following = table[table.index(line) :].split("\n    ", 2)
                        # a column may continue on a second line
                        self.assertIn(" -- ", "".join(following[:2]), line)


class LockedAtFirst(InlineRunner):
    """Another process holds the database during the first ``times`` interactions."""

    def __init__(self, path: str, times: int) -> None:
        super().__init__(path)
        self.times = times

    def runInteraction(self, interaction: Callable[..., Any], *args: Any) -> Deferred[Any]:
        if self.times:
            self.times -= 1
            return fail(sqlite3.OperationalError("database is locked"))
        return super().runInteraction(interaction, *args)


class SqliteTests(TestCase):
    """The store applies them to a file."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = str(Path(folder.name) / "taskd.sqlite3")
        self.clock = Clock()

    async def start(self) -> SqliteStore:
        store = SqliteStore(InlineRunner(self.path), self.clock)
        self.addCleanup(store.stop)
        await store.start()
        return store

    def sql(self, text: str, *args: Any) -> list[Any]:
        connection = sqlite3.connect(self.path)
        try:
            with connection:
                return connection.execute(text, args).fetchall()
        finally:
            connection.close()

    def schema(self) -> list[Any]:
        return self.sql("SELECT type, name, sql FROM sqlite_schema ORDER BY type, name")

    async def test_from_an_empty_database_and_again(self) -> None:
        store = await self.start()
        applied = self.sql("SELECT version, name, applied_at FROM schema_migrations ORDER BY version")
        self.assertEqual([row[:2] for row in applied], [m[:2] for m in migrations.load("sqlite")])
        schema = self.schema()
        await store.stop()
        store = await self.start()
        self.assertTrue(store.ready)
        self.assertEqual(self.sql("SELECT * FROM schema_migrations ORDER BY version"), applied)
        self.assertEqual(self.schema(), schema)

    async def test_from_every_earlier_version(self) -> None:
        await (await self.start()).stop()
        expected = self.schema()
        for applied in range(1, len(migrations.load("sqlite"))):
            self.path += str(applied)
            connection = sqlite3.connect(self.path)
            connection.execute(migrations.CREATE_TABLE)
            for migration in migrations.load("sqlite")[:applied]:
                connection.executescript(migration.sql)
                connection.execute("INSERT INTO schema_migrations VALUES (?, ?, 'then')", migration[:2])
            connection.commit()
            connection.close()
            await (await self.start()).stop()
            self.assertEqual(self.schema(), expected)

    async def test_the_first_start_names_the_installation(self) -> None:
        async def start(wanted: str | None) -> str:
            store = SqliteStore(InlineRunner(self.path), self.clock, installation=wanted)
            self.addCleanup(store.stop)
            await store.start()
            return store.installation

        for wanted in ("Staging-2", None, "Staging-2"):
            self.assertEqual(await start(wanted), "Staging-2")
        with self.assertRaisesRegex(SettingsError, "TASKD_INSTALLATION is other, .* installation Staging-2: "):
            await start("other")
        for text in ("UPDATE installation SET id = 'a.b'", "INSERT INTO installation VALUES ('second')"):
            with self.assertRaises(sqlite3.IntegrityError):
                self.sql(text)

    async def test_a_newer_database_is_refused_and_left_alone(self) -> None:
        await (await self.start()).stop()
        self.sql("INSERT INTO schema_migrations VALUES (9999, 'later', 'then')")
        schema = self.schema()
        with self.assertRaisesRegex(SchemaTooNew, "schema version 9999"):
            await self.start()
        self.assertEqual(self.schema(), schema)

    async def test_a_database_of_an_unreleased_taskd_is_refused_and_left_alone(self) -> None:
        self.sql(migrations.CREATE_TABLE)
        self.sql("INSERT INTO schema_migrations VALUES (1, 'initial', 'then')")
        schema = self.schema()
        with self.assertRaisesRegex(SettingsError, "made by an unreleased taskd: its migration 1 is not"):
            await self.start()
        self.assertEqual(self.schema(), schema)

    async def test_a_migration_that_fails_leaves_nothing(self) -> None:
        # a table that the first file creates exists already
        self.sql("CREATE TABLE sessions (mine)")
        schema = self.schema()
        with self.assertRaises(Unavailable):
            await self.start()
        self.assertEqual(self.schema(), schema)

    async def test_a_locked_database_is_waited_for(self) -> None:
        store = SqliteStore(LockedAtFirst(self.path, 3), self.clock)
        self.addCleanup(store.stop)
        started = Deferred.fromCoroutine(store.start())
        for _ in range(3):
            self.assertFalse(store.ready)
            with self.assertRaisesRegex(Unavailable, "cannot be reached yet"):
                await store.find_user("ana")
            self.clock.advance(MAX_DELAY)
        await started
        self.assertTrue(store.ready)
        self.assertIsNone(await store.find_user("ana"))

    async def test_stop_ends_the_waiting(self) -> None:
        store = SqliteStore(LockedAtFirst(self.path, 1000), self.clock)
        started = Deferred.fromCoroutine(store.start())
        await store.stop()
        with self.assertRaisesRegex(Unavailable, "the store is closed"):
            await started
        self.assertEqual(self.clock.getDelayedCalls(), [])
        with self.assertRaisesRegex(Unavailable, "the store is closed"):
            await store.find_user("ana")

    async def test_a_file_that_is_no_database_is_refused(self) -> None:
        Path(self.path).write_text("a letter, by mistake kept under this name " * 100)
        with self.assertRaisesRegex(SettingsError, "the database file cannot be used"):
            await self.start()
