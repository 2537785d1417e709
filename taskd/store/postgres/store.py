"""The store of many servers: PostgreSQL.

Every batch is one statement in a transaction of its own. When the connection is lost under it, whether it was
committed is unknown; it then runs again on a fresh connection, for a bounded time, and is written so that
this is harmless. All times are the database's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timezone
from typing import Any

import psycopg2
from twisted.internet.task import deferLater
from zope.interface import implementer

from taskd.model.errors import KeyTaken
from taskd.model.states import TERMINAL, State
from taskd.model.tasks import NewTask, Route, Task
from taskd.ports.attempts import Claim, Finished, Outcome
from taskd.ports.scheduling import Dispatch, Dispatched, OutboxBatch
from taskd.ports.store import IStore
from taskd.ports.tasks import Keyed, Page, TaskQuery
from taskd.store.paging import STATES, Filter, end_of, look_at, possible
from taskd.store.postgres import statements as sql
from taskd.store.postgres.accounts import PostgresAccounts
from taskd.store.postgres.arrays import flags, ids, numbers, optional_numbers, optional_times, texts
from taskd.store.postgres.connection import PostgresConnection
from taskd.store.postgres.database import Rows
from taskd.store.postgres.reports import PostgresReports
from taskd.store.refusals import RETRYABLE, no_such_task, not_retryable, too_late
from taskd.store.retrying import MIN_DELAY
from taskd.store.texts import storable

_CANCEL_TRIES = 5


def _task(row: Sequence[Any]) -> Task:
    fields = list(row)
    fields[5] = STATES[row[5]]
    return Task(*fields)


def _tasks(rows: Rows) -> list[Task]:
    return [_task(row) for row in rows]


@implementer(IStore)
class PostgresStore(PostgresAccounts, PostgresReports):
    """IStore on PostgreSQL; made as PostgresBase says."""

    # -- a task's life -----------------------------------------------------------------------------

    async def _batch(self, name: str, batch: str, *args: Any) -> tuple[bool, Rows]:
        """Rows of a statement that notes ``batch`` in the outbox; (True, its tasks) if an earlier run did."""

        async def work(again: bool, connection: PostgresConnection) -> tuple[bool, Rows]:
            try:
                return False, await connection.call(name, *args, again)
            except psycopg2.errors.UniqueViolation as e:
                if e.diag.constraint_name not in ("outbox_pkey", "tasks_key"):
                    raise
                violated = e.diag.constraint_name
            rows = await connection.call("batch", batch)
            if violated == "tasks_key" and not rows:
                raise KeyTaken("the key is taken", field="key")
            return True, rows

        known: tuple[bool, Rows] = await self._run(work)
        return known

    async def create_tasks(self, batch: str, tasks: Sequence[NewTask], settled: Sequence[str] = ()) -> Sequence[Task]:
        known, answer = await self._batch(
            "create_tasks",
            batch,
            numbers([task.user_id for task in tasks]),
            texts([task.task for task in tasks]),
            texts([task.kind for task in tasks]),
            texts([task.queue for task in tasks]),
            texts([task.payload for task in tasks]),
            numbers([task.max_attempts for task in tasks]),
            flags([task.state is State.QUEUED for task in tasks]),
            *_times(tasks),
            *_keys(tasks),
            ids(settled),
            batch,
        )
        if known:
            return _tasks(answer)
        created, now = answer[0]
        return [
            Task(
                task_id,
                task.user_id,
                task.task,
                task.kind,
                task.queue,
                task.state,
                now,
                now if task.run_at is None else max(task.run_at.astimezone(timezone.utc), now),
                task.payload,
                max_attempts=task.max_attempts,
                dispatch=1 if task.state is State.QUEUED else 0,
                timeout=task.timeout,
            )
            for task_id, task in zip(created, tasks, strict=True)
        ]

    async def find_keys(self, keys: Sequence[tuple[int, str]]) -> Mapping[tuple[int, str], Keyed]:
        rows = await self._call("find_keys", numbers([user for user, _ in keys]), texts([key for _, key in keys]))
        return {(user, key): Keyed(task_id, fingerprint) for user, key, task_id, fingerprint in rows}

    async def dispatch(self, batch: str, route: Route, limit: int, after_user: int | None) -> Dispatched:
        known, rows = await self._batch("dispatch", batch, batch, *route, limit, after_user or 0)
        if not known and rows[0][0]:
            known, rows = True, await self._call("batch", batch)
        if known:
            # where the walk ended is not known any more: the next turn goes on behind the last user served
            tasks = _tasks(rows)
            return Dispatched(tasks, max((t.user_id for t in tasks), default=None), len(tasks) == limit)
        tasks = [_task(row[2:-1]) for row in rows if row[2] is not None]
        return Dispatched(tasks, rows[0][1], len(tasks) == limit)

    async def promote(self, limit: int) -> Sequence[tuple[Route, int]]:
        rows = await self._call("promote", limit, repeat=False)
        return [(Route(queue, kind), user) for queue, kind, user in rows]

    async def mark_published(self, batches: Sequence[str]) -> None:
        await self._call("mark_published", ids(batches))

    async def adopt_stale(self, older_than: float, limit: int) -> Sequence[OutboxBatch]:
        rows = await self._call("adopt_stale", older_than, limit, repeat=False)
        batches: dict[str, dict[Route, list[Dispatch]]] = {}
        for batch, queue, kind, task_id, number in rows:
            messages = batches.setdefault(batch, {})
            if task_id is not None:
                messages.setdefault(Route(queue, kind), []).append(Dispatch(task_id, number))
        return [OutboxBatch(batch, messages) for batch, messages in batches.items()]

    async def claim(self, worker: str, lease: float, claims: Sequence[Claim]) -> Sequence[Task]:
        claims = sorted(claims)
        args = (
            numbers([c.task_id for c in claims]),
            numbers([c.dispatch for c in claims]),
            flags([c.redelivered for c in claims]),
            flags([c.alone for c in claims]),
            numbers([c.max_attempts for c in claims]),
        )
        statement = "claim_redelivered" if any(c.redelivered for c in claims) else "claim"
        return _tasks(await self._call(statement, worker, lease, *args))

    async def finish(self, worker: str, outcomes: Sequence[Outcome], again: bool = False) -> Mapping[int, Finished]:
        # In one order everywhere, so that two batches never wait for each other's rows.
        outcomes = sorted(outcomes, key=lambda o: o.task_id)
        completed = [o for o in outcomes if o.state is State.COMPLETED]
        failed = [o for o in outcomes if o.state is not State.COMPLETED]
        rows = await self._complete(worker, completed, again) if completed else []
        rows += await self._fail(worker, failed, again) if failed else []
        return {task_id: Finished(version, when, run_at) for task_id, version, when, run_at in rows}

    async def _complete(self, worker: str, outcomes: Sequence[Outcome], again: bool) -> Rows:
        key = worker, *_attempts(outcomes)
        results = texts([o.result or "" for o in outcomes])

        async def work(repeated: bool, connection: PostgresConnection) -> Rows:
            rows = await connection.call("complete", *key, results)
            if (again or repeated) and len(rows) < len(outcomes):
                rows += await connection.call("finished_so", *key, texts([State.COMPLETED.value] * len(outcomes)))
            return rows

        rows: Rows = await self._run(work)
        return rows

    async def _fail(self, worker: str, outcomes: Sequence[Outcome], again: bool) -> Rows:
        args = (
            worker,
            *_attempts(outcomes),
            flags([o.state is State.FAILED for o in outcomes]),
            texts([o.result or "" for o in outcomes]),
            texts([storable(o.error) for o in outcomes]),
            texts([storable(o.trace) for o in outcomes]),
            numbers([o.delay for o in outcomes]),
        )
        for_good = [o for o in outcomes if o.state is State.FAILED]
        tried_again = [o for o in outcomes if o.state is State.WAITING]

        async def work(repeated: bool, connection: PostgresConnection) -> Rows:
            rows = await connection.call("fail", *args)
            if (again or repeated) and len(rows) < len(outcomes):
                states = texts([o.state.value for o in for_good])
                rows += await connection.call("finished_so", worker, *_attempts(for_good), states)
                errors = texts([storable(o.error) for o in tried_again])
                done = {row[0] for row in rows}
                earlier = await connection.call("failed_so", worker, *_attempts(tried_again), errors)
                rows += [row for row in earlier if row[0] not in done]
            return rows

        rows: Rows = await self._run(work)
        return rows

    async def release(self, worker: str, held: Sequence[Claim]) -> Sequence[Task]:
        held = sorted(held)
        args = numbers([c.task_id for c in held]), numbers([c.dispatch for c in held])
        return _tasks(await self._call("release", worker, *args))

    async def renew(self, worker: str, lease: float, task_ids: Sequence[int]) -> frozenset[int]:
        args = worker, lease, numbers(task_ids)
        rows = await self._call("renew", *args)
        if any(passed_over for _, passed_over in rows):
            # what stood in the way is done in a moment, and a lease must not depend on that moment
            await deferLater(self._reactor, MIN_DELAY)
            rows = await self._call("renew", *args)
        return frozenset(task_id for task_id, _ in rows)

    async def cancel(self, user_id: int, task_id: int) -> Task:
        for _ in range(_CANCEL_TRIES):
            if possible([task_id]) and (rows := await self._call("cancel", user_id, task_id)):
                return _task(rows[0])
            task = await self._of_user(user_id, task_id)
            if task.state in TERMINAL:
                break
            # it had ended a moment ago, and is being tried again since
        if task.state is not State.CANCELLED:
            raise too_late(task)
        return task

    async def retry(self, user_id: int, task_id: int) -> Task:
        task = await self._of_user(user_id, task_id)
        if task.state not in RETRYABLE:
            raise not_retryable(task)
        if rows := await self._call("retry", task.id, task.version):
            return _task(rows[0])
        # done since by an earlier run, or by somebody else
        return await self._of_user(user_id, task_id)

    async def _of_user(self, user_id: int, task_id: int) -> Task:
        for task in await self.get_tasks(user_id, [task_id]):
            return task
        raise no_such_task(task_id)

    # -- repair ------------------------------------------------------------------------------------
    # What changes nothing when repeated but would not be told again is not repeated: the caller learns by
    # Unavailable that something may have changed unseen, and its next turn finds what is left.

    async def expire_leases(self, limit: int) -> Sequence[Task]:
        return _tasks(await self._call("expire_leases", limit, repeat=False))

    async def requeue_lost(self, route: Route, older_than: float, limit: int) -> Sequence[Task]:
        return _tasks(await self._call("requeue_lost", *route, older_than, limit, repeat=False))

    async def reset_in_flight(self) -> int:
        return int((await self._call("reset_in_flight"))[0][0])

    async def count_queued(self) -> Mapping[Route, int]:
        return {Route(queue, kind): count for queue, kind, count in await self._call("count_queued")}

    async def delete_finished(self, seconds: float, after_id: int, limit: int) -> tuple[int, int | None]:
        [(deleted, last)] = await self._call("delete_finished", seconds, after_id, limit)
        return deleted, last

    # -- reading -----------------------------------------------------------------------------------

    async def get_tasks(self, user_id: int, ids: Sequence[int]) -> Sequence[Task]:
        return _tasks(await self._call("get_tasks", user_id, numbers(possible(ids))))

    async def find_tasks(self, ids: Sequence[int]) -> Sequence[Task]:
        return _tasks(await self._call("find_tasks", numbers(ids)))

    async def list_tasks(self, user_id: int, query: TaskQuery) -> Page:
        wanted = Filter(query, now="now()", placeholder="%s")
        if not wanted.statuses:
            return Page((), None)
        text, args = _listing(user_id, query, wanted)
        rows: Rows = await self._run(lambda again, connection: connection.query(text, args))
        more, end = len(rows) > query.limit, None
        if wanted.walked:
            # one that does not pass is only there to tell where the walk ended
            end = rows[-1][2] if rows and rows[-1][1] else None
            rows = [row[2:] for row in rows if row[0]]
        tasks = _tasks(rows[: query.limit])
        return Page(tasks, tasks[-1].id if more else end)


def _times(tasks: Sequence[NewTask]) -> tuple[str, str]:
    """Moments to run at and timeouts as arrays, empty when no task has any."""
    if all(task.run_at is None and task.timeout is None for task in tasks):
        return "{}", "{}"
    return optional_times([task.run_at for task in tasks]), optional_numbers([task.timeout for task in tasks])


def _attempts(outcomes: Sequence[Outcome]) -> tuple[str, str, str]:
    """Ids, dispatch and attempt numbers as arrays."""
    return (
        numbers([o.task_id for o in outcomes]),
        numbers([o.dispatch for o in outcomes]),
        numbers([o.attempt for o in outcomes]),
    )


def _keys(tasks: Sequence[NewTask]) -> tuple[str, str]:
    """Keys and fingerprints as arrays, empty when no task has any, which is cheaper than a row of blanks."""
    if all(task.key is None for task in tasks):
        return "{}", "{}"
    return texts([task.key or "" for task in tasks]), texts([task.fingerprint or "" for task in tasks])


def _listing(user_id: int, query: TaskQuery, wanted: Filter) -> tuple[str, Sequence[Any]]:
    """The statement for a page with one row more than asked for, and its parameters."""
    before = end_of(query)
    count = query.limit + 1
    if wanted.in_flight:
        return sql.list_in_flight(wanted.condition), (user_id, before, *wanted.args, count)
    each = look_at(query) if wanted.walked else count
    walk = [v for status in wanted.statuses for v in (user_id, status, before, each, user_id, status)]
    if not wanted.walked:
        return sql.list_walk(len(wanted.statuses)), (*walk, count)
    args = *wanted.args, each, *walk, each, count
    return sql.list_filtered(len(wanted.statuses), wanted.condition), args
