"""Attempts in the store: how a worker takes a task, keeps it, ends it and gives it back."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec
from zope.interface import Interface

from taskd.model.limits import DEFAULT_ATTEMPTS
from taskd.model.states import State
from taskd.model.tasks import FailedAttempt, Task


class Claim(NamedTuple):
    """A delivery that a worker wants to run; ``alone`` when it runs no other last attempt beside it. ``max_attempts``
    is what its kind has, for a task that did not ask for a number."""

    task_id: int
    dispatch: int
    redelivered: bool
    alone: bool = False
    max_attempts: int = DEFAULT_ATTEMPTS


class Outcome(msgspec.Struct, frozen=True):
    """How an attempt ended: COMPLETED with a ``result`` (JSON text), FAILED, or WAITING to be tried again after
    ``delay`` seconds. An attempt that failed has an ``error`` (one line) and perhaps a ``trace`` (several)."""

    task_id: int
    dispatch: int
    attempt: int
    state: State
    result: str | None = None
    error: str | None = None
    trace: str | None = None
    delay: float = 0.0


class Finished(NamedTuple):
    """What the store made of an outcome that was not fenced. ``finished_at`` is None, and ``run_at`` is there, for a
    task that is to be tried again. ``version`` is 0 when it has gone on since, as a repetition may find: then others
    have told of it already."""

    version: int
    finished_at: datetime | None
    run_at: datetime | None = None


class IAttemptStore(Interface):
    """What workers do with tasks: claim, renew, finish, release; and what servers do when a worker is lost."""

    def claim(worker: str, lease: float, claims: Sequence[Claim]) -> Awaitable[Sequence[Task]]:
        """queued -> running under the next attempt, for ``lease`` seconds. Returns the tasks that are this worker's
        now. A redelivered message also takes a running task over; claiming what this worker already holds changes
        nothing and returns it. The last attempt, when the one before was lost with its worker, is only for a
        claim that is ``alone``: a task that kills its worker must not take those beside it along each time. The error
        of an attempt before is gone."""

    def finish(worker: str, outcomes: Sequence[Outcome], again: bool = False) -> Awaitable[Mapping[int, Finished]]:
        """running -> completed, failed, or waiting and not due before the delay is over, where dispatch, attempt and
        worker still match. Attempts that failed are kept, for :meth:`failed_attempts`. A task id missing from the
        answer was fenced. With ``again`` (the batch may have been committed before) what is so finished already
        counts as finished by this call."""

    def release(worker: str, held: Sequence[Claim]) -> Awaitable[Sequence[Task]]:
        """Give running tasks back: running -> waiting, the attempt unspent."""

    def renew(worker: str, lease: float, task_ids: Sequence[int]) -> Awaitable[frozenset[int]]:
        """Renew the leases of what a worker runs in one statement; those of the ids that it still holds. What it holds
        without knowing, by a claim whose answer was lost, is left to expire."""

    def expire_leases(limit: int) -> Awaitable[Sequence[Task]]:
        """Take running tasks whose lease has expired back to waiting, or to failed when attempts are spent. The
        attempts are kept as failed ones."""

    def reset_in_flight() -> Awaitable[int]:
        """Take all queued and running tasks back as if every lease had expired, and empty the outbox: for the start of
        a server that has the store to itself. Returns how many."""

    def failed_attempts(task_id: int) -> Awaitable[Sequence[FailedAttempt]]:
        """The attempts of a task that failed or were lost, in the order in which they ended; the last 100."""
