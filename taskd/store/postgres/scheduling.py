"""The backlog in PostgreSQL, and the turn that assigns its tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import msgspec
import psycopg2
from psycopg2.errors import QueryCanceled

from taskd.model.errors import Unavailable
from taskd.model.tasks import Route
from taskd.ports.scheduling import Pool, Turn, TurnTooSlow
from taskd.store.postgres.arrays import array, texts
from taskd.store.postgres.connection import PostgresConnection, Rows, is_dead
from taskd.store.postgres.database import PostgresDatabase
from taskd.store.postgres.rows import to_task
from taskd.store.postgres.turn import ASSIGN, TOLD

TURN_SECONDS = 2
PATIENT_SECONDS = 8
"""How long a turn may take, and with it hold up those of the other servers."""

_TOO_SLOW = (
    "it took longer than {} s; perhaps a transaction that is open for long, such as that of pg_dump, keeps PostgreSQL"
    " from removing old rows (see xact_start in pg_stat_activity)"
)

TURN_LOCKS = 746_173_564
"""The first key of the advisory locks of turns; see :func:`turn_lock` for the second one."""

# One message. The lock is a statement of its own: the snapshot of a statement that waits for it would be older than
# what the other server's turn has done. Nothing but this transaction is under the lock, and it sends no rows.
TURN = f"""
BEGIN; SET LOCAL lock_timeout = '100ms'; SET LOCAL statement_timeout = '%s s';
SELECT pg_advisory_xact_lock({TURN_LOCKS}, %s); EXECUTE assign ({", ".join(["%s"] * 9)}); COMMIT; EXECUTE told
"""

PREPARED = {
    "assign": ASSIGN,
    "told": TOLD,
    # While one sweep takes all that is due, in order; otherwise the same number of each user, found by stepping from
    # user to user in the index. The caller does not repeat this: a second run could not return the same rows. The
    # state does not change, so the version does not either.
    "promote": """
WITH RECURSIVE few AS MATERIALIZED (
    SELECT count(*) <= $1 AS enough FROM (
        SELECT FROM tasks WHERE NOT due AND finished_at IS NULL AND run_at > '-infinity' AND run_at <= now()
        ORDER BY run_at LIMIT $1 + 1) AS d
), waiting (user_id, run_at) AS (
    (SELECT user_id, run_at FROM tasks WHERE NOT due AND finished_at IS NULL AND NOT (SELECT enough FROM few)
    ORDER BY user_id, run_at LIMIT 1)
    UNION ALL
    SELECT next.* FROM waiting, LATERAL (
        SELECT user_id, run_at FROM tasks WHERE NOT due AND finished_at IS NULL AND user_id > waiting.user_id
        ORDER BY user_id, run_at LIMIT 1) AS next
), owner AS MATERIALIZED (
    SELECT user_id, greatest($1 / count(*) OVER (), 1) AS each FROM waiting WHERE run_at <= now()
), first AS MATERIALIZED (
    SELECT id FROM tasks
    WHERE NOT due AND finished_at IS NULL AND run_at > '-infinity' AND run_at <= now() AND (SELECT enough FROM few)
    ORDER BY run_at LIMIT $1 FOR UPDATE SKIP LOCKED
), fair AS MATERIALIZED (
    SELECT mine.id FROM owner, LATERAL (
        SELECT id FROM tasks WHERE NOT due AND finished_at IS NULL AND user_id = owner.user_id AND run_at <= now()
        ORDER BY run_at LIMIT owner.each FOR UPDATE SKIP LOCKED) AS mine
), promoted AS (
    UPDATE tasks t SET due = true FROM (SELECT id FROM first UNION ALL SELECT id FROM fair) AS come
    WHERE t.id = come.id RETURNING t.queue, t.kind, t.user_id
)
SELECT DISTINCT queue, kind, user_id FROM promoted
""",
}


class _Told(msgspec.Struct):
    """What a turn leaves in the session. ``cut_short``: with room, and within its limit, it knew nobody else who is
    next."""

    ids: Sequence[int]
    room: Mapping[str, float]
    backlog: bool
    after_user: int
    returning: bool
    cut_short: bool


class PostgresScheduling(PostgresDatabase):
    """ISchedulingStore on PostgreSQL."""

    async def assign(self, pool: Pool, limit: int, after_user: int, patient: bool = False) -> Turn:
        args = (
            PATIENT_SECONDS if patient else TURN_SECONDS,
            turn_lock(pool.group),
            texts([place.worker for place in pool.places]),
            array([place.slots for place in pool.places]),
            texts([served.queue for served in pool.served]),
            texts([served.kind for served in pool.served]),
            array([served.max_attempts for served in pool.served]),
            json.dumps({f"{cost.user_id} {cost.kind}": cost.cost for cost in pool.costs}),
            after_user,
        )
        least = min((cost.cost for cost in pool.costs), default=1.0)
        turn, cut_short = await self._turn(args, limit, least)
        while cut_short:
            # it had read too few tasks of somebody who is next; the circle stays as it is
            try:
                more, cut_short = await self._turn(args, limit - len(turn.tasks), least)
            except Unavailable:
                # what is assigned must be told
                break
            after = turn.after_user if more.after_user == after_user else more.after_user
            turn = Turn([*turn.tasks, *more.tasks], more.room, more.backlog, after, more.returning)
        return turn

    async def _turn(self, args: Sequence[Any], limit: int, least: float) -> tuple[Turn, bool]:
        rows = await self._call(_turn, *args, limit, min(least, 1.0), repeat=False)
        told = _told.decode(rows[0][0])
        tasks = [to_task(row[1:]) for row in rows if row[1] is not None]
        return Turn(tasks, told.room, told.backlog, told.after_user, told.returning), told.cut_short

    async def promote(self, limit: int) -> Sequence[tuple[Route, int]]:
        rows = await self._call("promote", limit, repeat=False)
        return [(Route(queue, kind), user) for queue, kind, user in rows]


def turn_lock(group: str) -> int:
    """The second key of the lock of a group's turns, 32 bits with a sign. Two groups with the same key only wait for
    each other."""
    return crc32(group.encode()) - 2**31


async def _turn(connection: PostgresConnection, again: bool, *args: Any) -> Rows:
    """Take a turn. After an error the connection is outside of a transaction again."""
    try:
        return await connection.query(TURN, args, brief=args[0] == TURN_SECONDS)
    except psycopg2.Error as e:
        if not is_dead(e):
            await connection.query("ROLLBACK")
        if isinstance(e, QueryCanceled):
            raise TurnTooSlow(_TOO_SLOW.format(args[0])) from e
        raise


_told = msgspec.json.Decoder(_Told)
