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
    """A message that a worker wants to run. ``max_attempts`` is the number of the kind, for a task without one."""

    task_id: int
    dispatch: int
    max_attempts: int = DEFAULT_ATTEMPTS


class Held(NamedTuple):
    """An attempt that stands in the store as running under a worker's name."""

    task_id: int
    dispatch: int
    attempt: int


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
    """Workers claim, finish and release tasks; servers take tasks back from dead workers."""

    def claim(worker: str, claims: Sequence[Claim]) -> Awaitable[Sequence[Task]]:
        """queued -> running under the next attempt. Returns the tasks that this worker now holds.

        A task that this worker holds already under the same dispatch is returned unchanged. Nobody takes a running task
        over. A task with losses has not begun before :meth:`begin`. Claims nothing unless the worker is registered as
        serving or draining. Clears the error of the attempt before."""

    def begin(worker: str, held: Sequence[Held]) -> Awaitable[Sequence[Held]]:
        """These claimed tasks with losses are about to begin: from now on their worker's death is a loss of theirs.
        Returns those that the worker holds. Running it again changes nothing."""

    def finish(worker: str, outcomes: Sequence[Outcome], again: bool = False) -> Awaitable[Mapping[int, Finished]]:
        """running -> completed, failed, or waiting and not due before the delay is over.

        Only if dispatch, attempt and worker still match; a task id that is missing from the answer was fenced. The
        attempt has ended by itself: ``losses`` is 0 again. Failed attempts are recorded for :meth:`failed_attempts`.
        With ``again`` (an earlier run of this batch may have been committed), tasks that already have this outcome
        count as finished by this call."""

    def release(worker: str, held: Sequence[Held], stopping: bool = False) -> Awaitable[Sequence[Task]]:
        """running -> waiting; the attempt does not count. Only if dispatch, attempt and worker still match. Returns the
        released tasks, those of an earlier run included. ``stopping``: the worker stops, so ``returns`` grows."""

    def held_by(worker: str) -> Awaitable[Sequence[Held]]:
        """What stands as running under this worker's name."""

    def take_back(dead: Mapping[str, int]) -> Awaitable[Sequence[Task]]:
        """Fence the workers of ``dead`` whose beat is still the given number, then take back every running task whose
        worker is neither serving nor draining. Returns those tasks.

        A task is a candidate if it has begun, its worker ran its kind in the worker's own process (isolation async or
        thread, or not known), and its handler was entered at the death, if the watchdog has seen any that was. The
        attempt is spent, with a record for :meth:`failed_attempts`, if the worker's culprit is this very dispatch of
        the task; if there is no culprit and the task is the only candidate of this worker with losses; if this would
        be its fourth unspent loss (``losses`` is 3 or more); or if it has begun and ``max_attempts`` is 1. It fails if
        that was its last attempt. ``error`` says so, also while another attempt waits. Otherwise the attempt does not
        count. ``losses`` grows by one for every candidate. What is not failed is waiting and due."""

    def reset_in_flight() -> Awaitable[int]:
        """Take back everything that is running by the rules of :meth:`take_back`, all as one worker without a culprit;
        move queued tasks to waiting, forget all workers, and empty the outbox: for the start of a server that no other
        process shares the store with. Returns the number of tasks."""

    def failed_attempts(task_id: int) -> Awaitable[Sequence[FailedAttempt]]:
        """The last 100 attempts of a task that failed or were lost, in the order in which they ended."""
