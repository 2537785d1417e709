"""The store: one object for each database that implements the interfaces of all themes."""

from __future__ import annotations

from collections.abc import Awaitable

from zope.interface import Attribute

from taskd.ports.accounts import IAccountStore
from taskd.ports.attempts import IAttemptStore
from taskd.ports.logs import ILogStore
from taskd.ports.scheduling import ISchedulingStore
from taskd.ports.tasks import ITaskStore
from taskd.ports.workers import IWorkerStore


class IStore(IAccountStore, ITaskStore, ISchedulingStore, IAttemptStore, ILogStore, IWorkerStore):
    """The truth: users, sessions, tasks and every change of state. What a method confirms has been flushed."""

    ready: bool = Attribute("True while the store can be reached and its schema is the code's")

    def start() -> Awaitable[None]:
        """Connect and migrate. Keeps trying while the database is away. Raises SchemaTooNew."""

    def stop() -> Awaitable[None]:
        """Close every connection; calls under way fail with Unavailable."""
