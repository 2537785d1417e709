"""Users in PostgreSQL, from their creation to the deletion of their last task.

What changes a user's password, rights or sessions locks the user's row first, and what may end the rights of an admin
locks all such changes before. Each locks with a statement of its own before the one that decides, in one transaction.
Under READ COMMITTED the deciding statement has a snapshot that is taken once the locks are held, and so sees all that
their former holders have committed: two admins who demote each other follow each other, and the second one is found to
be the last; no session that was opened with an old password survives its change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taskd.model.tasks import Task
from taskd.model.users import Role, User
from taskd.ports.accounts import DEVICE_SECONDS, SETTLE_SECONDS, Account, Entry, UserRow
from taskd.store.postgres.arrays import texts
from taskd.store.postgres.audit import PostgresAudit, note, noted
from taskd.store.postgres.connection import PostgresConnection
from taskd.store.postgres.rows import LISTED, to_tasks
from taskd.store.postgres.sessions import PostgresSessions, locked
from taskd.store.postgres.totp import PostgresTotp
from taskd.store.postgres.users import USER, to_user
from taskd.store.refusals import check_text, invitation_refused, last_admin, uid_in_use, username_in_use
from taskd.store.rows import LIVE_KEYS

ADMINS_LOCK = 7_461_735_643
UIDS_LOCK = 7_461_735_644

_IS_LAST = """
u.role = 'admin' AND u.disabled_at IS NULL
    AND NOT EXISTS (SELECT FROM users o WHERE o.role = 'admin' AND o.disabled_at IS NULL AND o.id <> u.id)
"""

_END_SESSIONS = "DELETE FROM sessions s USING changed WHERE s.user_id = changed.id"

_CHANGED = "(SELECT id, username_key FROM changed)"

PREPARED = {
    "lock_admins": "SELECT pg_advisory_xact_lock($1)",
    # Those who bind follow each other.
    "lock_uids": "SELECT pg_advisory_xact_lock($1)",
    "lock_key": "SELECT FROM users WHERE username_key = $1 FOR NO KEY UPDATE",
    "lock_invitation": "SELECT FROM invitations WHERE token_hash = $1 FOR NO KEY UPDATE",
    # Returns no row when the key is taken, also by an earlier run of the same registration, or when the invitation is
    # not valid; then nothing is changed. With an invitation it follows lock_invitation: so its last use is spent once.
    "create_user": f"""
WITH made AS (
    INSERT INTO users (username, username_key, password, role)
    SELECT $2::text, $3::text, $4::text, $5::text
    WHERE $6::bytea IS NULL
        OR EXISTS (SELECT FROM invitations WHERE token_hash = $6 AND uses_left > 0 AND expires_at > now())
    ON CONFLICT (username_key) DO NOTHING RETURNING id, username, username_key, role
), spent AS (
    UPDATE invitations SET uses_left = uses_left - 1 WHERE token_hash = $6 AND EXISTS (SELECT FROM made)
), noted AS ({noted("(SELECT id, username_key FROM made)")})
SELECT id, username, role, false, false FROM made
""",
    "find_local": f"SELECT {USER} FROM users WHERE local_uid = $1",
    # Returns no row when the key or the uid is taken, also by an earlier run.
    "create_local": f"""
WITH made AS (
    INSERT INTO users (username, username_key, password, local_uid) VALUES ($2, $3, '', $4)
    ON CONFLICT DO NOTHING RETURNING id, username, username_key, role
), noted AS ({noted("(SELECT id, username_key FROM made)")})
SELECT id, username, role, false, false FROM made
""",
    # Follows lock_uids and lock_key. A second run finds the uid.
    "bind_local": f"""
WITH found AS MATERIALIZED (
    SELECT id, username_key, local_uid FROM users WHERE username_key = $2 AND deleted_at IS NULL
), other AS MATERIALIZED (
    SELECT username FROM users WHERE local_uid = $3::bigint AND id <> (SELECT id FROM found)
), changed AS (
    UPDATE users u SET local_uid = $3 FROM found
    WHERE u.id = found.id AND u.local_uid IS DISTINCT FROM $3::bigint AND NOT EXISTS (SELECT FROM other)
    RETURNING u.id, u.username_key, found.local_uid AS old_uid
), ended AS ({_END_SESSIONS} AND changed.old_uid IS NOT NULL), noted AS ({noted(_CHANGED)})
SELECT (SELECT username FROM other), {USER} FROM users WHERE username_key = $2 AND deleted_at IS NULL
""",
    "find_users": f"""
SELECT k.n, password, CASE WHEN code_until > now() THEN code_hash END,
    EXISTS (SELECT FROM devices d
        WHERE d.user_id = users.id AND d.network = k.network AND d.seen_at > now() - make_interval(secs => $3)),
    totp_secret, {USER}
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k (key, network, n) JOIN users ON username_key = k.key
WHERE deleted_at IS NULL
""",
    "list_users": f"""
SELECT weight, created_at, (SELECT max(used_at) FROM sessions WHERE user_id = users.id),
    coalesce(code_until > now(), false), {USER}
FROM users WHERE username_key > $1 ORDER BY username_key LIMIT $2
""",
    "set_role": f"""
WITH found AS MATERIALIZED (
    SELECT u.id, username, disabled_at IS NOT NULL AS disabled, totp_at IS NOT NULL AS totp,
        $3::text <> 'admin' AND {_IS_LAST} AS is_last
    FROM users u WHERE username_key = $2 AND deleted_at IS NULL
), changed AS (
    UPDATE users u SET role = $3 FROM found WHERE u.id = found.id AND u.role <> $3 AND NOT is_last
    RETURNING u.id, u.username_key
), noted AS ({noted(_CHANGED)})
SELECT is_last, id, username, $3::text, disabled, totp FROM found
""",
    "set_disabled": f"""
WITH found AS MATERIALIZED (
    SELECT u.id, username, role, totp_at IS NOT NULL AS totp, $3::boolean AND {_IS_LAST} AS is_last
    FROM users u WHERE username_key = $2 AND deleted_at IS NULL
), changed AS (
    UPDATE users u SET disabled_at = CASE WHEN $3 THEN now() END
    FROM found WHERE u.id = found.id AND (u.disabled_at IS NOT NULL) <> $3 AND NOT is_last
    RETURNING u.id, u.username_key
), ended AS ({_END_SESSIONS} AND $3), noted AS ({noted(_CHANGED)})
SELECT is_last, id, username, role, $3::boolean, totp FROM found
""",
    "set_weight": f"""
WITH changed AS (
    UPDATE users SET weight = $3 WHERE username_key = $2 AND deleted_at IS NULL AND weight <> $3
    RETURNING id, username_key
), noted AS ({noted(_CHANGED)})
SELECT 1 FROM users WHERE username_key = $2 AND deleted_at IS NULL
""",
    # A second run finds the new hash.
    "set_password": f"""
WITH changed AS (
    UPDATE users SET password = $4, code_hash = NULL, code_until = NULL
    WHERE id = $2 AND password = $3 AND password <> $4 AND deleted_at IS NULL
    RETURNING id, username_key
), ended AS ({_END_SESSIONS} AND s.token_hash IS DISTINCT FROM $5::bytea), noted AS ({noted(_CHANGED)})
SELECT password = $4 OR EXISTS (SELECT FROM changed) FROM users WHERE id = $2 AND deleted_at IS NULL
""",
    # A second run finds the new hash.
    "replace_hash": """
WITH changed AS (
    UPDATE users SET password = $3 WHERE id = $1 AND password = $2 AND deleted_at IS NULL RETURNING id
)
SELECT password = $3 OR EXISTS (SELECT FROM changed) FROM users WHERE id = $1 AND deleted_at IS NULL
""",
    "highest_rounds": """
SELECT coalesce(max(substr(password, 5, 2)::integer), 0) FROM users WHERE password ~ '^[$]2[abxy][$][0-9]{2}[$]'
""",
    # A second run finds the code.
    "set_code": f"""
WITH changed AS (
    UPDATE users SET password = '', code_hash = $3, code_until = now() + make_interval(secs => $4)
    WHERE username_key = $2 AND deleted_at IS NULL AND code_hash IS DISTINCT FROM $3
    RETURNING id, username_key
), ended AS ({_END_SESSIONS}), noted AS ({noted(_CHANGED)})
SELECT {USER} FROM users WHERE username_key = $2 AND deleted_at IS NULL
""",
    "use_code": f"""
WITH changed AS (
    UPDATE users SET password = $4, code_hash = NULL, code_until = NULL
    WHERE id = $2 AND code_hash = $3 AND code_until > now() AND password <> $4
    RETURNING id, username_key
), ended AS ({_END_SESSIONS}), noted AS ({noted(_CHANGED)})
SELECT password = $4 OR EXISTS (SELECT FROM changed) FROM users WHERE id = $2 AND deleted_at IS NULL
""",
    "delete_user": f"""
WITH found AS MATERIALIZED (
    SELECT u.id, username, username_key, {_IS_LAST} AS is_last FROM users u WHERE id = $2 AND deleted_at IS NULL
), changed AS (
    UPDATE users u SET username = '', username_key = ' ' || u.id, password = '', role = 'user', code_hash = NULL,
        code_until = NULL, local_uid = NULL, totp_secret = NULL, totp_at = NULL, totp_step = NULL,
        disabled_at = now(), deleted_at = now()
    FROM found WHERE u.id = found.id AND NOT is_last
    RETURNING u.id, found.username_key
), ended AS ({_END_SESSIONS}), unknown AS (
    DELETE FROM devices d USING changed WHERE d.user_id = changed.id
), codes AS (
    DELETE FROM recovery_codes r USING changed WHERE r.user_id = changed.id
), noted AS ({noted(_CHANGED)})
SELECT is_last, username FROM found
""",
    "deleted_users": """
SELECT id FROM users
WHERE deleted_at IS NOT NULL AND purged_at IS NULL
    AND (deleted_at <= now() - make_interval(secs => $1) OR EXISTS (SELECT FROM tasks WHERE user_id = users.id))
ORDER BY id LIMIT 100
""",
    # All servers do this at the same time: each leaves to the others what they have locked.
    "cancel_deleted": f"""
WITH mine AS MATERIALIZED (
    SELECT id FROM tasks
    WHERE user_id = (SELECT id FROM users WHERE id = $1 AND deleted_at IS NOT NULL) AND status = 'Procesando'
    ORDER BY id LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE tasks t SET state = 'cancelled', version = version + 1, finished_at = now()
FROM mine WHERE t.id = mine.id AND state IN ('waiting', 'queued', 'running') RETURNING {LISTED}
""",
    "purge_deleted": """
WITH mine AS MATERIALIZED (
    SELECT id FROM tasks
    WHERE user_id = (SELECT id FROM users WHERE id = $1 AND deleted_at IS NOT NULL)
        AND status IN ('Completada', 'Fallida', 'Cancelada') AND NOT held
    LIMIT $2 FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM tasks t USING mine WHERE t.id = mine.id
), logs AS (
    DELETE FROM task_log l USING mine WHERE l.task_id = mine.id
), attempts AS (
    DELETE FROM task_attempts a USING mine WHERE a.task_id = mine.id
)
SELECT count(*) FROM mine
""",
    "note_purged": """
WITH left_over AS MATERIALIZED (
    SELECT EXISTS (SELECT FROM tasks WHERE user_id = $1) AS any_left
), noted AS (
    UPDATE users SET purged_at = now() FROM left_over
    WHERE id = $1 AND deleted_at <= now() - make_interval(secs => $2) AND purged_at IS NULL AND NOT any_left
    RETURNING id
), forgotten AS (
    DELETE FROM user_usage WHERE user_id = $1 AND EXISTS (SELECT FROM noted)
)
SELECT NOT any_left FROM left_over
""",
}


class PostgresAccounts(PostgresSessions, PostgresTotp, PostgresAudit):
    """IAccountStore on PostgreSQL."""

    async def create_user(
        self,
        username: str,
        key: str,
        password: str,
        entry: Entry | None = None,
        role: Role = Role.USER,
        invitation: bytes | None = None,
    ) -> User:
        args = note(entry), check_text(username), check_text(key), password, role.value, invitation
        locks = [] if invitation is None else [("lock_invitation", invitation)]
        if rows := await self._call(locked, locks, "create_user", *args):
            return to_user(*rows[0])
        account = await self.find_user(key)
        if account is None and invitation is not None:
            raise invitation_refused()
        if account is None or not password or account.password != password:
            raise username_in_use(username)
        return account.user

    async def find_local(self, uid: int) -> User | None:
        rows = await self._call("find_local", uid)
        return to_user(*rows[0]) if rows else None

    async def create_local(self, username: str, key: str, uid: int, entry: Entry | None = None) -> User:
        rows = await self._call("create_local", note(entry), check_text(username), check_text(key), uid)
        user = to_user(*rows[0]) if rows else await self.find_local(uid)
        if user is None:
            raise username_in_use(username)
        return user

    async def bind_local(self, key: str, uid: int | None, entry: Entry | None = None) -> User | None:
        locks = [("lock_uids", UIDS_LOCK), ("lock_key", check_text(key))]
        rows = await self._call(locked, locks, "bind_local", note(entry), key, uid)
        if not rows:
            return None
        other, *user = rows[0]
        if other is not None and uid is not None:
            raise uid_in_use(uid, other)
        return to_user(*user)

    async def find_user(self, key: str, network: str = "") -> Account | None:
        return (await self.find_users([(key, network)]))[0]

    async def find_users(self, asked: Sequence[tuple[str, str]]) -> Sequence[Account | None]:
        keys, networks = (texts([check_text(text) for text in each]) for each in zip(*asked, strict=True))
        found: list[Account | None] = [None] * len(asked)
        for n, password, code, known, secret, *user in await self._call("find_users", keys, networks, DEVICE_SECONDS):
            found[n - 1] = Account(to_user(*user), password, _to_bytes(code), known, secret)
        return found

    async def list_users(self, after_key: str, limit: int) -> Sequence[UserRow]:
        rows = await self._call("list_users", max(check_text(after_key), LIVE_KEYS), limit)
        return [
            UserRow(to_user(*user), weight, created, used, has_code) for weight, created, used, has_code, *user in rows
        ]

    async def set_role(self, key: str, role: Role, entry: Entry | None = None) -> User | None:
        return await self._set_rights("set_role", key, role.value, entry)

    async def set_disabled(self, key: str, disabled: bool, entry: Entry | None = None) -> User | None:
        return await self._set_rights("set_disabled", key, disabled, entry)

    async def _set_rights(self, statement: str, key: str, value: object, entry: Entry | None) -> User | None:
        locks = [("lock_admins", ADMINS_LOCK), ("lock_key", check_text(key))]
        rows = await self._call(locked, locks, statement, note(entry), key, value)
        if not rows:
            return None
        is_last, *user = rows[0]
        if is_last:
            raise last_admin(user[1])
        return to_user(*user)

    async def set_weight(self, key: str, weight: float, entry: Entry | None = None) -> bool:
        return bool(await self._call("set_weight", note(entry), check_text(key), weight))

    async def set_password(
        self, user_id: int, old: str, new: str, keep: bytes | None, entry: Entry | None = None
    ) -> bool:
        args = note(entry), user_id, old, new, keep
        return await self._call(locked, [("lock_user", user_id)], "set_password", *args) == [(True,)]

    async def replace_hash(self, user_id: int, old: str, new: str) -> bool:
        return await self._call("replace_hash", user_id, old, new) == [(True,)]

    async def highest_rounds(self) -> int:
        return int((await self._call("highest_rounds"))[0][0])

    async def set_code(self, key: str, code: bytes, seconds: float, entry: Entry | None = None) -> User | None:
        args = note(entry), check_text(key), code, seconds
        rows = await self._call(locked, [("lock_key", key)], "set_code", *args)
        return to_user(*rows[0]) if rows else None

    async def use_code(self, user_id: int, code: bytes, new: str, entry: Entry | None = None) -> bool:
        args = note(entry), user_id, code, new
        return await self._call(locked, [("lock_user", user_id)], "use_code", *args) == [(True,)]

    async def delete_user(self, user_id: int, entry: Entry | None = None) -> bool:
        return bool(await self._call(_delete_user, user_id, entry))

    async def deleted_users(self) -> Sequence[int]:
        return [user_id for (user_id,) in await self._call("deleted_users", SETTLE_SECONDS)]

    async def cancel_deleted(self, user_id: int, limit: int) -> Sequence[Task]:
        return to_tasks(await self._call("cancel_deleted", user_id, limit))

    async def purge_deleted(self, user_id: int, limit: int) -> bool:
        [(count,)] = await self._call("purge_deleted", user_id, limit)
        if count >= limit:
            return False
        [(is_purged,)] = await self._call("note_purged", user_id, SETTLE_SECONDS)
        return bool(is_purged)


async def _delete_user(connection: PostgresConnection, again: bool, user_id: int, entry: Entry | None) -> bool:
    """Whether there was such a user. If an earlier run may have been committed, it may have deleted the user."""
    locks = [("lock_admins", ADMINS_LOCK), ("lock_user", user_id)]
    rows = await connection.call_locked(locks, "delete_user", note(entry), user_id)
    if not rows:
        return again
    is_last, username = rows[0]
    if is_last:
        raise last_admin(username)
    return True


def _to_bytes(column: Any) -> bytes | None:
    return None if column is None else bytes(column)
