"""What users have used of their quotas, in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from taskd.model.quotas import Quota
from taskd.ports.accounts import Entry
from taskd.ports.quotas import HOURS, Usage, UsageDelta
from taskd.store.postgres.arrays import array
from taskd.store.postgres.database import PostgresDatabase
from taskd.store.postgres.rows import RELAXED_COMMIT
from taskd.store.refusals import check_text, sanitize, valid_ids

# In UTC, whatever the time zone of a session is: some differ by half an hour.
_HOUR = "date_trunc('hour', now(), 'UTC')"
# The beginning of the last hour that does not count for the daily limit any more.
_PASSED = f"{_HOUR} - interval '{HOURS} hours'"

LONG_PAST = "'1970-01-01 00:00:00+00'::timestamptz"
"""The hour of the row that has the bytes of all hours that are more than a day old."""

PREPARED = {
    # All processes change the rows in the order of the users, so that no two of them deadlock.
    "add_usage": f"""
INSERT INTO user_usage (user_id, hour, tasks, bytes)
SELECT user_id, {_HOUR}, tasks, bytes
FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS n (user_id, tasks, bytes)
WHERE {RELAXED_COMMIT} ORDER BY user_id
ON CONFLICT (user_id, hour) DO UPDATE
    SET tasks = user_usage.tasks + excluded.tasks, bytes = user_usage.bytes + excluded.bytes
""",
    # The order of the open tasks makes the planner use tasks_list and no other index, even when its statistics are
    # wrong: with `user_id = ...` the order would be that of the primary key. So the scan reads an entry of the index
    # for each task that it counts, and ends with the user's last one.
    "read_usage": f"""
SELECT i.id, u.quota_open, u.quota_daily, u.quota_bytes, o.number, s.tasks, s.bytes,
    extract(epoch FROM s.first + interval '{HOURS} hours' - now())::float8
FROM unnest($1::bigint[]) AS i (id), LATERAL (
        SELECT quota_open, quota_daily, quota_bytes, coalesce(quota_open, $2::bigint) AS open_limit
        FROM users WHERE id = i.id AND deleted_at IS NULL OFFSET 0) AS u, LATERAL (
        SELECT count(*) AS number FROM (
            SELECT 1 FROM tasks t WHERE t.user_id >= i.id AND t.user_id <= i.id AND t.status = 'Procesando'
            ORDER BY t.user_id, t.id LIMIT CASE u.open_limit WHEN 0 THEN $3::bigint ELSE u.open_limit + 1 END) AS c
        ) AS o, LATERAL (
        SELECT coalesce(sum(tasks) FILTER (WHERE hour > {_PASSED}), 0)::bigint AS tasks,
            greatest(coalesce(sum(bytes), 0), 0)::bigint AS bytes,
            min(hour) FILTER (WHERE hour > {_PASSED} AND tasks > 0) AS first
        FROM user_usage WHERE user_id = i.id) AS s
""",
    # $2, $4 and $6: whether the limit after it is to be set. A second run changes nothing, and is not in the audit.
    "set_quota": """
WITH before AS MATERIALIZED (
    SELECT id, quota_open, quota_daily, quota_bytes, CASE WHEN $2::bool THEN $3::bigint ELSE quota_open END AS open,
        CASE WHEN $4::bool THEN $5::bigint ELSE quota_daily END AS daily,
        CASE WHEN $6::bool THEN $7::bigint ELSE quota_bytes END AS bytes
    FROM users WHERE username_key = $1 AND deleted_at IS NULL FOR UPDATE
), changed AS (
    UPDATE users u SET quota_open = b.open, quota_daily = b.daily, quota_bytes = b.bytes FROM before b
    WHERE u.id = b.id
        AND (b.quota_open, b.quota_daily, b.quota_bytes) IS DISTINCT FROM (b.open, b.daily, b.bytes)
    RETURNING u.id
), noted AS (
    INSERT INTO audit (action, outcome, actor_id, actor, subject_id, subject, address, number, details)
    SELECT $8::text, $9::text, $10::bigint, $11::text, id, $1::text, $12::text, $13::int, $14::text FROM changed
    WHERE $8::text <> ''
)
SELECT open, daily, bytes FROM before
""",
    # Rows that another process is folding are skipped. No user gets below 0, however much was lost before what was
    # deleted: the row is at least what the hours make up for. The row may have changed since it was read, so this is
    # said twice.
    "fold_usage": f"""
WITH old AS MATERIALIZED (
    SELECT user_id, hour FROM user_usage WHERE hour > {LONG_PAST} AND hour <= {_PASSED}
    ORDER BY hour, user_id LIMIT $1 FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM user_usage u USING old WHERE u.user_id = old.user_id AND u.hour = old.hour
    RETURNING u.user_id, u.hour, u.bytes
), past AS MATERIALIZED (
    SELECT g.user_id, sum(g.bytes)::bigint AS bytes, EXISTS (
        SELECT FROM users WHERE id = g.user_id AND deleted_at IS NULL) AS is_known, (
        SELECT coalesce(sum(l.bytes), 0)::bigint FROM user_usage l
        WHERE l.user_id = g.user_id AND l.hour > {_PASSED}) AS later, (
        SELECT o.bytes FROM user_usage o WHERE o.user_id = g.user_id AND o.hour = {LONG_PAST}) AS before
    FROM gone g GROUP BY g.user_id
), folded AS (
    INSERT INTO user_usage (user_id, hour, tasks, bytes)
    SELECT user_id, {LONG_PAST}, 0, greatest(bytes, -later - coalesce(before, 0)) FROM past
    WHERE is_known AND (bytes <> 0 OR before IS NOT NULL) ORDER BY user_id
    ON CONFLICT (user_id, hour) DO UPDATE SET bytes = greatest(user_usage.bytes + excluded.bytes, (
        SELECT -coalesce(sum(l.bytes), 0) FROM user_usage l
        WHERE l.user_id = excluded.user_id AND l.hour > {_PASSED}))
), forgotten AS (
    DELETE FROM user_usage u USING past
    WHERE NOT past.is_known AND u.user_id = past.user_id AND u.hour = {LONG_PAST}
)
SELECT count(*) FROM gone
""",
}


class PostgresQuotas(PostgresDatabase):
    """IQuotaStore on PostgreSQL."""

    async def add_usage(self, deltas: Sequence[UsageDelta]) -> None:
        await self._call(
            "add_usage",
            array([delta.user_id for delta in deltas]),
            array([delta.tasks for delta in deltas]),
            array([delta.bytes for delta in deltas]),
        )

    async def read_usage(self, user_ids: Sequence[int], open_limit: int, unlimited: int = 0) -> Mapping[int, Usage]:
        rows = await self._call("read_usage", array(valid_ids(user_ids)), open_limit, unlimited)
        return {row[0]: Usage(Quota(*row[1:4]), *row[4:]) for row in rows}

    async def set_quota(self, key: str, changes: Mapping[str, int | None], entry: Entry | None = None) -> Quota | None:
        given = [value for name in Quota._fields for value in (name in changes, changes.get(name))]
        noted = entry or Entry("")
        rows = await self._call(
            "set_quota",
            check_text(key),
            *given,
            noted.action,
            noted.outcome,
            noted.actor_id,
            sanitize(noted.actor),
            noted.address,
            noted.number,
            None if noted.details is None else sanitize(noted.details),
        )
        return Quota(*rows[0]) if rows else None

    async def fold_usage(self, limit: int) -> int:
        [(count,)] = await self._call("fold_usage", limit)
        return int(count)
