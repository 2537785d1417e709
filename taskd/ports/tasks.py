"""Tasks in the store, as their owners create, read, cancel and retry them."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from zope.interface import Interface

from taskd.model.tasks import NewTask, Task


class Keyed(NamedTuple):
    """The task that was stored under an idempotency key, and what was asked for."""

    task_id: int
    fingerprint: str


class TaskQuery(msgspec.Struct, frozen=True):
    """A page of one user's tasks, newest first.

    ``state`` and ``status`` are words of :mod:`taskd.model.states`; ``before`` is the task id below which the page
    begins; ``limit`` is 1 to 500.
    """

    limit: int
    before: int | None = None
    status: str | None = None
    state: str | None = None
    kind: str | None = None


class Page(msgspec.Struct, frozen=True):
    """``before`` for the next page, None on the last. With a filter a page may be short, or empty, and not the last."""

    tasks: Sequence[Task]
    before: int | None


class ITaskStore(Interface):
    """Tasks as their owners see them: create, cancel, retry, read, delete."""

    def create_tasks(batch: str, tasks: Sequence[NewTask], settled: Sequence[str] = ()) -> Awaitable[Sequence[Task]]:
        """Insert all tasks or none, in order, and one outbox row ``batch`` (a UUID) that names them; delete the
        ``settled`` outbox rows. Running the same batch again creates nothing and returns the same tasks.

        A QUEUED task has dispatch number 1, a WAITING one 0; one with a ``run_at`` in the future, which is WAITING,
        joins the backlog by :meth:`promote` only. Raises KeyTaken, and stores nothing, when the key of a task
        is taken: :meth:`find_keys` then finds it.
        """

    def find_keys(keys: Sequence[tuple[int, str]]) -> Awaitable[Mapping[tuple[int, str], Keyed]]:
        """Which of these (user id, key) are taken, and by what."""

    def cancel(user_id: int, task_id: int) -> Awaitable[Task]:
        """waiting, queued or running -> cancelled. Cancelling a cancelled task changes nothing. Raises NotFound,
        Conflict."""

    def retry(user_id: int, task_id: int) -> Awaitable[Task]:
        """failed or cancelled -> waiting and due, its attempts counted from 0 again, as if nothing had been tried but
        for the log and the failed attempts, which stay. Raises NotFound, and Conflict in any other state."""

    def get_tasks(user_id: int, ids: Sequence[int]) -> Awaitable[Sequence[Task]]:
        """Those of the ids that are this user's, in no particular order."""

    def find_tasks(ids: Sequence[int]) -> Awaitable[Sequence[Task]]:
        """Those of the ids that exist, whoever's they are, in no particular order."""

    def list_tasks(user_id: int, query: TaskQuery) -> Awaitable[Page]:
        """A page, newest first. Its cost does not grow with the length of the list."""

    def delete_finished(seconds: float, after_id: int, limit: int) -> Awaitable[tuple[int, int | None]]:
        """Look at the ``limit`` oldest tasks with an id above ``after_id`` and delete those that ended more than so
        many seconds ago, with their logs and attempts. Returns how many, and the id of the last one looked at: None
        when there are none left that were created so long ago."""
