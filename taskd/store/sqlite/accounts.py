"""Users in SQLite, from their creation to the deletion of their last task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from sqlite3 import Cursor

from msgspec.structs import replace

from taskd.model.tasks import Task
from taskd.model.users import Role, User
from taskd.ports.accounts import DEVICE_SECONDS, SETTLE_SECONDS, Account, Entry, UserRow
from taskd.store.refusals import check_text, invitation_refused, last_admin, uid_in_use, username_in_use
from taskd.store.rows import LIVE_KEYS
from taskd.store.sqlite.audit import SqliteAudit, note
from taskd.store.sqlite.database import transaction
from taskd.store.sqlite.rows import from_micros, micros_of, to_tasks
from taskd.store.sqlite.sessions import END_SESSIONS, SqliteSessions
from taskd.store.sqlite.tasks import CANCEL, DELETE_TASKS
from taskd.store.sqlite.totp import DELETE_RECOVERY_CODES, SqliteTotp
from taskd.store.sqlite.users import USER, find_by_key, to_user

# Returns no row when the key is taken, also by an earlier run of the same registration.
CREATE_USER = f"""
INSERT INTO users (username, username_key, password, role, created_at) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (username_key) DO NOTHING RETURNING {USER}
"""
SPEND_INVITATION = """
UPDATE invitations SET uses_left = uses_left - 1 WHERE token_hash = ? AND uses_left > 0 AND expires_at > ?
"""
CREATE_LOCAL = f"""
INSERT INTO users (username, username_key, password, local_uid, created_at) VALUES (?, ?, '', ?, ?)
ON CONFLICT DO NOTHING RETURNING {USER}
"""
FIND_LOCAL = f"SELECT {USER} FROM users WHERE local_uid = ?"
BIND_LOCAL = "UPDATE users SET local_uid = ? WHERE id = ?"
FIND_UID = "SELECT local_uid FROM users WHERE id = ?"
FIND_ACCOUNT = f"""
SELECT password, CASE WHEN code_until > ? THEN code_hash END,
    EXISTS (SELECT 1 FROM devices WHERE user_id = users.id AND network = ? AND seen_at > ?), totp_secret, {USER}
FROM users WHERE username_key = ? AND deleted_at IS NULL
"""
LIST_USERS = f"""
SELECT weight, created_at, (SELECT max(used_at) FROM sessions WHERE user_id = users.id), coalesce(code_until > ?, 0),
    {USER}
FROM users WHERE username_key > ? ORDER BY username_key LIMIT ?
"""
HAS_OTHER_ADMINS = """
SELECT EXISTS (SELECT 1 FROM users WHERE role = 'admin' AND disabled_at IS NULL AND id <> ?)
"""
SET_ROLE = "UPDATE users SET role = ? WHERE id = ?"
SET_DISABLED = "UPDATE users SET disabled_at = ? WHERE id = ?"
SET_WEIGHT = "UPDATE users SET weight = ? WHERE id = ? AND weight <> ?"
FIND_SECRETS = """
SELECT username_key, password, CASE WHEN code_until > ? THEN code_hash END FROM users
WHERE id = ? AND deleted_at IS NULL
"""
SET_PASSWORD = "UPDATE users SET password = ?, code_hash = NULL, code_until = NULL WHERE id = ?"
REPLACE_HASH = "UPDATE users SET password = ? WHERE id = ?"
HIGHEST_ROUNDS = """
SELECT coalesce(max(CAST(substr(password, 5, 2) AS INTEGER)), 0) FROM users
WHERE password GLOB '$2[abxy]$[0-9][0-9]$*'
"""
SET_CODE = "UPDATE users SET password = '', code_hash = ?, code_until = ? WHERE id = ? AND code_hash IS NOT ?"
FIND_BY_ID = f"SELECT username_key, {USER} FROM users WHERE id = ? AND deleted_at IS NULL"
DELETE_DEVICES = "DELETE FROM devices WHERE user_id = ?"
DELETE_USER = """
UPDATE users SET username = '', username_key = ' ' || id, password = '', role = 'user', code_hash = NULL,
    code_until = NULL, local_uid = NULL, totp_secret = NULL, totp_at = NULL, totp_step = NULL, disabled_at = :now,
    deleted_at = :now
WHERE id = :id
"""
DELETED_USERS = """
SELECT id FROM users
WHERE deleted_at IS NOT NULL AND purged_at IS NULL
    AND (deleted_at <= ? OR EXISTS (SELECT 1 FROM tasks WHERE user_id = users.id))
ORDER BY id LIMIT 100
"""
_OF_DELETED = "FROM tasks WHERE user_id IN (SELECT id FROM users WHERE id = ? AND deleted_at IS NOT NULL)"
OPEN_TASKS = f"SELECT id {_OF_DELETED} AND status = 'Procesando' ORDER BY id LIMIT ?"
ENDED_TASKS = f"""
SELECT id {_OF_DELETED} AND status IN ('Completada', 'Fallida', 'Cancelada') AND NOT held LIMIT ?
"""
HAS_TASKS = "SELECT EXISTS (SELECT 1 FROM tasks WHERE user_id = ?)"
NOTE_PURGED = "UPDATE users SET purged_at = ? WHERE id = ? AND deleted_at <= ? AND purged_at IS NULL"
DELETE_USAGE = "DELETE FROM user_usage WHERE user_id = ?"


class SqliteAccounts(SqliteSessions, SqliteTotp, SqliteAudit):
    """IAccountStore on SQLite."""

    @transaction
    def create_user(
        self,
        db: Cursor,
        now: int,
        username: str,
        key: str,
        password: str,
        entry: Entry | None = None,
        role: Role = Role.USER,
        invitation: bytes | None = None,
    ) -> User:
        row = db.execute(CREATE_USER, (check_text(username), check_text(key), password, role.value, now)).fetchone()
        if row is None:
            stored, _, _, _, *user = db.execute(FIND_ACCOUNT, (now, "", 0, key)).fetchone()
            if not password or stored != password:
                raise username_in_use(username)
            return to_user(*user)
        if invitation is not None and not db.execute(SPEND_INVITATION, (invitation, now)).rowcount:
            # which undoes the creation
            raise invitation_refused()
        user = to_user(*row)
        note(db, now, entry, user.id, key)
        return user

    @transaction
    def find_local(self, db: Cursor, now: int, uid: int) -> User | None:
        row = db.execute(FIND_LOCAL, (uid,)).fetchone()
        return to_user(*row) if row else None

    @transaction
    def create_local(self, db: Cursor, now: int, username: str, key: str, uid: int, entry: Entry | None = None) -> User:
        row = db.execute(CREATE_LOCAL, (check_text(username), check_text(key), uid, now)).fetchone()
        if row is not None:
            note(db, now, entry, row[0], key)
            return to_user(*row)
        row = db.execute(FIND_LOCAL, (uid,)).fetchone()
        if row is None:
            raise username_in_use(username)
        return to_user(*row)

    @transaction
    def bind_local(self, db: Cursor, now: int, key: str, uid: int | None, entry: Entry | None = None) -> User | None:
        user = find_by_key(db, key)
        if user is None:
            return None
        [(before,)] = db.execute(FIND_UID, (user.id,))
        if before == uid:
            return user
        other = db.execute(FIND_LOCAL, (uid,)).fetchone()
        if other is not None and uid is not None:
            raise uid_in_use(uid, other[1])
        db.execute(BIND_LOCAL, (uid, user.id))
        if before is not None:
            db.execute(END_SESSIONS, (user.id, None))
        note(db, now, entry, user.id, key)
        return user

    async def find_user(self, key: str, network: str = "") -> Account | None:
        return (await self.find_users([(key, network)]))[0]

    @transaction
    def find_users(self, db: Cursor, now: int, asked: Sequence[tuple[str, str]]) -> Sequence[Account | None]:
        since = now - micros_of(DEVICE_SECONDS)
        found: list[Account | None] = []
        for key, network in asked:
            row = db.execute(FIND_ACCOUNT, (now, check_text(network), since, check_text(key))).fetchone()
            if row is None:
                found.append(None)
            else:
                password, code, known, secret, *user = row
                found.append(Account(to_user(*user), password, code, bool(known), secret))
        return found

    @transaction
    def list_users(self, db: Cursor, now: int, after_key: str, limit: int) -> Sequence[UserRow]:
        rows = db.execute(LIST_USERS, (now, max(check_text(after_key), LIVE_KEYS), limit))
        return [
            UserRow(to_user(*user), weight, from_micros(created), used and from_micros(used), bool(has_code))
            for weight, created, used, has_code, *user in rows
        ]

    @transaction
    def set_role(self, db: Cursor, now: int, key: str, role: Role, entry: Entry | None = None) -> User | None:
        user = find_by_key(db, key)
        if user is None or user.role is role:
            return user
        if role is not Role.ADMIN:
            _check_last_admin(db, user)
        db.execute(SET_ROLE, (role.value, user.id))
        note(db, now, entry, user.id, key)
        return replace(user, role=role)

    @transaction
    def set_disabled(self, db: Cursor, now: int, key: str, disabled: bool, entry: Entry | None = None) -> User | None:
        user = find_by_key(db, key)
        if user is None or user.disabled is disabled:
            return user
        if disabled:
            _check_last_admin(db, user)
            db.execute(END_SESSIONS, (user.id, None))
        db.execute(SET_DISABLED, (now if disabled else None, user.id))
        note(db, now, entry, user.id, key)
        return replace(user, disabled=disabled)

    @transaction
    def set_weight(self, db: Cursor, now: int, key: str, weight: float, entry: Entry | None = None) -> bool:
        user = find_by_key(db, key)
        if user is not None and db.execute(SET_WEIGHT, (weight, user.id, weight)).rowcount:
            note(db, now, entry, user.id, key)
        return user is not None

    @transaction
    def set_password(
        self, db: Cursor, now: int, user_id: int, old: str, new: str, keep: bytes | None, entry: Entry | None = None
    ) -> bool:
        key, password, _ = db.execute(FIND_SECRETS, (now, user_id)).fetchone() or ("", None, None)
        if password == old != new:
            _replace_password(db, now, user_id, key, new, keep, entry)
        return password in (old, new)

    @transaction
    def replace_hash(self, db: Cursor, now: int, user_id: int, old: str, new: str) -> bool:
        _, password, _ = db.execute(FIND_SECRETS, (now, user_id)).fetchone() or ("", None, None)
        if password == old:
            db.execute(REPLACE_HASH, (new, user_id))
        return password in (old, new)

    @transaction
    def highest_rounds(self, db: Cursor, now: int) -> int:
        return int(db.execute(HIGHEST_ROUNDS).fetchone()[0])

    @transaction
    def set_code(
        self, db: Cursor, now: int, key: str, code: bytes, seconds: float, entry: Entry | None = None
    ) -> User | None:
        user = find_by_key(db, key)
        if user is not None and db.execute(SET_CODE, (code, now + micros_of(seconds), user.id, code)).rowcount:
            db.execute(END_SESSIONS, (user.id, None))
            note(db, now, entry, user.id, key)
        return user

    @transaction
    def use_code(self, db: Cursor, now: int, user_id: int, code: bytes, new: str, entry: Entry | None = None) -> bool:
        key, password, valid = db.execute(FIND_SECRETS, (now, user_id)).fetchone() or ("", None, None)
        if password != new and valid == code:
            _replace_password(db, now, user_id, key, new, None, entry)
        return password == new or valid == code

    @transaction
    def delete_user(self, db: Cursor, now: int, user_id: int, entry: Entry | None = None) -> bool:
        row = db.execute(FIND_BY_ID, (user_id,)).fetchone()
        if row is None:
            return False
        _check_last_admin(db, to_user(*row[1:]))
        db.execute(END_SESSIONS, (user_id, None))
        db.execute(DELETE_DEVICES, (user_id,))
        db.execute(DELETE_RECOVERY_CODES, (user_id,))
        db.execute(DELETE_USER, {"now": now, "id": user_id})
        note(db, now, entry, user_id, row[0])
        return True

    @transaction
    def deleted_users(self, db: Cursor, now: int) -> Sequence[int]:
        return [user_id for (user_id,) in db.execute(DELETED_USERS, (now - micros_of(SETTLE_SECONDS),))]

    @transaction
    def cancel_deleted(self, db: Cursor, now: int, user_id: int, limit: int) -> Sequence[Task]:
        ids = db.execute(OPEN_TASKS, (user_id, limit)).fetchall()
        return to_tasks(db.execute(CANCEL, (now, task_id)).fetchone() for (task_id,) in ids)

    @transaction
    def purge_deleted(self, db: Cursor, now: int, user_id: int, limit: int) -> bool:
        ids = json.dumps([task_id for (task_id,) in db.execute(ENDED_TASKS, (user_id, limit))])
        for statement in DELETE_TASKS:
            db.execute(statement, (ids,))
        if db.execute(HAS_TASKS, (user_id,)).fetchone()[0]:
            return False
        if db.execute(NOTE_PURGED, (now, user_id, now - micros_of(SETTLE_SECONDS))).rowcount:
            db.execute(DELETE_USAGE, (user_id,))
        return True


def _check_last_admin(db: Cursor, user: User) -> None:
    """Raises LastAdmin if this is the only admin who can act."""
    if user.role is Role.ADMIN and not user.disabled and not db.execute(HAS_OTHER_ADMINS, (user.id,)).fetchone()[0]:
        raise last_admin(user.username)


def _replace_password(
    db: Cursor, now: int, user_id: int, key: str, new: str, keep: bytes | None, entry: Entry | None
) -> None:
    db.execute(SET_PASSWORD, (new, user_id))
    db.execute(END_SESSIONS, (user_id, keep))
    note(db, now, entry, user_id, key)
