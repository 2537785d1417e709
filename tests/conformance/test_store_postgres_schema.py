"""How a PostgreSQL database gets its schema, and which indexes the statements use."""

from __future__ import annotations

import re
import sqlite3
from typing import Any

from taskd.model.errors import SchemaTooNew, Unavailable
from taskd.store import migrations
from taskd.store.postgres.store import PREPARED
from tests.conformance.postgres import Hooks, together


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
            # only PostgreSQL has a backend for each connection
            ours = {column for name, column in columns if name == table} - {"pid"}
            self.assertEqual(ours, {row[1] for row in theirs.execute(f"PRAGMA table_xinfo({table})")}, table)
        names = "SELECT name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"
        ours = {name for (name,) in self.sql("SELECT indexname FROM pg_indexes WHERE schemaname = 'public'")}
        self.assertEqual({name for (name,) in theirs.execute(names)} - ours, set())

    async def test_statements_find_their_index_without_statistics(self) -> None:
        # A table that serves as a queue has outdated statistics: here those of the empty table
        self.sql("ANALYZE tasks")
        self.sql("""
            INSERT INTO tasks (user_id, task, queue, state, dispatched_at, finished_at)
            SELECT 1 + g % 50, 'x', 'q', (ARRAY['completed', 'waiting'])[1 + g % 2],
                (ARRAY[now(), NULL])[1 + g % 2], (ARRAY[now(), NULL])[1 + g % 2]
            FROM generate_series(1, 20000) AS g
        """)
        by_key, in_flight = {"tasks_pkey"}, {"tasks_in_flight", "tasks_pkey"}
        expected = {
            "batch": by_key,
            "find_keys": {"tasks_key"},
            "dispatch": {"tasks_backlog", "tasks_pkey"},
            "promote": {"tasks_delayed", "tasks_pkey"},
            "adopt_stale": by_key,
            "claim": by_key,
            "begin": by_key,
            "complete": by_key,
            "fail": by_key,
            "find_recorded_end": by_key,
            "find_recorded_retry": {"task_attempts_pkey", "tasks_pkey"},
            "release": by_key,
            "held_by": {"tasks_in_flight"},
            "report": {"task_log_pkey", "tasks_pkey"},
            "read_log": {"task_log_pkey"},
            "log_bytes": {"task_log_pkey"},
            "failed_attempts": {"task_attempts_pkey"},
            "cancel": by_key,
            "retry": by_key,
            "take_back": in_flight,
            "forget_workers": {"tasks_in_flight"},
            "requeue_lost": in_flight,
            "reset_in_flight": in_flight,
            "delete_finished": {"task_attempts_pkey", "task_log_pkey", "tasks_pkey"},
            "count_queued": {"tasks_in_flight"},
            "find_tasks": by_key,
            "get_tasks": by_key,
        }
        for statistics in ("old", "new"):
            for name, text in PREPARED.items():
                count = max((int(n) for n in re.findall(r"\$(\d+)", text)), default=0)
                nulls = f"({', '.join(['NULL'] * count)})" if count else ""
                plan = await self.explain(f"EXECUTE {name} {nulls}")
                what = f"{name}, {statistics} statistics:\n{plan}"
                self.assertNotRegex(plan, r"Seq Scan on task|Bitmap|Hash Join|Merge Join", what)
                if name not in ("poll_workers", "forget_workers", "reset_in_flight"):
                    self.assertNotIn("Seq Scan on workers", plan, what)
                # every column of the route is a condition of the index, not a filter on its rows
                self.assertNotRegex(plan, r"queue = \$\d\)(?! AND \(kind = )", what)
                used = set(re.findall(r"using (tasks?_\w+) on task", plan))
                self.assertEqual(used, expected.get(name, set()), what)
            self.sql("ANALYZE tasks")

    async def explain(self, text: str) -> str:
        connection = await self.store._pool.acquire()
        rows = await connection.query(f"EXPLAIN (COSTS OFF) {text}")
        self.store._pool.release(connection)
        return "\n".join(line for (line,) in rows)


del Hooks
