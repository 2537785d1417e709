"""The store: one object that implements the interfaces of all themes."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import datetime

from zope.interface import Attribute

from taskd.ports.accounts import IAccountStore
from taskd.ports.attempts import IAttemptStore
from taskd.ports.logs import ILogStore
from taskd.ports.overview import IOverviewStore
from taskd.ports.quotas import IQuotaStore
from taskd.ports.scheduling import ISchedulingStore
from taskd.ports.tasks import ITaskStore
from taskd.ports.workers import IWorkerStore


class IStore(
    IAccountStore,
    IQuotaStore,
    ITaskStore,
    ISchedulingStore,
    IOverviewStore,
    IAttemptStore,
    ILogStore,
    IWorkerStore,
):
    """The source of truth: users, sessions, tasks and every change of state. A method returns after its transaction was
    committed. It was also flushed to disk, except for :meth:`begin` without ``flush``, :meth:`report`,
    :meth:`add_usage` and :meth:`beat`."""

    ready: bool = Attribute("True while the store can be reached and its schema is current")
    installation: str = Attribute("The id of the installation, the same for all its daemons; empty before start()")

    def start() -> Awaitable[None]:
        """Connect and migrate; retry until the database can be reached. Raises SchemaTooNew, SettingsError."""

    def check_writable() -> Awaitable[int]:
        """The version of the schema, if the database takes changes now. Raises Unavailable, with the reason, if not."""

    def now() -> datetime:
        """The database's present time, in UTC: as far as this process knows it, from the last answer that told it and
        a monotonic clock since."""

    def stop() -> Awaitable[None]:
        """Close every connection; running calls fail with Unavailable."""
