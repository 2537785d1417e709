"""Tasks in the store, as the servers hand them to the broker, and the outbox."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from zope.interface import Interface

from taskd.model.tasks import Route, Task


class Dispatch(NamedTuple):
    """What a broker message says: which task, and the number of the dispatch it belongs to."""

    task_id: int
    dispatch: int


class OutboxBatch(msgspec.Struct, frozen=True):
    """An outbox row that outlived its publisher: what of it still waits for a worker, by route."""

    id: str
    messages: Mapping[Route, Sequence[Dispatch]]


class Dispatched(msgspec.Struct, frozen=True):
    """One turn of the dispatcher.

    ``last_user`` is where the next turn goes on in the round of users, None when the round is complete and the next
    turn begins anew. ``more`` says that the turn was cut short by its limit: ``len(tasks) == limit``. A round none of
    whose turns had ``more`` was clean: it left nothing behind but what came meanwhile or another server had in hand.
    """

    tasks: Sequence[Task]
    last_user: int | None
    more: bool


class ISchedulingStore(Interface):
    """The backlog, the tasks that are in the broker, and the outbox."""

    def dispatch(batch: str, route: Route, limit: int, after_user: int | None) -> Awaitable[Dispatched]:
        """Move up to ``limit`` tasks of a route's backlog from waiting to queued under an outbox row ``batch``:
        round-robin over the users behind ``after_user`` (None: from the first), oldest first within a user.

        A round that needs several turns gives every user one task, lest those of the last turn get a turn for
        themselves; one that fits into a turn gives equal shares, and what is left to those who have more. Safe to run
        on several servers at once; running the same batch again moves nothing more."""

    def promote(limit: int) -> Awaitable[Sequence[tuple[Route, int]]]:
        """Move up to ``limit`` delayed tasks whose ``run_at`` has come into the backlog, the longest overdue first;
        the distinct (route, user id) pairs they belong to. Empty when there are none. Safe to run on several servers
        at once."""

    def mark_published(batches: Sequence[str]) -> Awaitable[None]:
        """Delete outbox rows whose messages were all confirmed."""

    def adopt_stale(older_than: float, limit: int) -> Awaitable[Sequence[OutboxBatch]]:
        """Outbox rows not published for ``older_than`` seconds, now this caller's to publish; at most one caller
        gets each. Only messages whose task is still queued under that dispatch number are named."""

    def requeue_lost(route: Route, older_than: float, limit: int) -> Awaitable[Sequence[Task]]:
        """queued for more than ``older_than`` seconds -> waiting: their messages are lost."""

    def count_queued() -> Awaitable[Mapping[Route, int]]:
        """Tasks in state queued, by route. Costs no more than the windows are large."""
