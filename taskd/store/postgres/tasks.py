"""Tasks in PostgreSQL, as their owners create, read, cancel and retry them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg2

from taskd.model.states import TERMINAL
from taskd.model.tasks import NewTask, Task
from taskd.ports.tasks import Created, Keyed, TaskState
from taskd.store.postgres.arrays import array, texts
from taskd.store.postgres.connection import PostgresConnection, Rows
from taskd.store.postgres.listing import PostgresListing
from taskd.store.postgres.quotas import LONG_PAST
from taskd.store.postgres.rows import LISTED, TIMELINE, to_task, to_tasks
from taskd.store.refusals import check_cancelled, check_retryable, found_task, key_taken, valid_ids
from taskd.store.rows import ALL, NOT_BEGUN, STATES, created_task, whole_micros

_CANCEL_TRIES = 5

_SPARE_IDS = 100

# an array of so many fresh ids, NULL for none; the transaction id makes the commit wait for the disk
_FRESH = """
(SELECT array_agg(nextval('tasks_id_seq')) FROM generate_series(1, {}) WHERE pg_current_xact_id() IS NOT NULL)
"""

PREPARED = {
    # A second run meets the primary key and creates nothing; it never meets the key of its own task. A column that few
    # tasks have comes as an array that is empty when no task has it. A run_at in the past counts as none. A fence that
    # is committed at the same moment may come too late: the next take_back finds these tasks.
    "create_tasks": f"""
WITH new AS (
    INSERT INTO tasks (id, user_id, task, kind, queue, payload, max_attempts, state, worker, held, dispatch, attempt,
        run_at, due, timeout, key, fingerprint)
    SELECT n.id, user_id, task, kind, queue, payload, max_attempts,
        CASE WHEN w.name IS NULL THEN 'waiting' ELSE 'queued' END, w.name, w.name IS NOT NULL,
        (w.name IS NOT NULL)::int, (w.name IS NOT NULL)::int,
        greatest(run_at, now() + make_interval(secs => delay), now()),
        w.name IS NOT NULL OR coalesce(greatest(run_at, now() + make_interval(secs => delay)) <= now(), true),
        timeout, nullif(key, ''), nullif(fingerprint, '')
    FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::json[], $7::int[], $8::text[],
        $9::timestamptz[], $10::float8[], $11::float8[], $12::text[], $13::text[])
        AS n (id, user_id, task, kind, queue, payload, max_attempts, worker, run_at, delay, timeout, key, fingerprint)
        LEFT JOIN workers w ON w.name = n.worker AND w.state = 'serving' AND w.timeline = {TIMELINE}
    ON CONFLICT (id) DO NOTHING RETURNING id, held
)
SELECT array_agg(id) FILTER (WHERE held), array_agg(id) FILTER (WHERE NOT held), {_FRESH.format("$14")}, now() FROM new
""",
    "draw_ids": f"SELECT {_FRESH.format('$1')}",
    "find_keys": """
SELECT t.user_id, t.key, t.id, t.fingerprint
FROM unnest($1::bigint[], $2::text[]) AS k (user_id, key) JOIN tasks t ON t.user_id = k.user_id AND t.key = k.key
""",
    "cancel": f"""
UPDATE tasks t SET state = 'cancelled', version = version + 1, finished_at = now()
WHERE id = $2 AND user_id = $1 AND state IN ('waiting', 'queued', 'running') RETURNING {LISTED}
""",
    # $2 is the version under which the caller saw the task as failed or cancelled. If the version is another one now,
    # an earlier run or somebody else has retried the task already.
    "retry": f"""
UPDATE tasks t SET state = 'waiting', version = version + 1, attempt = 0, run_at = now(), due = true,
    finished_at = NULL, worker = CASE WHEN held THEN worker END, result = NULL, error = NULL, {NOT_BEGUN}, losses = 0,
    returns = 0
WHERE id = $1 AND version = $2 AND state IN ('failed', 'cancelled') RETURNING {LISTED}
""",
    # `+ 0` keeps the planner from walking all tasks of the user: it finds the tasks by their ids.
    "find_tasks": f"SELECT {LISTED} FROM tasks t WHERE id = ANY ($1::bigint[])",
    "find_created": f"SELECT {ALL} FROM tasks WHERE id = ANY ($1::bigint[])",
    "find_states": "SELECT id, user_id, state, version FROM tasks WHERE id = ANY ($1::bigint[])",
    "get_tasks": f"SELECT {ALL} FROM tasks WHERE id = ANY ($2::bigint[]) AND user_id + 0 = $1",
    "get_listed": f"SELECT {LISTED} FROM tasks t WHERE id = ANY ($2::bigint[]) AND user_id + 0 = $1",
    # Tasks have no index by the time of their end, which would cost every task: so this walks the primary key.
    # What they take up is subtracted in the same transaction, from the row of all hours long past, in the order of the
    # users, so that no two processes deadlock.
    "delete_finished": f"""
WITH seen AS MATERIALIZED (
    SELECT id, created_at < now() - make_interval(secs => $1) AS is_old FROM tasks WHERE id > $2 ORDER BY id LIMIT $3
), deleted AS (
    DELETE FROM tasks t USING seen
    WHERE t.id = seen.id AND seen.is_old AND t.finished_at < now() - make_interval(secs => $1)
    RETURNING t.id, t.user_id,
        octet_length(t.task) + octet_length(t.payload::text) + coalesce(octet_length(t.result::text), 0) AS bytes
), logs AS (
    DELETE FROM task_log l USING deleted WHERE l.task_id = deleted.id RETURNING deleted.user_id, l.bytes
), subtracted AS (
    INSERT INTO user_usage (user_id, hour, tasks, bytes)
    SELECT user_id, {LONG_PAST}, 0, -sum(bytes) FROM (
        SELECT user_id, bytes FROM deleted UNION ALL SELECT user_id, bytes FROM logs) AS b
    GROUP BY user_id ORDER BY user_id
    ON CONFLICT (user_id, hour) DO UPDATE SET bytes = user_usage.bytes + excluded.bytes
), attempts AS (
    DELETE FROM task_attempts a USING deleted WHERE a.task_id = deleted.id
)
SELECT (SELECT count(*) FROM deleted),
    (SELECT CASE WHEN count(*) = $3 AND bool_and(is_old) THEN max(id) END FROM seen)
""",
}


class PostgresTasks(PostgresListing):
    """ITaskStore on PostgreSQL."""

    async def draw_ids(self, count: int) -> Sequence[int]:
        [(ids,)] = await self._call("draw_ids", count)
        return sorted(ids or ())

    async def create_tasks(self, tasks: Sequence[NewTask], spare: int = 0) -> Created:
        # servers take keys in one order, so that no two of them wait for each other
        rows = sorted(tasks, key=_key_of) if any(task.key for task in tasks) else tasks
        [(assigned, waiting, fresh, now)] = await self._call(
            _create,
            array([task.id for task in rows]),
            array([task.user_id for task in rows]),
            texts([task.task for task in rows]),
            texts([task.kind for task in rows]),
            texts([task.queue for task in rows]),
            texts([task.payload for task in rows]),
            array([task.max_attempts for task in rows]),
            _sparse(texts, [task.worker or "" for task in rows]),
            _sparse(array, [task.run_at for task in rows]),
            _sparse(array, [task.delay and whole_micros(task.delay) for task in rows]),
            _sparse(array, [task.timeout for task in rows]),
            _sparse(texts, [task.key or "" for task in rows]),
            _sparse(texts, [task.fingerprint or "" for task in rows]),
            spare,
        )
        held = set(assigned or ())
        created = held.union(waiting or ())
        found: dict[int, Task] = {}
        if len(created) < len(tasks):
            # an earlier run of this batch has created them
            missing = [task.id for task in tasks if task.id not in created]
            found = {t.id: t for t in to_tasks(await self._call("find_created", array(missing)))}
            # or the database has gone on from an older state, and has drawn their ids a second time, for other tasks
            others = [task for task in tasks if task.id in found and not _is_same(task, found[task.id])]
            if others:
                # the highest of many: other servers may have used the next ones, too
                ids = await self.draw_ids(len(others) + _SPARE_IDS)
                for task, task_id in zip(others, ids[_SPARE_IDS:], strict=True):
                    task.id, task.worker = task_id, None
                found |= {t.id: t for t in (await self.create_tasks(others)).tasks}
            for task in tasks:
                if task.id in found:
                    found[task.id].payload = task.payload
        return Created(
            [found.get(task.id) or created_task(task, now, task.id in held) for task in tasks], sorted(fresh or ())
        )

    async def find_keys(self, keys: Sequence[tuple[int, str]]) -> Mapping[tuple[int, str], Keyed]:
        rows = await self._call("find_keys", array([user for user, _ in keys]), texts([key for _, key in keys]))
        return {(user, key): Keyed(task_id, fingerprint) for user, key, task_id, fingerprint in rows}

    async def cancel(self, user_id: int, task_id: int) -> Task:
        for _ in range(_CANCEL_TRIES):
            if valid_ids([task_id]) and (rows := await self._call("cancel", user_id, task_id)):
                return to_task(rows[0])
            task = await self._task_of_user(user_id, task_id)
            if task.state in TERMINAL:
                break
            # between the two statements the owner has retried the task
        return check_cancelled(task)

    async def retry(self, user_id: int, task_id: int) -> Task:
        task = await self._task_of_user(user_id, task_id)
        check_retryable(task)
        if rows := await self._call("retry", task.id, task.version):
            return to_task(rows[0])
        return await self._task_of_user(user_id, task_id)

    async def get_tasks(self, user_id: int, ids: Sequence[int]) -> Sequence[Task]:
        return to_tasks(await self._call("get_tasks", user_id, array(valid_ids(ids))))

    async def get_listed(self, user_id: int, ids: Sequence[int]) -> Sequence[Task]:
        return to_tasks(await self._call("get_listed", user_id, array(valid_ids(ids))))

    async def find_tasks(self, ids: Sequence[int]) -> Sequence[Task]:
        return to_tasks(await self._call("find_tasks", array(ids)))

    async def find_states(self, ids: Sequence[int]) -> Sequence[TaskState]:
        rows = await self._call("find_states", array(valid_ids(ids)))
        return [TaskState(task_id, user, STATES[state], version) for task_id, user, state, version in rows]

    async def delete_finished(self, seconds: float, after_id: int, limit: int) -> tuple[int, int | None]:
        [(deleted, last)] = await self._call("delete_finished", seconds, after_id, limit)
        return deleted, last

    async def _task_of_user(self, user_id: int, task_id: int) -> Task:
        return found_task(await self.get_listed(user_id, [task_id]), task_id)


async def _create(connection: PostgresConnection, again: bool, *args: Any) -> Rows:
    """The row of the creating statement. Raises KeyTaken."""
    for is_last in (False, True):
        try:
            return await connection.call("create_tasks", *args)
        except psycopg2.errors.UniqueViolation as e:
            if e.diag.constraint_name != "tasks_key":
                raise
            # While an earlier run of this batch is being committed, PostgreSQL may meet its keys before its ids, which
            # alone are no error. The second time the ids are there.
            if is_last:
                raise key_taken() from None
    raise AssertionError("not reached")


def _key_of(task: NewTask) -> tuple[int, str]:
    return task.user_id, task.key or ""


def _is_same(new: NewTask, task: Task) -> bool:
    mine = new.user_id, new.task, new.kind, new.queue, new.timeout, new.payload
    return mine == (task.user_id, task.task, task.kind, task.queue, task.timeout, task.payload)


def _sparse(make: Callable[[Sequence[Any]], str], values: Sequence[Any]) -> str:
    """An array that is empty when no task has a value: that is cheaper than an array of nothing."""
    return make(values) if any(values) else "{}"
