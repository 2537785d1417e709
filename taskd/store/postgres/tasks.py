"""Tasks in PostgreSQL, as their owners create, read, cancel and retry them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taskd.model.states import TERMINAL, State
from taskd.model.tasks import NewTask, Task
from taskd.ports.tasks import Keyed
from taskd.store.postgres.arrays import array, texts
from taskd.store.postgres.listing import PostgresListing
from taskd.store.postgres.rows import DELETE_SETTLED, KEEP_SETTLED, run_batch, to_task, to_tasks
from taskd.store.refusals import check_cancelled, check_retryable, found_task, valid_ids
from taskd.store.rows import ALL, created_task, whole_micros

_CANCEL_TRIES = 5


PREPARED = {
    # The ids come back from the outbox row in the order of the rows, because the sequence numbered the rows in that
    # order. A second run fails on the primary key of outbox, or waits there until the first run ends. A column that few
    # tasks have comes as an array that is empty when no task has it. A run_at in the past counts as none; a queued task
    # is due by the clock of its server.
    "create_tasks": f"""
WITH new AS (
    INSERT INTO tasks (user_id, task, kind, queue, payload, max_attempts, state, dispatch, dispatched_at, run_at, due,
        timeout, key, fingerprint)
    SELECT user_id, task, kind, queue, payload, max_attempts,
        CASE WHEN queued THEN 'queued' ELSE 'waiting' END, queued::int, CASE WHEN queued THEN now() END,
        greatest(run_at, now() + make_interval(secs => delay), now()),
        queued OR coalesce(greatest(run_at, now() + make_interval(secs => delay)) <= now(), true), timeout,
        nullif(key, ''), nullif(fingerprint, '')
    FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::json[], $6::int[], $7::bool[],
        $8::timestamptz[], $9::float8[], $10::float8[], $11::text[], $12::text[])
        AS n (user_id, task, kind, queue, payload, max_attempts, queued, run_at, delay, timeout, key, fingerprint)
    RETURNING id
), settled AS ({DELETE_SETTLED.format(ids="$13::uuid[]")}), kept AS ({KEEP_SETTLED.format(ids="$13::uuid[]")})
INSERT INTO outbox (id, task_ids, published_at)
SELECT $14::uuid, coalesce(array_agg(id ORDER BY id), '{{}}'), CASE WHEN $15::bool THEN now() END FROM new
RETURNING task_ids, created_at
""",
    "find_keys": """
SELECT t.user_id, t.key, t.id, t.fingerprint
FROM unnest($1::bigint[], $2::text[]) AS k (user_id, key) JOIN tasks t ON t.user_id = k.user_id AND t.key = k.key
""",
    "cancel": f"""
UPDATE tasks SET state = 'cancelled', version = version + 1, finished_at = now()
WHERE id = $2 AND user_id = $1 AND state IN ('waiting', 'queued', 'running') RETURNING {ALL}
""",
    # $2 is the version under which the caller saw the task as failed or cancelled. If the version is another one now,
    # an earlier run or somebody else has retried the task already.
    "retry": f"""
UPDATE tasks SET state = 'waiting', version = version + 1, attempt = 0, run_at = now(), due = true, finished_at = NULL,
    dispatched_at = NULL, started_at = NULL, worker = NULL, result = NULL, error = NULL, progress = NULL, note = NULL,
    losses = 0, returns = 0
WHERE id = $1 AND version = $2 AND state IN ('failed', 'cancelled') RETURNING {ALL}
""",
    # `+ 0` keeps the planner from walking all tasks of the user: it finds the tasks by their ids.
    "find_tasks": f"SELECT {ALL} FROM tasks WHERE id = ANY ($1::bigint[])",
    "get_tasks": f"SELECT {ALL} FROM tasks WHERE id = ANY ($2::bigint[]) AND user_id + 0 = $1",
    # Tasks have no index by the time of their end, which would cost every task: so this walks the primary key.
    "delete_finished": """
WITH seen AS MATERIALIZED (
    SELECT id, created_at < now() - make_interval(secs => $1) AS is_old FROM tasks WHERE id > $2 ORDER BY id LIMIT $3
), deleted AS (
    DELETE FROM tasks t USING seen
    WHERE t.id = seen.id AND seen.is_old AND t.finished_at < now() - make_interval(secs => $1) RETURNING t.id
), logs AS (
    DELETE FROM task_log l USING deleted WHERE l.task_id = deleted.id
), attempts AS (
    DELETE FROM task_attempts a USING deleted WHERE a.task_id = deleted.id
)
SELECT (SELECT count(*) FROM deleted),
    (SELECT CASE WHEN count(*) = $3 AND bool_and(is_old) THEN max(id) END FROM seen)
""",
}


class PostgresTasks(PostgresListing):
    """ITaskStore on PostgreSQL."""

    async def create_tasks(self, batch: str, tasks: Sequence[NewTask], settled: Sequence[str] = ()) -> Sequence[Task]:
        known, rows = await self._call(
            run_batch,
            "create_tasks",
            batch,
            array([task.user_id for task in tasks]),
            texts([task.task for task in tasks]),
            texts([task.kind for task in tasks]),
            texts([task.queue for task in tasks]),
            texts([task.payload for task in tasks]),
            array([task.max_attempts for task in tasks]),
            array([task.state is State.QUEUED for task in tasks]),
            _sparse(array, [task.run_at for task in tasks]),
            _sparse(array, [task.delay and whole_micros(task.delay) for task in tasks]),
            _sparse(array, [task.timeout for task in tasks]),
            _sparse(texts, [task.key or "" for task in tasks]),
            _sparse(texts, [task.fingerprint or "" for task in tasks]),
            array(settled),
            batch,
        )
        if known:
            return to_tasks(rows)
        created, now = rows[0]
        return [created_task(task_id, task, now) for task_id, task in zip(created, tasks, strict=True)]

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

    async def find_tasks(self, ids: Sequence[int]) -> Sequence[Task]:
        return to_tasks(await self._call("find_tasks", array(ids)))

    async def delete_finished(self, seconds: float, after_id: int, limit: int) -> tuple[int, int | None]:
        [(deleted, last)] = await self._call("delete_finished", seconds, after_id, limit)
        return deleted, last

    async def _task_of_user(self, user_id: int, task_id: int) -> Task:
        return found_task(await self.get_tasks(user_id, [task_id]), task_id)


def _sparse(make: Callable[[Sequence[Any]], str], values: Sequence[Any]) -> str:
    """An array that is empty when no task has a value: that is cheaper than an array of nothing."""
    return make(values) if any(values) else "{}"
