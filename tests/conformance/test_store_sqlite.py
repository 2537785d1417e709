"""The suite of IStore on SQLite, in memory and in a file."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from msgspec import structs
from twisted.internet import reactor
from twisted.internet.task import Clock

from taskd.model.errors import SettingsError, Unavailable
from taskd.model.tasks import NewTask
from taskd.ports.workers import Culprit
from taskd.store.rows import encode
from taskd.store.sqlite.database import InlineRunner, open_sqlite
from taskd.store.sqlite.store import SqliteStore
from tests.conformance.store.case import AGING, StoreCase
from tests.conformance.store.suite import StoreTests


class Hooks(StoreCase):
    """The hooks on SQLite, through the store's own runner."""

    async def _sql(self, text: str, *args: Any) -> list[Any]:
        rows: list[Any] = await self.store._runner.runInteraction(lambda cursor: cursor.execute(text, args).fetchall())
        return rows

    async def postpone(self, task_id: int, seconds: int = 3600) -> None:
        text = "UPDATE tasks SET due = 0, run_at = created_at + ? WHERE id = ?"
        await self._sql(text, seconds * 1_000_000, task_id)

    async def backdate(self, task_id: int, created: int, finished: int | None = None) -> None:
        [(now,)] = await self._sql("SELECT max(created_at) FROM tasks")
        ended = None if finished is None else now - finished * 1_000_000
        text = "UPDATE tasks SET created_at = ?, finished_at = coalesce(?, finished_at) WHERE id = ?"
        await self._sql(text, now - created * 1_000_000, ended, task_id)

    async def age_accounts(self, seconds: float) -> None:
        for table, columns in AGING.items():
            changes = ", ".join(f"{column} = {column} - {round(seconds * 1_000_000)}" for column in columns)
            await self._sql(f"UPDATE {table} SET {changes}")

    async def age_workers(self, seconds: int) -> None:
        await self._sql("UPDATE workers SET seen_at = seen_at - ?", seconds * 1_000_000)

    async def age_usage(self, hours: int) -> None:
        for (hour,) in await self._sql("SELECT DISTINCT hour FROM user_usage WHERE hour > 0 ORDER BY hour"):
            await self._sql("UPDATE user_usage SET hour = hour - ? WHERE hour = ?", hours * 3_600_000_000, hour)

    async def count_usage(self) -> int:
        [(count,)] = await self._sql("SELECT count(*) FROM user_usage")
        return int(count)

    async def die(
        self, worker: str, culprit: Culprit | None = None, among: Sequence[tuple[int, int]] | None = None
    ) -> None:
        found: dict[str, object] = {} if culprit is None else structs.asdict(culprit)
        if among is not None:
            found["among"] = dict(among)
        text = "UPDATE workers SET state = 'gone', culprit = ? WHERE name = ?"
        await self._sql(text, encode(found) if found else None, worker)

    async def stall(self, worker: str, text: str) -> None:
        await self._sql("UPDATE workers SET beat = beat + 1, stalled = ? WHERE name = ?", text, worker)

    async def forget(self, worker: str) -> None:
        await self._sql("DELETE FROM workers WHERE name = ?", worker)

    async def set_losses(self, task_id: int, losses: int) -> None:
        await self._sql("UPDATE tasks SET losses = ? WHERE id = ?", losses, task_id)

    async def count_rows(self) -> tuple[int, int, int]:
        [(tasks,)] = await self._sql("SELECT count(*) FROM tasks")
        [(chunks,)] = await self._sql("SELECT count(*) FROM task_log")
        [(attempts,)] = await self._sql("SELECT count(*) FROM task_attempts")
        return tasks, chunks, attempts


class SqliteInMemory(Hooks, StoreTests):
    """As in the simulation: calls finish at once, and the clock stands still."""

    async def make(self) -> Any:
        clock = Clock()
        clock.advance(1_700_000_000)
        store = SqliteStore(InlineRunner(), clock)
        await store.start()
        self.addCleanup(store.stop)
        return store

    async def test_all_times_are_those_of_the_wall_clock(self) -> None:
        wall = 1_800_000_000.5
        store = SqliteStore(InlineRunner(), Clock(), lambda: wall)
        await store.start()
        self.addCleanup(store.stop)
        at = datetime.fromtimestamp(wall, timezone.utc)
        self.assertEqual(store.now(), at)
        user = await store.create_user("Ana", "ana", "x")
        [task_id] = await store.draw_ids(1)
        [task] = (await store.create_tasks([NewTask(user.id, "t", delay=1.5, id=task_id)])).tasks
        self.assertEqual((task.created_at, task.run_at), (at, at + timedelta(seconds=1.5)))
        wall += 2
        self.assertEqual(store.now(), at + timedelta(seconds=2))
        self.assertEqual(len(await store.promote(1)), 1)


class SqliteInAFile(Hooks, StoreTests):
    """As in the embedded server: a file, and a separate thread."""

    async def make(self) -> Any:
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        self.folder = Path(place.name) / "data"
        return await self.open()

    async def open(self) -> Any:
        store = SqliteStore(open_sqlite(self.folder / "taskd.sqlite3", reactor), reactor)
        await store.start()
        self.addCleanup(store.stop)
        return store

    async def test_pragmas(self) -> None:
        for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
            self.assertEqual(await self._sql(f"PRAGMA {pragma}"), [(value,)])

    async def test_files_are_readable_for_their_owner_only(self) -> None:
        self.assertEqual(stat.S_IMODE(self.folder.stat().st_mode), 0o700)
        for file in self.folder.iterdir():
            self.assertEqual(stat.S_IMODE(file.stat().st_mode), 0o600, file)

    async def test_the_id_of_the_installation_is_kept(self) -> None:
        found = self.store.installation
        await self.store.stop()
        self.store = await self.open()
        self.assertEqual(self.store.installation, found)

    async def test_second_server_on_the_folder_is_refused(self) -> None:
        with self.assertRaisesRegex(SettingsError, "another taskserver is using"):
            open_sqlite(self.folder / "taskd.sqlite3", reactor)

    async def test_tasks_are_there_after_a_restart(self) -> None:
        [task] = await self.create()
        await self.store.stop()
        self.store = await self.open()
        self.assertEqual(await self.get(task), task)

    async def test_not_yet_started(self) -> None:
        await self.store.stop()
        store = SqliteStore(open_sqlite(self.folder / "taskd.sqlite3", reactor), reactor)
        with self.assertRaisesRegex(Unavailable, "cannot be reached yet"):
            await store.find_user("ana")
        await store.stop()
        with self.assertRaisesRegex(Unavailable, "the store is closed"):
            await store.find_user("ana")
        with self.assertRaisesRegex(Unavailable, "the store is closed"):
            await store.start()

    async def test_unusable_folder(self) -> None:
        blocked = self.folder.parent / "blocked"
        blocked.write_text("a file")
        with self.assertRaisesRegex(SettingsError, "cannot use the data folder"):
            open_sqlite(blocked / "taskd.sqlite3", reactor)

    async def test_full_disk_is_unavailable_until_space_is_free(self) -> None:
        # max_page_count simulates a full disk
        [(pages,)] = await self._sql("PRAGMA page_count")
        await self._sql(f"PRAGMA max_page_count = {pages}")
        rows = [NewTask(self.ana.id, "x" * 4000, id=task_id) for task_id in range(1, 101)]
        with self.assertRaises(Unavailable):
            await self.store.create_tasks(rows)
        await self._sql("PRAGMA max_page_count = 1000000")
        self.assertEqual(len((await self.store.create_tasks(rows)).tasks), 100)
        self.assertTrue(os.path.exists(self.folder))


del StoreCase, StoreTests, Hooks
