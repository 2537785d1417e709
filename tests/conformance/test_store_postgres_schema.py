"""How a PostgreSQL database gets its schema, and which indexes the statements use."""

from __future__ import annotations

import re
import sqlite3
from typing import Any

import psycopg2

from taskd.model.errors import SchemaTooNew, SettingsError, Unavailable
from taskd.store import migrations
from taskd.store.postgres.store import PREPARED
from tests.conformance.postgres import Hooks, together, until


class Schema(Hooks):
    """Migrations, comments and indexes."""

    async def test_servers_that_start_together_on_an_empty_database(self) -> None:
        self.new_database()
        stores = [self.build() for _ in range(4)]
        await together(store.start() for store in stores)
        for i, store in enumerate(stores):
            self.assertTrue(store.ready)
            await store.create_user(f"u{i}", f"u{i}", "x")
        applied = self.sql("SELECT version, name FROM schema_migrations ORDER BY version")
        self.assertEqual(applied, [m[:2] for m in migrations.load("postgres")])

    async def test_servers_that_start_together_agree_on_the_installation(self) -> None:
        self.new_database()
        stores = [self.build() for _ in range(4)]
        self.assertEqual({store.installation for store in stores}, {""})
        await together(store.start() for store in stores)
        [(found,)] = self.sql("SELECT id FROM installation")
        self.assertEqual({store.installation for store in stores}, {found})

    async def test_an_installation_that_the_settings_name(self) -> None:
        self.new_database()
        for wanted in ("Staging-2", None, "Staging-2"):
            store = self.build(installation=wanted)
            await store.start()
            self.assertEqual(store.installation, "Staging-2")
        with self.assertRaisesRegex(SettingsError, "TASKD_INSTALLATION is other, .* installation Staging-2: "):
            await self.build(installation="other").start()

    async def test_the_database_has_one_well_formed_installation(self) -> None:
        with self.assertRaises(psycopg2.errors.UniqueViolation):
            self.sql("INSERT INTO installation VALUES ('second')")
        for text in ("", "a.b", "x" * 33, "two\nlines", "end\n"):
            with self.assertRaises(psycopg2.errors.CheckViolation):
                self.sql("UPDATE installation SET id = %s", text)

    async def test_newer_database_is_refused_and_left_alone(self) -> None:
        self.sql("INSERT INTO schema_migrations VALUES (9999, 'later', 'then')")
        store = self.build()
        with self.assertRaisesRegex(SchemaTooNew, "schema version 9999"):
            await store.start()
        self.assertFalse(store.ready)
        with self.assertRaises(Unavailable):
            await store.find_user("ana")

    async def test_from_every_earlier_version(self) -> None:
        expected = self.described()
        for applied in range(1, len(migrations.load("postgres"))):
            self.new_database()
            self.sql(migrations.CREATE_TABLE)
            for migration in migrations.load("postgres")[:applied]:
                self.sql(migration.sql)
                self.sql("INSERT INTO schema_migrations VALUES (%s, %s, 'then')", *migration[:2])
            await self.build().start()
            self.assertEqual(self.described(), expected)

    def described(self) -> list[Any]:
        columns = """
            SELECT table_name, column_name, data_type, column_default, is_nullable
            FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, ordinal_position
        """
        indexes = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
        return self.sql(columns) + self.sql(indexes)

    async def test_every_table_and_column_has_a_comment(self) -> None:
        silent = self.sql("""
            SELECT c.relname, a.attname FROM pg_class c
            JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum >= 0 AND NOT a.attisdropped
            WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND c.relname <> 'schema_migrations'
                AND (col_description(c.oid, a.attnum) IS NULL OR obj_description(c.oid) IS NULL)
        """)
        self.assertEqual(silent, [])

    async def test_both_dialects_have_the_same_tables_and_indexes(self) -> None:
        theirs = sqlite3.connect(":memory:")
        self.addCleanup(theirs.close)
        theirs.execute(migrations.CREATE_TABLE)
        for migration in migrations.load("sqlite"):
            theirs.executescript(migration.sql)
        columns = [row[:2] for row in self.described() if len(row) > 1]
        for table in {table for table, _ in columns}:
            # only PostgreSQL has a backend for each connection, and standbys
            ours = {column for name, column in columns if name == table} - {"pid", "timeline"}
            self.assertEqual(ours, {row[1] for row in theirs.execute(f"PRAGMA table_xinfo({table})")}, table)
        names = "SELECT name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"
        ours = {name for (name,) in self.sql("SELECT indexname FROM pg_indexes WHERE schemaname = 'public'")}
        self.assertEqual({name for (name,) in theirs.execute(names)} - ours, set())

    async def test_statements_find_their_index_without_statistics(self) -> None:
        # A table that serves as a queue has outdated statistics: here those of the empty table
        self.sql("ANALYZE tasks")
        self.sql("""
            INSERT INTO tasks (user_id, task, queue, state, finished_at)
            SELECT 1 + g % 50, 'x', 'q', (ARRAY['completed', 'waiting'])[1 + g % 2], (ARRAY[now(), NULL])[1 + g % 2]
            FROM generate_series(1, 20000) AS g
        """)
        by_key, held = {"tasks_pkey"}, {"tasks_held", "tasks_pkey"}
        expected = {
            "find_keys": {"tasks_key"},
            "assign": {"tasks_backlog", "tasks_held", "tasks_pkey"},
            "told": by_key,
            "promote": {"tasks_delayed", "tasks_delayed_user", "tasks_pkey"},
            "look": {"tasks_held"},
            "standing": {"tasks_held"},
            "in_step": {"tasks_held"},
            "assert_held": by_key,
            "begin": by_key,
            "mark_begun": by_key,
            "complete": by_key,
            "fail": by_key,
            "find_recorded_end": by_key,
            "find_recorded_retry": {"task_attempts_pkey", "tasks_pkey"},
            "release": by_key,
            "find_released": by_key,
            "worker_gone": held,
            "report": {"task_log_pkey", "tasks_pkey"},
            "read_log": {"task_log_pkey"},
            "log_bytes": {"task_log_pkey"},
            "failed_attempts": {"task_attempts_pkey"},
            "cancel": by_key,
            "retry": by_key,
            "take_back": held,
            "forget_workers": {"tasks_held"},
            "reset_in_flight": held,
            "deleted_users": {"tasks_list"},
            "cancel_deleted": {"tasks_list", "tasks_pkey"},
            "purge_deleted": {"task_attempts_pkey", "task_log_pkey", "tasks_list", "tasks_pkey"},
            "note_purged": {"tasks_list"},
            "delete_finished": {"task_attempts_pkey", "task_log_pkey", "tasks_pkey"},
            "read_usage": {"tasks_list"},
            "find_created": by_key,
            "find_states": by_key,
            "overview_routes": {"tasks_backlog"},
            "overview_all": {"tasks_backlog", "tasks_delayed", "tasks_held"},
            "overview_own": {"tasks_backlog", "tasks_delayed_user", "tasks_held"},
            "count_line": {"tasks_backlog", "tasks_held"},
            "find_tasks": by_key,
            "get_listed": by_key,
            "get_tasks": by_key,
        }
        for statistics in ("old", "new"):
            for name, text in PREPARED.items():
                count = max((int(n) for n in re.findall(r"\$(\d+)", text)), default=0)
                nulls = f"({', '.join(['NULL'] * count)})" if count else ""
                plan = await self.explain(f"EXECUTE {name} {nulls}")
                what = f"{name}, {statistics} statistics:\n{plan}"
                self.assertNotRegex(plan, r"Seq Scan on task|Bitmap|Hash Join|Merge Join", what)
                # what is joined is looked up, not compared with everything; there are few workers
                if name not in ("take_back", "reset_in_flight"):
                    self.assertNotIn("Join Filter", plan, what)
                if name not in ("poll_workers", "forget_workers", "reset_in_flight", "assign", "look"):
                    self.assertNotIn("Seq Scan on workers", plan, what)
                # every column of the route is a condition of the index, not a filter on its rows
                self.assertNotRegex(plan, r"queue = \$\d\)(?! AND \(kind = )", what)
                used = set(re.findall(r"using (tasks?_\w+) on task", plan))
                self.assertEqual(used, expected.get(name, set()), what)
            self.sql("ANALYZE tasks")

    async def test_what_each_worker_holds_is_read_by_its_name(self) -> None:
        """Not by a walk over what all workers hold, however few that are when a plan is made."""
        names = ("assign", "look", "standing", "in_step", "forget_workers", "worker_gone", "take_back", "count_line")
        for name in names:
            count = max((int(n) for n in re.findall(r"\$(\d+)", PREPARED[name])), default=0)
            plan = await self.explain(f"EXECUTE {name} ({', '.join(['NULL'] * count)})" if count else f"EXECUTE {name}")
            lines = plan.splitlines()
            scans = [n for n, line in enumerate(lines) if "tasks_held" in line]
            self.assertTrue(scans, name)
            if name == "take_back":
                # it begins with the first holder
                scans = scans[1:]
            for n in scans:
                self.assertRegex(lines[n + 1], r"Index Cond: \(worker [=>] ", f"{name}:\n{plan}")

    async def test_a_begin_changes_no_index(self) -> None:
        tasks = await self.queued(200)
        await self.begin(tasks, age=0.3)
        # the statistics of a backend are visible when it has ended
        before = self.backends()
        self.kill()
        await until(lambda: not before & self.backends())
        counts = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'tasks'"
        await until(lambda: self.sql(counts)[0][0] >= len(tasks))
        # except where a page is just full
        self.assertGreater(self.sql(counts)[0][1], 0.9 * len(tasks))

    async def explain(self, text: str) -> str:
        connection = await self.store._pool.acquire()
        rows = await connection.query(f"EXPLAIN (COSTS OFF) {text}")
        self.store._pool.release(connection)
        return "\n".join(line for (line,) in rows)


del Hooks
