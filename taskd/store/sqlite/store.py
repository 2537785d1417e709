"""The store of the embedded server: all themes on one SQLite database."""

from __future__ import annotations

from zope.interface import implementer

from taskd.ports.store import IStore
from taskd.store.sqlite.accounts import SqliteAccounts
from taskd.store.sqlite.attempts import SqliteAttempts
from taskd.store.sqlite.health import SqliteHealth
from taskd.store.sqlite.logs import SqliteLogs
from taskd.store.sqlite.losses import SqliteLosses
from taskd.store.sqlite.overview import SqliteOverview
from taskd.store.sqlite.quotas import SqliteQuotas
from taskd.store.sqlite.scheduling import SqliteScheduling
from taskd.store.sqlite.tasks import SqliteTasks
from taskd.store.sqlite.workers import SqliteWorkers


@implementer(IStore)
class SqliteStore(
    SqliteAccounts,
    SqliteQuotas,
    SqliteTasks,
    SqliteScheduling,
    SqliteOverview,
    SqliteAttempts,
    SqliteLosses,
    SqliteLogs,
    SqliteWorkers,
    SqliteHealth,
):
    """IStore on SQLite. Its parameters are those of SqliteDatabase."""
