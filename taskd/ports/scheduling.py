"""The backlog, the tasks that the servers hand to the broker, and the outbox in the store."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from zope.interface import Interface

from taskd.model.tasks import Route, Task


class Dispatch(NamedTuple):
    """The content of a broker message: a task, and the number of the dispatch that the message belongs to."""

    task_id: int
    dispatch: int


class OutboxBatch(msgspec.Struct, frozen=True):
    """An outbox row that its publisher did not settle in time, and those of its messages whose task is still queued."""

    id: str
    messages: Mapping[Route, Sequence[Dispatch]]


class Dispatched(msgspec.Struct, frozen=True):
    """One turn of the dispatcher.

    The next turn of the round begins after ``last_user``; None means that the round is complete and the next turn
    begins a new one. ``more`` is True when the limit ended the turn: ``len(tasks) == limit``. A round in which no turn
    had ``more`` has emptied the backlog, except for tasks that arrived meanwhile or that another server had locked.
    """

    tasks: Sequence[Task]
    last_user: int | None
    more: bool


class ISchedulingStore(Interface):
    """The backlog, the tasks that are in the broker, and the outbox."""

    def dispatch(batch: str, route: Route, limit: int, after_user: int | None) -> Awaitable[Dispatched]:
        """Move up to ``limit`` tasks of a route's backlog from waiting to queued, and store an outbox row ``batch``
        that names them: round-robin over the users after ``after_user`` (None: from the first), oldest first within a
        user.

        A round that needs several turns gives every user one task; with more, the few users of its last turn would
        share a whole turn. A round that fits into one turn gives equal shares, and the rest to users who have more
        tasks. Safe to run on several servers at the same time; running the same batch again moves nothing more."""

    def promote(limit: int) -> Awaitable[Sequence[tuple[Route, int]]]:
        """Move up to ``limit`` delayed tasks whose ``run_at`` has passed into the backlog, longest overdue first.
        Returns their distinct pairs of route and user id. Safe to run on several servers at the same time."""

    def mark_published(batches: Sequence[str]) -> Awaitable[None]:
        """Delete outbox rows whose messages the broker has all confirmed."""

    def adopt_stale(older_than: float, limit: int) -> Awaitable[Sequence[OutboxBatch]]:
        """Up to ``limit`` outbox rows that were not published for ``older_than`` seconds, for this caller to publish.
        At most one caller gets a row. Only messages whose task is still queued are included."""

    def requeue_lost(route: Route, older_than: float, limit: int) -> Awaitable[Sequence[Task]]:
        """queued for more than ``older_than`` seconds -> waiting: the messages of these tasks are considered lost."""

    def count_queued() -> Awaitable[Mapping[Route, int]]:
        """The number of queued tasks by route. Its cost depends on the size of the windows, not of the backlog."""
