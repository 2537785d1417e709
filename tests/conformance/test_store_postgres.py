"""The suite of ITaskStore on PostgreSQL, and what only a server can do to it: die, hang, be slow, be shared."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor

from taskd.store.postgres import PostgresStore
from tests import services
from tests.conformance.store import StoreTests


class Hooks(StoreTests):
    """The hooks on PostgreSQL, over a connection of their own."""

    database: str | None = None

    async def make(self) -> Any:
        if self.database is None:
            services.require("postgres")
            self.server = services.postgres()
            self.database = self.server.create_database()
            self.addCleanup(self.server.drop_database, self.database)
        store = self.build()
        await store.start()
        return store

    def build(self, **options: Any) -> PostgresStore:
        store = PostgresStore(self.server.dsn(self.database), reactor, **{"size": 2, **options})
        self.addCleanup(store.stop)
        return store

    def sql(self, text: str, *parameters: Any) -> list[Any]:
        return self.server.query(text, parameters, self.database)

    async def postpone(self, task_id: int, seconds: int = 3600) -> None:
        text = "UPDATE tasks SET due = false, run_at = created_at + make_interval(secs => %s) WHERE id = %s"
        self.sql(text, seconds, task_id)

    async def age_outbox(self) -> None:
        self.sql("UPDATE outbox SET created_at = created_at - interval '1 hour'")

    async def count_outbox(self) -> int:
        [(count,)] = self.sql("SELECT count(*) FROM outbox")
        return int(count)


class Postgres(Hooks):
    """The suite."""


del StoreTests, Hooks
