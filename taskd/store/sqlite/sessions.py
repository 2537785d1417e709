"""Sessions, API tokens and invitations in SQLite."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from sqlite3 import Cursor
from typing import Any

from taskd.model.errors import code_missing, code_refused
from taskd.model.users import Role, User
from taskd.ports.accounts import MAX_SESSIONS, Entry, Invitation, NewSession, Session
from taskd.store.audit import touch_after
from taskd.store.refusals import MAX_ID, account_ended, check_text, sanitize
from taskd.store.sqlite.audit import note
from taskd.store.sqlite.database import SqliteDatabase, transaction
from taskd.store.sqlite.rows import from_micros, micros_of
from taskd.store.sqlite.totp import use_factor

END_SESSIONS = "DELETE FROM sessions WHERE user_id = ? AND token_hash IS NOT ?"
# What was checked before may not hold any more.
FIND_OWNER = """
SELECT username_key, totp_at FROM users WHERE id = ?1 AND disabled_at IS NULL AND (?2 IS NULL OR password = ?2)
    AND (?3 IS NULL OR EXISTS (SELECT 1 FROM sessions WHERE token_hash = ?3 AND user_id = ?1))
    AND (?4 IS NULL OR local_uid = ?4)
"""
DROP_EXPIRED = "DELETE FROM sessions WHERE user_id = ? AND expires_at <= ?"
OPEN_SESSION = """
INSERT INTO sessions (token_hash, user_id, created_at, used_at, expires_at, address, name, ending, scopes, totp)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ? OR coalesce((SELECT totp FROM sessions WHERE token_hash = ?), 0))
"""
IS_OPEN = "SELECT 1 FROM sessions WHERE token_hash = ?"
# The oldest of the same kind as a new session.
DROP_OLDEST = f"""
DELETE FROM sessions WHERE id IN (
    SELECT id FROM sessions WHERE user_id = ? AND (name IS NULL) = ? ORDER BY id DESC LIMIT -1 OFFSET {MAX_SESSIONS})
"""
NOTE_DEVICE = """
INSERT INTO devices (user_id, network, seen_at) VALUES (?, ?, ?)
ON CONFLICT (user_id, network) DO UPDATE SET seen_at = excluded.seen_at
"""
# A login that nobody has used for so long has ended; an API token has not.
_VALID = """
SELECT s.id, s.token_hash, s.created_at, s.used_at, s.expires_at, s.address, s.name, s.ending, s.scopes, s.totp,
    u.id, u.username, u.role, u.totp_at
FROM sessions s JOIN users u ON u.id = s.user_id
WHERE u.disabled_at IS NULL AND s.expires_at > ? AND (s.name IS NOT NULL OR s.used_at > ?)
"""
FIND_SESSION = f"{_VALID} AND s.token_hash = ?"
LIST_SESSIONS = f"{_VALID} AND s.user_id = ? ORDER BY s.id DESC"
TOUCH_SESSION = "UPDATE sessions SET used_at = ? WHERE id = ?"
CLOSE_SESSION = "DELETE FROM sessions WHERE token_hash = ? RETURNING user_id"
END_SESSION = "DELETE FROM sessions WHERE user_id = ? AND id = ?"
FIND_KEY = "SELECT username_key FROM users WHERE id = ?"

CREATE_INVITATION = """
INSERT INTO invitations (token_hash, uses_left, created_by, created_at, expires_at) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (token_hash) DO NOTHING
"""
FIND_INVITATION = "SELECT id FROM invitations WHERE token_hash = ?"
IS_INVITED = "SELECT 1 FROM invitations WHERE token_hash = ? AND uses_left > 0 AND expires_at > ?"
LIST_INVITATIONS = """
SELECT id, uses_left, created_by, created_at, expires_at FROM invitations
WHERE uses_left > 0 AND expires_at > ? ORDER BY id DESC LIMIT 1000
"""
END_INVITATION = "DELETE FROM invitations WHERE id = ?"


class SqliteSessions(SqliteDatabase):
    """The part of IAccountStore on SQLite that is about sessions and invitations."""

    @transaction
    def open_session(self, db: Cursor, now: int, user_id: int, session: NewSession, entry: Entry | None = None) -> None:
        owner = db.execute(FIND_OWNER, (user_id, session.password, session.asked_by, session.local_uid)).fetchone()
        if owner is None:
            raise account_ended()
        key, totp_at = owner
        db.execute(DROP_EXPIRED, (user_id, now))
        if db.execute(IS_OPEN, (session.token_hash,)).fetchone():
            return
        if session.factor is not None:
            if not use_factor(db, user_id, session.factor):
                raise code_refused()
        elif totp_at is not None and (session.password, session.local_uid) != (None, None):
            raise code_missing()
        row = (
            session.token_hash,
            user_id,
            now,
            now,
            now + micros_of(session.seconds),
            sanitize(session.address),
            session.name if session.name is None else check_text(session.name),
            session.ending,
            None if session.scopes is None else json.dumps(list(session.scopes)),
            session.factor is not None,
            session.asked_by,
        )
        db.execute(OPEN_SESSION, row)
        db.execute(DROP_OLDEST, (user_id, session.name is None))
        if session.network:
            db.execute(NOTE_DEVICE, (user_id, check_text(session.network), now))
        note(db, now, entry, user_id, key)

    @transaction
    def find_sessions(
        self, db: Cursor, now: int, token_hashes: Sequence[bytes], idle: float
    ) -> Mapping[bytes, Session]:
        found, stale = {}, now - micros_of(touch_after(idle))
        for token_hash in token_hashes:
            row = db.execute(FIND_SESSION, (now, now - micros_of(idle), token_hash)).fetchone()
            if row is not None:
                found[token_hash] = _to_session(row)
                if row[3] < stale:
                    db.execute(TOUCH_SESSION, (now, row[0]))
        return found

    @transaction
    def list_sessions(self, db: Cursor, now: int, user_id: int, idle: float) -> Sequence[Session]:
        return [_to_session(row) for row in db.execute(LIST_SESSIONS, (now, now - micros_of(idle), user_id))]

    @transaction
    def close_session(self, db: Cursor, now: int, token_hash: bytes, entry: Entry | None = None) -> None:
        for (user_id,) in db.execute(CLOSE_SESSION, (token_hash,)).fetchall():
            _note_of(db, now, entry, user_id)

    @transaction
    def end_session(self, db: Cursor, now: int, user_id: int, session_id: int, entry: Entry | None = None) -> bool:
        if session_id > MAX_ID or not db.execute(END_SESSION, (user_id, session_id)).rowcount:
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
        row = (token_hash, uses, sanitize(entry.actor), now, now + micros_of(seconds))
        if db.execute(CREATE_INVITATION, row).rowcount:
            note(db, now, entry)
        [(found,)] = db.execute(FIND_INVITATION, (token_hash,)).fetchall()
        return int(found)

    @transaction
    def is_invited(self, db: Cursor, now: int, token_hash: bytes) -> bool:
        return db.execute(IS_INVITED, (token_hash, now)).fetchone() is not None

    @transaction
    def list_invitations(self, db: Cursor, now: int) -> Sequence[Invitation]:
        rows = db.execute(LIST_INVITATIONS, (now,))
        return [Invitation(n, uses, by, from_micros(made), from_micros(until)) for n, uses, by, made, until in rows]

    @transaction
    def end_invitation(self, db: Cursor, now: int, invitation_id: int, entry: Entry | None = None) -> bool:
        if invitation_id > MAX_ID or not db.execute(END_INVITATION, (invitation_id,)).rowcount:
            return False
        note(db, now, entry)
        return True


def _to_session(row: Sequence[Any]) -> Session:
    number, token_hash, created, used, expires, address, name, ending, scopes, shown, *owner = row
    user_id, username, role, totp_at = owner
    times = from_micros(created), from_micros(used), from_micros(expires)
    allowed = None if scopes is None else tuple(json.loads(scopes))
    user = User(user_id, username, Role(role), totp=totp_at is not None)
    return Session(number, user, token_hash, *times, address, name, ending, allowed, bool(shown))


def _note_of(db: Cursor, now: int, entry: Entry | None, user_id: int) -> None:
    if entry is not None:
        note(db, now, entry, user_id, db.execute(FIND_KEY, (user_id,)).fetchone()[0])
