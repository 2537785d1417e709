"""What users have used of their quotas, in the store."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from zope.interface import Interface

from taskd.model.quotas import Quota
from taskd.ports.accounts import Entry

HOURS = 24
"""Tasks of so many hours count for the daily limit, the present hour included."""


class UsageDelta(NamedTuple):
    """What one user has created since it was last stored: tasks, and bytes. Bytes can be negative."""

    user_id: int
    tasks: int
    bytes: int


class Usage(msgspec.Struct, frozen=True):
    """What a user has now. ``open`` is counted up to one more than the limit. ``daily`` are the tasks created in the
    present hour and the 23 hours before; the oldest of these hours leaves after ``frees_in`` seconds, None if no task
    was created in any of them."""

    quota: Quota
    open: int = 0
    daily: int = 0
    bytes: int = 0
    frees_in: float | None = None


class IQuotaStore(Interface):
    """Counters of tasks and bytes: one row a user and hour. What is older than HOURS is in one row a user.

    :meth:`ITaskStore.delete_finished` takes the bytes that it deletes away from the counters, in its transaction.
    When the purge of a deleted user is final, :meth:`IAccountStore.purge_deleted` deletes the user's counters.
    """

    def add_usage(deltas: Sequence[UsageDelta]) -> Awaitable[None]:
        """Add to the counters of the present hour, each user at most once. Not flushed: a crash of the database may
        lose it. If the outcome of the commit is unknown, it is added a second time."""

    def read_usage(user_ids: Sequence[int], open_limit: int, unlimited: int = 0) -> Awaitable[Mapping[int, Usage]]:
        """What these users have. ``open_limit`` is the limit of open tasks of users without one of their own. If a
        user's limit is 0, up to ``unlimited`` open tasks are counted. Unknown and deleted users are missing."""

    def set_quota(key: str, changes: Mapping[str, int | None], entry: Entry | None = None) -> Awaitable[Quota | None]:
        """Set limits of the user with this key: those of ``open``, ``daily`` and ``bytes`` that are in ``changes``.
        Returns all its limits as they are then, None if there is no such user. The entry goes into the audit if a limit
        has changed."""

    def fold_usage(limit: int) -> Awaitable[int]:
        """Move up to ``limit`` rows of hours that have passed out of the last HOURS into the one row of their user.
        Those of deleted users are deleted. Returns how many there were. The bytes of no user are below 0 then."""
