"""The registry of workers in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskd.model.errors import Unavailable
from taskd.ports.workers import Beaten, Digest, Mean, WorkerInfo, WorkerPoll, WorkerState, WorkerStatus
from taskd.store.postgres.attempts import release
from taskd.store.postgres.connection import PostgresConnection, Rows
from taskd.store.postgres.database import PostgresDatabase
from taskd.store.postgres.rows import RELAXED_COMMIT, TIMELINE
from taskd.store.rows import WORKER_KEEP_SECONDS, decode_counts, decode_means, decode_worker, encode, encode_worker

PREPARED = {
    "register": f"""
INSERT INTO workers (name, queues, kinds, slots, pid, timeline) VALUES ($1, $2, $3, $4, pg_backend_pid(), {TIMELINE})
ON CONFLICT (name) DO NOTHING
""",
    "beat": f"""
UPDATE workers SET beat = beat + 1, pid = pg_backend_pid(), seen_at = now(), stalled = NULL, hung = $2, means = $3,
    holds = $4
WHERE {RELAXED_COMMIT} AND name = $1 AND state IN ('serving', 'draining')
RETURNING clock_timestamp(), timeline = {TIMELINE}
""",
    # Of what it holds. A statement of its own, so that no lock on tasks can delay the beat.
    "in_step": """
SELECT count(*) = $2::bigint AND coalesce(sum(31 * id + dispatch) FILTER (WHERE state IN ('queued', 'running')), 0)
    = $3::numeric
FROM tasks WHERE held AND worker = $1
""",
    "worker_draining": "UPDATE workers SET state = 'draining' WHERE name = $1 AND state = 'serving'",
    "worker_gone": f"""
WITH gone AS (DELETE FROM workers WHERE name = $1),
{release("tasks t WHERE t.held AND t.worker = $1", "true")} SELECT FROM released WHERE false
""",
    # Names no other table, so that no lock on tasks can delay it. Deletes nothing, but fails or waits where a beat
    # would: in a database that takes no changes, and behind a lock that stops them, nobody can beat, and silence proves
    # nothing.
    # Returns a row even if there are no workers. A backend that another process has got the number of counts as
    # connected: then only the beats tell.
    "poll_workers": f"""
WITH writable AS (DELETE FROM workers WHERE false)
SELECT concat_ws(' ', pg_postmaster_start_time(), pg_is_in_recovery()), clock_timestamp(),
    w.state IN ('gone', 'fenced') AND w.seen_at < now() - interval '{WORKER_KEEP_SECONDS} s',
    w.name, w.queues, w.kinds, w.slots, w.state, w.beat,
    w.pid IS NOT NULL AND EXISTS (SELECT FROM pg_stat_get_activity(w.pid)), w.hung, w.stalled, w.means,
    w.holds, w.timeline = {TIMELINE}
FROM (SELECT) AS always LEFT JOIN workers w ON true
""",
    "forget_workers": f"""
DELETE FROM workers w
WHERE w.state IN ('gone', 'fenced') AND w.seen_at < now() - interval '{WORKER_KEEP_SECONDS} s'
    AND NOT EXISTS (SELECT FROM tasks WHERE held AND worker = w.name OFFSET 0)
RETURNING name
""",
}


class PostgresWorkers(PostgresDatabase):
    """IWorkerStore on PostgreSQL."""

    async def register(self, worker: WorkerInfo) -> None:
        await self._call("register", *encode_worker(worker).values())

    async def beat(self, name: str, hung: Mapping[str, int], means: Sequence[Mean], holds: Digest) -> Beaten:
        rows = await self._call("beat", name, encode(hung), encode(means), holds.count, repeat=False, brief=True)
        if not rows:
            return Beaten(False, True)
        [(now, asserted)] = rows
        self._told(now)
        try:
            [(in_step,)] = await self._call(_in_step, name, *holds, repeat=False)
        except Unavailable:
            # the beat counts; the next one compares again
            in_step = True
        return Beaten(True, in_step, asserted)

    async def worker_draining(self, name: str) -> None:
        await self._call("worker_draining", name)

    async def worker_gone(self, name: str) -> None:
        await self._call("worker_gone", name)

    async def poll_workers(self) -> WorkerPoll:
        rows = await self._call("poll_workers", repeat=False, brief=True)
        epoch, now = rows[0][:2]
        self._told(now)
        # after a crash PostgreSQL goes on with the same start time, but without its connections
        epoch = f"{epoch} {self._pool.outages}"
        forgotten: set[str] = set()
        if any(old for _, _, old, *_ in rows):
            forgotten = {name for (name,) in await self._call("forget_workers")}
        found = []
        for _, _, _, name, queues, kinds, slots, state, beat, connected, hung, *more in rows:
            if name is not None and name not in forgotten:
                worker = decode_worker(name, queues, kinds, slots)
                stalled, means, *rest = more
                counts, measured = decode_counts(hung), decode_means(means)
                status = WorkerStatus(worker, WorkerState(state), beat, connected, counts, stalled, measured, *rest)
                found.append(status)
        return WorkerPoll(epoch, sorted(found, key=lambda status: status.info.name))


async def _in_step(connection: PostgresConnection, again: bool, *args: Any) -> Rows:
    """Whether a worker's digest is right. While somebody has locked the whole table, it fails soon."""
    return await connection.call("in_step", *args, brief=True, lock_timeout="100ms")
