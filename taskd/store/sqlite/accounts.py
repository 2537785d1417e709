"""Users, sessions, invitations and the audit in SQLite."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from sqlite3 import Cursor
from typing import Any

from msgspec.structs import replace

from taskd.model.users import Role, User
from taskd.ports.accounts import (
    DEVICE_SECONDS,
    MAX_SESSIONS,
    Account,
    Audited,
    Entry,
    Invitation,
    NewSession,
    Session,
    UserRow,
)
from taskd.store.refusals import (
    MAX_ID,
    account_ended,
    check_text,
    invitation_refused,
    last_admin,
    sanitize,
    username_in_use,
)
from taskd.store.sqlite.database import SqliteDatabase, transaction
from taskd.store.sqlite.rows import from_micros, micros_of

# Returns no row when the key is taken, also by an earlier run of the same registration.
CREATE_USER = """
INSERT INTO users (username, username_key, password, role, created_at) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (username_key) DO NOTHING RETURNING id, username, role, disabled_at
"""
USER = "id, username, role, disabled_at"
FIND_USER = f"SELECT {USER} FROM users WHERE username_key = ?"
FIND_ACCOUNT = f"""
SELECT password, CASE WHEN code_until > ? THEN code_hash END,
    EXISTS (SELECT 1 FROM devices WHERE user_id = users.id AND network = ? AND seen_at > ?), {USER}
FROM users WHERE username_key = ?
"""
LIST_USERS = f"""
SELECT weight, created_at, (SELECT max(used_at) FROM sessions WHERE user_id = users.id),
    code_hash IS NOT NULL AND code_until > ?, {USER}
FROM users WHERE deleted_at IS NULL AND username_key > ? ORDER BY username_key LIMIT ?
"""
# How many other admins there are who can act.
OTHER_ADMINS = "SELECT count(*) FROM users WHERE role = 'admin' AND disabled_at IS NULL AND id <> ?"
SPEND_INVITATION = """
UPDATE invitations SET uses_left = uses_left - 1 WHERE token_hash = ? AND uses_left > 0 AND expires_at > ?
"""
END_SESSIONS = "DELETE FROM sessions WHERE user_id = ? AND token_hash IS NOT ?"
SESSION = """
s.id, s.token_hash, s.created_at, s.used_at, s.expires_at, s.address, s.name, s.ending, s.scopes,
u.id, u.username, u.role, u.disabled_at
"""
# A login that nobody has used for so long has ended; an API token has not.
VALID = "s.expires_at > ? AND (s.name IS NOT NULL OR s.used_at > ?)"
FIND_SESSIONS = f"""
SELECT {SESSION} FROM sessions s JOIN users u ON u.id = s.user_id
WHERE s.token_hash = ? AND {VALID} AND u.disabled_at IS NULL
"""
LIST_SESSIONS = f"""
SELECT {SESSION} FROM sessions s JOIN users u ON u.id = s.user_id
WHERE s.user_id = ? AND {VALID} ORDER BY s.id DESC
"""
# The oldest of the same kind as a new session.
DROP_OLDEST = """
DELETE FROM sessions WHERE id IN (
    SELECT id FROM sessions WHERE user_id = ? AND (name IS NULL) = ? ORDER BY id DESC LIMIT -1 OFFSET ?)
"""
AUDITED = "id, at, action, actor_id, actor, subject_id, subject, address, outcome, number, details"
SWEPT = 5000
_HOUR = 3600.0


class SqliteAccounts(SqliteDatabase):
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
            stored, *_, user_id, name, found_role, disabled = db.execute(FIND_ACCOUNT, (now, "", 0, key)).fetchone()
            if not password or stored != password:
                raise username_in_use(username)
            return _to_user(user_id, name, found_role, disabled)
        if invitation is not None and not db.execute(SPEND_INVITATION, (invitation, now)).rowcount:
            raise invitation_refused()
        user = _to_user(*row)
        _note(db, now, entry, user, key)
        return user

    @transaction
    def find_user(self, db: Cursor, now: int, key: str, network: str = "") -> Account | None:
        since = now - DEVICE_SECONDS * 1_000_000
        row = db.execute(FIND_ACCOUNT, (now, check_text(network), since, check_text(key))).fetchone()
        if row is None:
            return None
        password, code, known, *user = row
        return Account(_to_user(*user), password, code, bool(known))

    @transaction
    def list_users(self, db: Cursor, now: int, after_key: str, limit: int) -> Sequence[UserRow]:
        rows = db.execute(LIST_USERS, (now, check_text(after_key), limit))
        return [
            UserRow(
                _to_user(*user), weight, from_micros(created), None if used is None else from_micros(used), bool(code)
            )
            for weight, created, used, code, *user in rows
        ]

    @transaction
    def set_role(self, db: Cursor, now: int, key: str, role: Role, entry: Entry | None = None) -> User | None:
        user = _find(db, key)
        if user is None or user.role is role:
            return user
        if role is not Role.ADMIN:
            _check_last_admin(db, user)
        db.execute("UPDATE users SET role = ? WHERE id = ?", (role.value, user.id))
        _note(db, now, entry, user, key)
        return replace(user, role=role)

    @transaction
    def set_disabled(self, db: Cursor, now: int, key: str, disabled: bool, entry: Entry | None = None) -> User | None:
        user = _find(db, key)
        if user is None or user.disabled is disabled:
            return user
        if disabled:
            _check_last_admin(db, user)
            db.execute(END_SESSIONS, (user.id, None))
        db.execute("UPDATE users SET disabled_at = ? WHERE id = ?", (now if disabled else None, user.id))
        _note(db, now, entry, user, key)
        return replace(user, disabled=disabled)

    @transaction
    def set_weight(self, db: Cursor, now: int, key: str, weight: float, entry: Entry | None = None) -> bool:
        user = _find(db, key)
        if user is None:
            return False
        if db.execute("UPDATE users SET weight = ? WHERE id = ? AND weight <> ?", (weight, user.id, weight)).rowcount:
            _note(db, now, entry, user, key)
        return True

    @transaction
    def set_password(
        self, db: Cursor, now: int, user_id: int, old: str, new: str, keep: bytes | None, entry: Entry | None = None
    ) -> bool:
        found = db.execute("SELECT password, username_key FROM users WHERE id = ?", (user_id,)).fetchone()
        if found is None or found[0] not in (old, new):
            return False
        if found[0] != new:
            _set_password(db, user_id, new)
            db.execute(END_SESSIONS, (user_id, keep))
            _note(db, now, entry, None, found[1], user_id)
        return True

    @transaction
    def set_code(
        self, db: Cursor, now: int, key: str, code: bytes, seconds: float, entry: Entry | None = None
    ) -> User | None:
        user = _find(db, key)
        if user is not None:
            until = now + micros_of(seconds)
            statement = (
                "UPDATE users SET password = '', code_hash = ?, code_until = ? WHERE id = ? AND code_hash IS NOT ?"
            )
            if db.execute(statement, (code, until, user.id, code)).rowcount:
                db.execute(END_SESSIONS, (user.id, None))
                _note(db, now, entry, user, key)
        return user

    @transaction
    def use_code(self, db: Cursor, now: int, user_id: int, code: bytes, new: str, entry: Entry | None = None) -> bool:
        found = db.execute(
            "SELECT password, code_hash, code_until, username_key FROM users WHERE id = ?", (user_id,)
        ).fetchone()
        if found is None:
            return False
        password, stored, until, key = found
        if password == new:
            return True
        if stored != code or until <= now:
            return False
        _set_password(db, user_id, new)
        db.execute(END_SESSIONS, (user_id, None))
        _note(db, now, entry, None, key, user_id)
        return True

    @transaction
    def delete_user(self, db: Cursor, now: int, user_id: int, entry: Entry | None = None) -> bool:
        row = db.execute(
            f"SELECT username_key, {USER} FROM users WHERE id = ? AND deleted_at IS NULL", (user_id,)
        ).fetchone()
        if row is None:
            return False
        key, *columns = row
        user = _to_user(*columns)
        _check_last_admin(db, user)
        db.execute(END_SESSIONS, (user_id, None))
        db.execute("DELETE FROM devices WHERE user_id = ?", (user_id,))
        db.execute(
            """UPDATE users SET username = '', username_key = ' ' || id, password = '', role = 'user', code_hash = NULL,
            code_until = NULL, disabled_at = ?, deleted_at = ? WHERE id = ?""",
            (now, now, user_id),
        )
        _note(db, now, entry, user, key)
        return True

    @transaction
    def deleted_users(self, db: Cursor, now: int) -> Sequence[int]:
        rows = db.execute(
            "SELECT id FROM users WHERE deleted_at IS NOT NULL AND purged_at IS NULL ORDER BY id LIMIT 100"
        )
        return [user_id for (user_id,) in rows]

    @transaction
    def purge_deleted(self, db: Cursor, now: int, user_id: int, limit: int) -> bool:
        if db.execute("SELECT 1 FROM users WHERE id = ? AND deleted_at IS NOT NULL", (user_id,)).fetchone() is None:
            return True
        ids = json.dumps(
            [
                task_id
                for (task_id,) in db.execute(
                    "SELECT id FROM tasks WHERE user_id = ? AND finished_at IS NOT NULL AND NOT held ORDER BY id LIMIT ?",
                    (user_id, limit),
                )
            ]
        )
        for table, column in (("task_log", "task_id"), ("task_attempts", "task_id"), ("tasks", "id")):
            db.execute(f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))", (ids,))
        if db.execute("SELECT 1 FROM tasks WHERE user_id = ? LIMIT 1", (user_id,)).fetchone() is not None:
            return False
        db.execute("UPDATE users SET purged_at = ? WHERE id = ?", (now, user_id))
        return True

    @transaction
    def open_session(self, db: Cursor, now: int, user_id: int, session: NewSession, entry: Entry | None = None) -> None:
        row = db.execute(
            f"SELECT username_key, {USER} FROM users WHERE id = ? AND disabled_at IS NULL", (user_id,)
        ).fetchone()
        if row is None:
            raise account_ended()
        db.execute("DELETE FROM sessions WHERE user_id = ? AND expires_at <= ?", (user_id, now))
        values = (
            session.token_hash,
            user_id,
            now,
            now,
            now + micros_of(session.seconds),
            sanitize(session.address),
            session.name if session.name is None else check_text(session.name),
            session.ending,
            None if session.scopes is None else json.dumps(list(session.scopes)),
        )
        made = db.execute(
            """INSERT INTO sessions (token_hash, user_id, created_at, used_at, expires_at, address, name, ending, scopes)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (token_hash) DO NOTHING""",
            values,
        ).rowcount
        if not made:
            return
        db.execute(DROP_OLDEST, (user_id, session.name is None, MAX_SESSIONS))
        if session.network:
            db.execute(
                "INSERT INTO devices VALUES (?, ?, ?) ON CONFLICT (user_id, network) DO UPDATE SET seen_at = ?",
                (user_id, session.network, now, now),
            )
        _note(db, now, entry, _to_user(*row[1:]), row[0])

    @transaction
    def find_sessions(
        self, db: Cursor, now: int, token_hashes: Sequence[bytes], idle: float
    ) -> Mapping[bytes, Session]:
        found = {}
        unused = now - micros_of(min(_HOUR, idle / 10))
        for token_hash in token_hashes:
            row = db.execute(FIND_SESSIONS, (token_hash, now, now - micros_of(idle))).fetchone()
            if row is not None:
                found[token_hash] = session = _to_session(row)
                db.execute("UPDATE sessions SET used_at = ? WHERE id = ? AND used_at < ?", (now, session.id, unused))
        return found

    @transaction
    def list_sessions(self, db: Cursor, now: int, user_id: int, idle: float) -> Sequence[Session]:
        return [_to_session(row) for row in db.execute(LIST_SESSIONS, (user_id, now, now - micros_of(idle)))]

    @transaction
    def close_session(self, db: Cursor, now: int, token_hash: bytes, entry: Entry | None = None) -> None:
        for (user_id,) in db.execute(
            "DELETE FROM sessions WHERE token_hash = ? RETURNING user_id", (token_hash,)
        ).fetchall():
            _note_of(db, now, entry, user_id)

    @transaction
    def end_session(self, db: Cursor, now: int, user_id: int, session_id: int, entry: Entry | None = None) -> bool:
        if not 0 < session_id <= MAX_ID:
            return False
        if not db.execute("DELETE FROM sessions WHERE user_id = ? AND id = ?", (user_id, session_id)).rowcount:
            return False
        _note_of(db, now, entry, user_id)
        return True

    @transaction
    def end_sessions(self, db: Cursor, now: int, user_id: int, keep: bytes | None, entry: Entry | None = None) -> int:
        count = db.execute(END_SESSIONS, (user_id, keep)).rowcount
        if count:
            _note_of(db, now, entry, user_id)
        return count

    @transaction
    def create_invitation(
        self, db: Cursor, now: int, token_hash: bytes, uses: int, seconds: float, entry: Entry
    ) -> int:
        made = db.execute(
            """INSERT INTO invitations (token_hash, uses_left, created_by, created_at, expires_at)
            VALUES (?, ?, ?, ?, ?) ON CONFLICT (token_hash) DO NOTHING""",
            (token_hash, uses, entry.actor, now, now + micros_of(seconds)),
        ).rowcount
        if made:
            _note(db, now, entry)
        [(found,)] = db.execute("SELECT id FROM invitations WHERE token_hash = ?", (token_hash,)).fetchall()
        return int(found)

    @transaction
    def is_invited(self, db: Cursor, now: int, token_hash: bytes) -> bool:
        query = "SELECT 1 FROM invitations WHERE token_hash = ? AND uses_left > 0 AND expires_at > ?"
        return db.execute(query, (token_hash, now)).fetchone() is not None

    @transaction
    def list_invitations(self, db: Cursor, now: int) -> Sequence[Invitation]:
        rows = db.execute(
            """SELECT id, uses_left, created_by, created_at, expires_at FROM invitations
            WHERE uses_left > 0 AND expires_at > ? ORDER BY id DESC LIMIT 1000""",
            (now,),
        )
        return [Invitation(n, uses, by, from_micros(made), from_micros(until)) for n, uses, by, made, until in rows]

    @transaction
    def end_invitation(self, db: Cursor, now: int, invitation_id: int, entry: Entry | None = None) -> bool:
        if not 0 < invitation_id <= MAX_ID:
            return False
        if not db.execute("DELETE FROM invitations WHERE id = ?", (invitation_id,)).rowcount:
            return False
        _note(db, now, entry)
        return True

    @transaction
    def audit(self, db: Cursor, now: int, entries: Sequence[Entry]) -> None:
        for entry in entries:
            _note(db, now, entry)

    @transaction
    def count_refusals(self, db: Cursor, now: int, subject: str, seconds: float) -> int:
        query = """SELECT coalesce(sum(number), 0) FROM audit
            WHERE subject = ? AND at > ? AND action = 'login' AND outcome NOT IN ('ok', 'rate_limited')"""
        [(count,)] = db.execute(query, (check_text(subject), now - micros_of(seconds))).fetchall()
        return int(count)

    @transaction
    def list_audit(
        self,
        db: Cursor,
        now: int,
        before_id: int | None,
        limit: int,
        subject: str | None = None,
        action: str | None = None,
    ) -> Sequence[Audited]:
        rows = db.execute(
            f"""SELECT {AUDITED} FROM audit WHERE id < ?
            AND (? IS NULL OR subject = ? OR actor_id = (SELECT id FROM users WHERE username_key = ?))
            AND (? IS NULL OR action = ?) ORDER BY id DESC LIMIT ?""",
            (MAX_ID if before_id is None else min(before_id, MAX_ID), subject, subject, subject, action, action, limit),
        )
        return [Audited(n, from_micros(at), Entry(*columns)) for n, at, *columns in rows]

    @transaction
    def sweep_accounts(self, db: Cursor, now: int, audit_days: float, idle: float) -> None:
        for table, condition, before in (
            ("sessions", "expires_at <= ?", now),
            ("sessions", "name IS NULL AND used_at <= ?", now - micros_of(idle)),
            ("invitations", "uses_left = 0 OR expires_at <= ?", now),
            ("devices", "seen_at <= ?", now - DEVICE_SECONDS * 1_000_000),
            ("audit", "at < ?", now - micros_of(max(audit_days, 1) * 86_400)),
        ):
            key = "(user_id, network)" if table == "devices" else "id"
            columns = key.strip("()")
            db.execute(
                f"DELETE FROM {table} WHERE {key} IN (SELECT {columns} FROM {table} WHERE {condition} LIMIT {SWEPT})",
                (before,),
            )


def _to_user(user_id: int, username: str, role: str, disabled_at: int | None) -> User:
    return User(user_id, username, Role(role), disabled_at is not None)


def _to_session(row: Sequence[Any]) -> Session:
    number, token_hash, created, used, expires, address, name, ending, scopes, *user = row
    times = from_micros(created), from_micros(used), from_micros(expires)
    allowed = None if scopes is None else tuple(json.loads(scopes))
    return Session(number, _to_user(*user), token_hash, *times, address, name, ending, allowed)


def _find(db: Cursor, key: str) -> User | None:
    row = db.execute(FIND_USER, (check_text(key),)).fetchone()
    return _to_user(*row) if row else None


def _check_last_admin(db: Cursor, user: User) -> None:
    """Raises LastAdmin if this is the only admin who can act."""
    if user.role is Role.ADMIN and not user.disabled and not db.execute(OTHER_ADMINS, (user.id,)).fetchone()[0]:
        raise last_admin(user.username)


def _set_password(db: Cursor, user_id: int, new: str) -> None:
    statement = "UPDATE users SET password = ?, code_hash = NULL, code_until = NULL WHERE id = ?"
    db.execute(statement, (new, user_id))


def _note_of(db: Cursor, now: int, entry: Entry | None, user_id: int) -> None:
    if entry is not None:
        row = db.execute("SELECT username_key FROM users WHERE id = ?", (user_id,)).fetchone()
        _note(db, now, entry, None, row[0], user_id)


def _note(db: Cursor, now: int, entry: Entry | None, user: User | None = None, key: str = "", user_id: int = 0) -> None:
    """Add a row to the audit. ``user`` or ``user_id``, and ``key``, are the subject of an entry that has none."""
    if entry is None:
        return
    subject_id = entry.subject_id or (user.id if user is not None else user_id)
    db.execute(
        f"INSERT INTO audit ({AUDITED.removeprefix('id, ')}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            now,
            entry.action,
            entry.actor_id,
            sanitize(entry.actor),
            subject_id,
            sanitize(entry.subject or key),
            entry.address,
            entry.outcome,
            entry.number,
            None if entry.details is None else sanitize(entry.details),
        ),
    )
