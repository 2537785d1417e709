"""Whether PostgreSQL takes changes now."""

from __future__ import annotations

from taskd.model.errors import Unavailable
from taskd.store.postgres.database import PostgresDatabase

PREPARED = {
    "check_writable": """
SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on', max(version) FROM schema_migrations
""",
}


class PostgresHealth(PostgresDatabase):
    """The part of IStore that tells whether the database is well."""

    async def check_writable(self) -> int:
        [(standby, read_only, version)] = await self._call("check_writable")
        if standby or read_only:
            why = "it is a standby" if standby else "it is read-only"
            raise Unavailable(f"the database takes no changes: {why}")
        return int(version)
