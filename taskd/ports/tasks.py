"""Tasks in the store, as their owners create, read, cancel and retry them."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from zope.interface import Interface

from taskd.model.states import State
from taskd.model.tasks import NewTask, Task


class Keyed(NamedTuple):
    """The task that was stored under an idempotency key, and the fingerprint of its request."""

    task_id: int
    fingerprint: str


class TaskState(NamedTuple):
    """What a waiter must know of a task: a few bytes, however large the task is."""

    task_id: int
    user_id: int
    state: State
    version: int


class TaskQuery(msgspec.Struct, frozen=True):
    """A page of one user's tasks, newest first.

    ``state`` and ``status`` are names from :mod:`taskd.model.states`. All ids of the page are below ``before``.
    ``limit`` is 1 to 500.
    """

    limit: int
    before: int | None = None
    status: str | None = None
    state: str | None = None
    kind: str | None = None


class Page(msgspec.Struct, frozen=True):
    """``before`` is for the query of the next page; None on the last page. With a filter, a page that is short or empty
    need not be the last."""

    tasks: Sequence[Task]
    before: int | None


class Created(msgspec.Struct, frozen=True):
    """The tasks of a creation in their order, and fresh ids for the next one."""

    tasks: Sequence[Task]
    ids: Sequence[int]


class ITaskStore(Interface):
    """Tasks as their owners see them: create, cancel, retry, read, delete."""

    def draw_ids(count: int) -> Awaitable[Sequence[int]]:
        """So many ids that no task has or had, in ascending order. Flushed: a crash does not draw them again."""

    def create_tasks(tasks: Sequence[NewTask], spare: int = 0) -> Awaitable[Created]:
        """Insert all tasks or none, under the ids that they have, and draw ``spare`` fresh ids. Running it again with
        the same ids creates nothing and returns the same tasks as they are now. An id that another task has, because
        the database has gone on from an older state and drawn it again, is replaced by a fresh one.

        A task with a ``worker`` is queued and held by it, with dispatch and attempt 1, if that worker is serving;
        otherwise it waits like any other. A waiting task with a ``delay`` or a ``run_at`` in the future joins the
        backlog only by :meth:`promote`. Raises KeyTaken, and stores nothing, when the key of a task is taken:
        :meth:`find_keys` then finds its task. Raises BadRequest for a text that cannot be stored.
        """

    def find_keys(keys: Sequence[tuple[int, str]]) -> Awaitable[Mapping[tuple[int, str], Keyed]]:
        """The tasks that have these pairs of user id and key; pairs that are free are missing."""

    def cancel(user_id: int, task_id: int) -> Awaitable[Task]:
        """waiting, queued or running -> cancelled. What a worker holds stays held until the worker has dropped it.
        Cancelling a cancelled task changes nothing. Raises NotFound, Conflict."""

    def retry(user_id: int, task_id: int) -> Awaitable[Task]:
        """failed or cancelled -> waiting and due, with 0 attempts. Result, error and progress are cleared; the log and
        the failed attempts stay. A task that is still held joins the backlog when its worker has dropped it. Raises
        NotFound, and Conflict in any other state."""

    def get_tasks(user_id: int, ids: Sequence[int]) -> Awaitable[Sequence[Task]]:
        """The tasks of this user among these ids, in no particular order."""

    def get_listed(user_id: int, ids: Sequence[int]) -> Awaitable[Sequence[Task]]:
        """The same as a list has them: without payload, and with no more of a result than shows that it is too large
        for a list."""

    def find_tasks(ids: Sequence[int]) -> Awaitable[Sequence[Task]]:
        """The tasks of all users among these ids, in no particular order, as a list has them."""

    def find_states(ids: Sequence[int]) -> Awaitable[Sequence[TaskState]]:
        """The states of the tasks of all users among these ids, in no particular order."""

    def list_tasks(user_id: int, query: TaskQuery) -> Awaitable[Page]:
        """A page, newest first. Its cost does not grow with the length of the list."""

    def delete_finished(seconds: float, after_id: int, limit: int) -> Awaitable[tuple[int, int | None]]:
        """Read the ``limit`` oldest tasks with an id above ``after_id``, and delete those that ended more than
        ``seconds`` ago, with their logs and attempts. What they take up is subtracted from their users' bytes. Returns
        the number of deleted tasks and the id of the last task read, which is ``after_id`` of the next call; None when
        no task is left that was created so long ago."""
