"""Attempts in the store: how a worker finds, begins, ends and gives back what is assigned to it."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec
from zope.interface import Interface

from taskd.model.states import State
from taskd.model.tasks import FailedAttempt, Task


class Held(NamedTuple):
    """A task that a worker holds, and the number of its assignment. The two together never come again."""

    task_id: int
    dispatch: int


class Claim(NamedTuple):
    """A task that a worker holds, as it knows it. The time of the creation tells it from another task that has got the
    same id since."""

    task_id: int
    dispatch: int
    attempt: int
    max_attempts: int
    version: int
    created_at: datetime


class Assigned(NamedTuple):
    """A task that a worker has just found under its name, and its owner's name and weight."""

    task: Task
    user: str
    weight: float = 1.0


class Standing(NamedTuple):
    """A task under a worker's name, as the store has it. ``wanted`` is False if the worker is to stop it and to
    :meth:`IAttemptStore.release` it: it was cancelled, and perhaps retried since."""

    task_id: int
    dispatch: int
    wanted: bool


class Begun(NamedTuple):
    """An attempt that has begun ``age`` seconds ago, or is about to begin."""

    task_id: int
    dispatch: int
    age: float = 0.0


class Started(NamedTuple):
    """How a begun attempt stands in the store."""

    version: int
    started_at: datetime


class Outcome(msgspec.Struct, frozen=True):
    """How an attempt ended: COMPLETED with a ``result`` (JSON text), FAILED, or WAITING for a retry after ``delay``
    seconds. A failed attempt has an ``error`` (one line) and may have a ``trace`` (several lines). The attempt began
    ``age`` seconds ago."""

    task_id: int
    dispatch: int
    attempt: int
    state: State
    result: str | None = None
    error: str | None = None
    trace: str | None = None
    delay: float = 0.0
    age: float = 0.0


class Finished(NamedTuple):
    """A stored outcome. A task that will be retried has a ``run_at`` and no ``finished_at``.

    ``version`` is the task's. It is 0 if a repeated batch finds that the task has already moved on; do not announce it
    then."""

    version: int
    started_at: datetime | None
    finished_at: datetime | None
    run_at: datetime | None = None


class IAttemptStore(Interface):
    """Workers find, begin, finish and release what servers have assigned to them; servers take it back from the dead.

    A worker holds a task from its assignment (``held`` is true) until :meth:`finish` or :meth:`release`, or until it is
    dead. Everything a worker says counts only for what it holds: id, dispatch and worker match.
    """

    def look(worker: str, known: Sequence[int]) -> Awaitable[Sequence[Assigned]]:
        """The QUEUED tasks under this worker's name, without those whose ids are ``known``: lowest ids first, up to 500
        tasks and about 1 MiB of payloads, at least one."""

    def standing(worker: str) -> Awaitable[Sequence[Standing]]:
        """Everything that the worker holds, in whatever state."""

    def assert_held(worker: str, claims: Sequence[Claim]) -> Awaitable[Sequence[int]]:
        """The worker says what it holds, after the database has gone on from an older state: a standby that lagged
        behind has taken over, or a backup was restored. Assignments that are lost are made again: a task that has not
        ended and whose dispatch is lower is QUEUED under this worker's name, with the numbers of the claim and a
        version that nobody has seen. Returns the ids of those that the worker holds now; to the others it has no
        right. Nothing is assigned to anybody before all living workers have said it. Nothing happens if the worker is
        fenced or gone or not registered. Running it again changes nothing."""

    def begin(worker: str, begun: Sequence[Begun], flush: bool) -> Awaitable[Mapping[int, Started]]:
        """queued -> running; ``started_at`` is now less the age, ``version`` + 1. Returns by id those that the worker
        holds and that run, those that were running before as they are. Running it again changes nothing. Waits for the
        disk only with ``flush``."""

    def finish(worker: str, outcomes: Sequence[Outcome], again: bool = False) -> Awaitable[Mapping[int, Finished]]:
        """queued or running -> completed, failed, or waiting and not due before the delay is over. The worker holds
        them no longer.

        A task id that is missing from the answer was fenced. ``version`` grows by 2 from queued, by 1 from running, so
        that it does not matter whether the begin was stored. The attempt has ended by itself: ``losses`` is 0 again.
        Failed attempts are recorded for :meth:`failed_attempts`. With ``again`` (an earlier run of this batch may have
        been committed), tasks that already have this outcome count as finished by this call."""

    def release(worker: str, held: Sequence[Held], stopping: bool = False) -> Awaitable[Sequence[Task]]:
        """The worker holds these no longer, and nothing of them runs there. queued or running -> waiting and due, the
        attempt does not count, ``worker`` is NULL; a cancelled task stays as it is; a task that was retried since is
        waiting and due, as it was. Returns those that this call has put into the backlog, the retried ones with them,
        without their payloads. ``stopping``: the worker stops, so ``returns`` of those that were running grows. Running
        it again changes nothing."""

    def take_back(dead: Mapping[str, int]) -> Awaitable[Sequence[Task]]:
        """Fence the workers of ``dead`` whose beat is still the given number, then take back everything that is held by
        a worker that is neither serving nor draining (or not registered). Returns, without their payloads, those whose
        state has changed.

        A cancelled or retried task is no longer held, nothing else. Of the others, queued or running, a task is a
        candidate if its worker ran its kind in the worker's own process (isolation async or thread, or not known); if
        it may have begun; and if the watchdog, when it has seen the death, counts it among those that had begun. A
        queued task with losses, or with ``max_attempts`` 1, has not begun, because workers store such a begin first;
        any other may have.

        The attempt is spent, with a record for :meth:`failed_attempts`, if the worker's culprit is this very dispatch
        of the task; if there is no culprit and the task is the only candidate of this worker with losses; if this would
        be its fourth unspent loss (``losses`` is 3 or more); or if it was running and ``max_attempts`` is 1. It fails
        if that was its last attempt. ``error`` says so, also while another attempt waits. Otherwise the attempt does
        not count. ``losses`` grows by one for every candidate. What is not failed is waiting and due."""

    def reset_in_flight() -> Awaitable[int]:
        """Take back everything that is held by the rules of :meth:`take_back`, all as one worker without a culprit, and
        forget all workers: for the start of a server that no other process shares the store with. Returns the number of
        tasks."""

    def failed_attempts(task_id: int) -> Awaitable[Sequence[FailedAttempt]]:
        """The last 100 attempts of a task that failed or were lost, in the order in which they ended."""
