"""What a task is: a new one, a stored one, its route."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import msgspec

from taskd.model.limits import DEFAULT_ATTEMPTS
from taskd.model.states import State

DEFAULT_KIND = "simulate"

PROGRAM_PREFIX = "command:"
"""How the kinds of programs begin."""


class Route(NamedTuple):
    """The tasks of one kind in one queue: the same workers can run them."""

    queue: str
    kind: str

    @property
    def name(self) -> str:
        """A name for people. The default kind has the queue's own name, which contains no ``#``."""
        return self.queue if self.kind == DEFAULT_KIND else f"{self.queue}#{self.kind}"


class NewTask(msgspec.Struct):
    """A user's valid request for one task. ``payload`` is the text of a JSON object.

    ``max_attempts`` 0 means as many as its kind has, which is known when it is first assigned. ``timeout`` is in
    seconds. A ``run_at`` in the future keeps the task waiting until then, a ``delay`` for so many seconds after it was
    stored; the database's clock decides both. A user has at most one task with the same ``key``; ``fingerprint`` tells
    whether a second request with this key asks for the same task. ``id`` was drawn before, so that a repetition of its
    creation changes nothing. ``worker`` is the worker that it is assigned to by its creation; None: it waits. Its texts
    take up ``size`` bytes of a quota.
    """

    user_id: int
    task: str
    kind: str = DEFAULT_KIND
    payload: str = "{}"
    queue: str = ""
    max_attempts: int = DEFAULT_ATTEMPTS
    timeout: float | None = None
    run_at: datetime | None = None
    delay: float | None = None
    key: str | None = None
    fingerprint: str | None = None
    id: int = 0
    worker: str | None = None
    size: int = 0

    @property
    def route(self) -> Route:
        """Its kind and queue."""
        return Route(self.queue, self.kind)


class Task(msgspec.Struct):
    """One row of the table ``tasks``. Times are aware and in UTC.

    ``version`` grows by one with every change of state, so that a reader can tell an old view from a new one.
    ``payload`` and ``result`` are JSON text; ``error`` is one line for people about the last attempt that failed.
    ``max_attempts`` is 0 until it is known. The handler sets ``progress``, from 0 to 1, and a ``note``.

    ``losses`` is how often an attempt was lost with its worker since an attempt of the task has ended by itself; a task
    with losses is a suspect. ``returns`` is how often a worker that was stopping has given the task back.

    ``attempt`` counts from the assignment on: while QUEUED it is the attempt that is about to begin. ``worker`` is the
    worker that holds it or held it last.
    """

    id: int
    user_id: int
    task: str
    kind: str
    queue: str
    state: State
    created_at: datetime
    run_at: datetime
    payload: str = "{}"
    attempt: int = 0
    max_attempts: int = DEFAULT_ATTEMPTS
    dispatch: int = 0
    version: int = 1
    started_at: datetime | None = None
    finished_at: datetime | None = None
    result: str | None = None
    error: str | None = None
    timeout: float | None = None
    progress: float | None = None
    note: str | None = None
    losses: int = 0
    returns: int = 0
    worker: str | None = None

    @property
    def route(self) -> Route:
        """Its kind and queue."""
        return Route(self.queue, self.kind)


class FailedAttempt(NamedTuple):
    """An attempt that failed or was lost."""

    dispatch: int
    attempt: int
    worker: str
    started_at: datetime | None
    ended_at: datetime
    error: str
    trace: str | None


def shown_attempt(task: Task) -> int:
    """The number that readers see: of the last attempt that has begun."""
    return task.attempt - 1 if task.state is State.QUEUED else task.attempt


def shown_state(task: Task, now: datetime) -> str:
    """The state that readers see: some ``waiting`` tasks are shown as ``scheduled`` or ``retrying``."""
    if task.state is State.WAITING:
        if task.attempt:
            return "retrying"
        if task.run_at > now:
            return "scheduled"
    return task.state.value
