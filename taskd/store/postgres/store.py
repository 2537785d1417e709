"""The store that many servers and workers share: all themes on one PostgreSQL database."""

from __future__ import annotations

from zope.interface import implementer

from taskd.ports.store import IStore
from taskd.store.postgres import (
    accounts,
    attempts,
    audit,
    database,
    health,
    logs,
    losses,
    overview,
    quotas,
    scheduling,
    sessions,
    tasks,
    totp,
    workers,
)

PREPARED = {
    **database.PREPARED,
    **accounts.PREPARED,
    **sessions.PREPARED,
    **totp.PREPARED,
    **audit.PREPARED,
    **quotas.PREPARED,
    **tasks.PREPARED,
    **scheduling.PREPARED,
    **overview.PREPARED,
    **attempts.PREPARED,
    **losses.PREPARED,
    **logs.PREPARED,
    **workers.PREPARED,
    **health.PREPARED,
}
"""The statements that are prepared on every connection, by name: parsing and planning cost a third of a small batch.

A batch is one statement and one round trip. Its rows are arrays, one parameter for a column, because the server parses
an array literal much faster than as many constants. Every statement is harmless when it runs twice.
"""


@implementer(IStore)
class PostgresStore(
    accounts.PostgresAccounts,
    quotas.PostgresQuotas,
    tasks.PostgresTasks,
    scheduling.PostgresScheduling,
    overview.PostgresOverview,
    attempts.PostgresAttempts,
    losses.PostgresLosses,
    logs.PostgresLogs,
    workers.PostgresWorkers,
    health.PostgresHealth,
):
    """IStore on PostgreSQL. Its parameters are those of PostgresDatabase. All times are the database's."""

    prepared = PREPARED
