"""deploy/roles.sql: the owner migrates, and the role of the daemons can change rows only."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import psycopg2

from taskd.model.errors import SettingsError
from tests import programs, services
from tests.conformance.postgres import Hooks
from tests.conformance.store.creation import CreationTests

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "roles.sql"


class RoleHooks(Hooks):
    """A database with the two roles, under names that no other test uses. Stores are the daemons'."""

    async def make(self) -> Any:
        if self.database is None:
            services.require("postgres")
            self.server = services.postgres()
            self.new_database()
            await self.start_as(self.owner)
        return await super().make()

    def new_database(self) -> None:
        super().new_database()
        self.owner, self.daemon = services.unique("owner"), services.unique("daemon")
        # roles belong to the whole server, and go after the database: the last cleanup is the first to run
        self.apply_roles()

    def apply_roles(self) -> None:
        """Run the script as its head says."""
        text = SCRIPT.read_text().replace("taskd_owner", self.owner)
        text = re.sub(r"\btaskd\b", self.daemon, text)
        options = ["--host", self.server.host, "--port", str(self.server.port), "--username", self.server.user]
        done = subprocess.run(
            [
                *programs.CHROOT,
                programs.postgres("psql"),
                *options,
                *("--dbname", str(self.database), "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1"),
            ],
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    async def start_as(self, role: str) -> None:
        """Start a store as this role, and stop it."""
        store = super().build(dsn={"user": role})
        await store.start()
        await store.stop()

    def build(self, **options: Any) -> Any:
        return super().build(**{**options, "dsn": {"user": self.daemon, **options.get("dsn", {})}})


class CreationAsDaemon(RoleHooks, CreationTests):
    """A part of the suite, as the role of the daemons."""


class Roles(RoleHooks):
    """What each role may."""

    async def test_the_daemons_cannot_change_the_schema(self) -> None:
        connection = psycopg2.connect(**{**self.server.dsn(self.database), "user": self.daemon})
        self.addCleanup(connection.close)
        connection.autocommit = True
        for text in (
            "ALTER TABLE tasks ADD COLUMN x integer",
            "DROP TABLE tasks",
            "TRUNCATE tasks",
            "CREATE TABLE mine (x integer)",
            "CREATE TEMP TABLE mine (x integer)",
            "CREATE INDEX mine ON tasks (id)",
            "DROP FUNCTION deal",
            "ALTER TABLE tasks OWNER TO CURRENT_USER",
        ):
            with self.assertRaises(psycopg2.errors.InsufficientPrivilege, msg=text), connection.cursor() as cursor:
                cursor.execute(text)

    async def test_an_empty_database(self) -> None:
        """Somebody else has to migrate it."""
        self.new_database()
        with self.assertRaisesRegex(SettingsError, f"user {self.daemon} may not change it .*taskadmin migrate"):
            await self.build().start()
        await self.start_as(self.owner)
        await self.build().start()

    async def test_a_database_that_a_daemon_has_made_as_another_role(self) -> None:
        self.new_database()
        await self.start_as(self.server.user)
        self.apply_roles()
        self.apply_roles()
        await self.build().start()
        owners = self.sql("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
        self.assertEqual(owners, [(self.owner,)])


del Hooks, RoleHooks, CreationTests
