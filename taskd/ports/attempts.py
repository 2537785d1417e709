"""Attempts in the store: how a worker claims, keeps, ends and releases a task."""

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
    """A message that a worker wants to run. ``redelivered`` is the broker's flag. ``alone`` is True when the worker
    runs no other last attempt at the same time. ``max_attempts`` is the number of the kind, for a task without one."""

    task_id: int
    dispatch: int
    redelivered: bool
    alone: bool = False
    max_attempts: int = DEFAULT_ATTEMPTS


class Outcome(msgspec.Struct, frozen=True):
    """How an attempt ended: COMPLETED with a ``result`` (JSON text), FAILED, or WAITING for a retry after ``delay``
    seconds. A failed attempt has an ``error`` (one line) and may have a ``trace`` (several lines)."""

    task_id: int
    dispatch: int
    attempt: int
    state: State
    result: str | None = None
    error: str | None = None
    trace: str | None = None
    delay: float = 0.0


class Finished(NamedTuple):
    """A stored outcome. A task that will be retried has a ``run_at`` and no ``finished_at``.

    ``version`` is the task's. It is 0 if a repeated batch finds that the task has already moved on; do not announce it
    then."""

    version: int
    finished_at: datetime | None
    run_at: datetime | None = None


class IAttemptStore(Interface):
    """Workers claim, renew, finish and release tasks; servers take tasks back from lost workers."""

    def claim(worker: str, lease: float, claims: Sequence[Claim]) -> Awaitable[Sequence[Task]]:
        """queued -> running under the next attempt, for ``lease`` seconds. Returns the tasks that this worker now
        holds.

        A redelivered message also takes over a running task, but not on its last attempt. A task that this worker holds
        already is returned unchanged. If the attempt before was lost with its worker, only a claim that is ``alone``
        gets the last attempt: a task that kills its worker must not kill the tasks beside it every time. Clears the
        error of the attempt before."""

    def finish(worker: str, outcomes: Sequence[Outcome], again: bool = False) -> Awaitable[Mapping[int, Finished]]:
        """running -> completed, failed, or waiting and not due before the delay is over.

        Only if dispatch, attempt and worker still match; a task id that is missing from the answer was fenced. Failed
        attempts are recorded for :meth:`failed_attempts`. With ``again`` (an earlier run of this batch may have been
        committed), tasks that already have this outcome count as finished by this call."""

    def release(worker: str, held: Sequence[Claim]) -> Awaitable[Sequence[Task]]:
        """running -> waiting; the attempt does not count. Returns the released tasks, those of an earlier run
        included."""

    def renew(worker: str, lease: float, task_ids: Sequence[int]) -> Awaitable[frozenset[int]]:
        """Renew the leases of these tasks; returns the ids that the worker still holds. The worker names only tasks
        that it knows: a task that it claimed without receiving the answer is left to expire."""

    def expire_leases(limit: int) -> Awaitable[Sequence[Task]]:
        """Move up to ``limit`` running tasks whose lease has expired to waiting, or to failed when no attempt is left.
        Their attempts are recorded as failed."""

    def reset_in_flight() -> Awaitable[int]:
        """Treat every lease as expired, move queued tasks to waiting, and empty the outbox: for the start of a server
        that no other process shares the store with. Returns the number of tasks."""

    def failed_attempts(task_id: int) -> Awaitable[Sequence[FailedAttempt]]:
        """The last 100 attempts of a task that failed or were lost, in the order in which they ended."""
