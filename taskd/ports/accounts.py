"""Users, sessions, invitations and the audit in the store."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime

import msgspec
from zope.interface import Interface

from taskd.model.tasks import Task
from taskd.model.users import Role, User

MAX_SESSIONS = 100
"""Logins of a user that are kept, and as many API tokens: the oldest go."""

DEVICE_SECONDS = 30 * 86_400
"""How long a network from which a user has logged in is known."""

GUESSED = ("login", "local_login", "totp_confirm", "totp_off")
"""Actions, as the audit names them, in which strangers could guess a password or a code."""

NO_GUESS = ("rate_limited", "totp_required")
"""Outcomes of these actions that are no wrong guess: nothing was checked, or the password was right."""

SETTLE_SECONDS = 600
"""How long after the deletion of an account requests of its owner may still be under way. They take some ten seconds at
most, so this is plenty. Only after that is the account known to have no more tasks."""


class Entry(msgspec.Struct, frozen=True):
    """A row of the audit: who did what to whom, from where, with which outcome.

    ``actor_id`` is 0 if nobody is logged in. ``subject`` is the key of a username, of the actor itself most often; a
    store fills in a ``subject_id`` and a ``subject`` that the action has just found, where the entry has none.
    ``number`` is how often it happened.
    """

    action: str
    actor_id: int = 0
    actor: str = ""
    subject_id: int = 0
    subject: str = ""
    address: str | None = None
    outcome: str = "ok"
    number: int = 1
    details: str | None = None


class Audited(msgspec.Struct, frozen=True):
    """A stored row of the audit."""

    id: int
    at: datetime
    entry: Entry


class Account(msgspec.Struct, frozen=True):
    """A user with the bcrypt hash of its password, which is empty until the user has set one. Only the code that checks
    passwords may see it. ``code`` is the hash of a one-time code that is valid now. ``known``: the user has logged in
    from the network in question within DEVICE_SECONDS. ``totp`` is the secret of the second factor; it counts only if
    ``user.totp`` says so, and else waits to be confirmed."""

    user: User
    password: str
    code: bytes | None = None
    known: bool = False
    totp: str | None = None


class Factor(msgspec.Struct, frozen=True):
    """What shows the second factor of an account with this ``secret``: the time step of a code, or the hash of a
    recovery code. A store accepts each recovery code once, and a step only if it is later than the last one that it
    has accepted for the account."""

    secret: str
    step: int | None = None
    recovery: bytes | None = None


class NewSession(msgspec.Struct, frozen=True):
    """A login or an API token that is to be stored for ``seconds``. ``network`` becomes a known one of the user, unless
    it is empty. An API token has a ``name`` and its last characters as ``ending``; ``scopes`` are what it allows, None
    for everything. ``password`` is the bcrypt hash that was checked for it, ``local_uid`` the uid of a local login,
    ``asked_by`` the hash of the session that asks for it: it is not stored if they are not the user's any more.
    ``factor`` is the second factor that was shown for it, which is then used up."""

    token_hash: bytes
    seconds: float
    address: str = ""
    network: str = ""
    name: str | None = None
    ending: str | None = None
    scopes: Sequence[str] | None = None
    password: str | None = None
    asked_by: bytes | None = None
    local_uid: int | None = None
    factor: Factor | None = None


class Session(msgspec.Struct, frozen=True):
    """A session or an API token that is valid now. ``used_at`` is exact to an hour. It ends at ``expires_at`` whatever
    happens. ``totp``: it was opened with the second factor that its user has now, or has confirmed it, or was asked for
    by such a session."""

    id: int
    user: User
    token_hash: bytes
    created_at: datetime
    used_at: datetime
    expires_at: datetime
    address: str = ""
    name: str | None = None
    ending: str | None = None
    scopes: tuple[str, ...] | None = None
    totp: bool = False


class UserRow(msgspec.Struct, frozen=True):
    """A user as admins see it. ``used_at`` is the latest use of a session that still exists, None if there is none."""

    user: User
    weight: float
    created_at: datetime
    used_at: datetime | None = None
    has_code: bool = False


class Invitation(msgspec.Struct, frozen=True):
    """An invitation that is valid now."""

    id: int
    uses_left: int
    created_by: str
    created_at: datetime
    expires_at: datetime


class IAccountStore(Interface):
    """Users, password hashes, sessions, invitations, the audit.

    A method with an ``entry`` adds it to the audit in the transaction that makes the change, and adds nothing if there
    is nothing to change. A deleted user is found by no method. ``idle`` is after how many seconds without use a login
    ends; API tokens end by their own time only. Times are those of the database.
    """

    def create_user(
        username: str,
        key: str,
        password: str,
        entry: Entry | None = None,
        role: Role = Role.USER,
        invitation: bytes | None = None,
    ) -> Awaitable[User]:
        """Store a user under a unique ``key``. ``password`` is a bcrypt hash, or empty. ``invitation`` is the hash of
        one, of which a use is spent. Repeating the call with the same hash that is not empty returns the same user and
        spends nothing. Raises UsernameInUse, and Forbidden if the invitation is not valid."""

    def find_local(uid: int) -> Awaitable[User | None]:
        """The user who is bound to this uid of the machine, None if there is none."""

    def create_local(username: str, key: str, uid: int, entry: Entry | None = None) -> Awaitable[User]:
        """Store a user without a password who is bound to this uid, unless somebody is bound to it already; returns
        that user then. Raises UsernameInUse."""

    def bind_local(key: str, uid: int | None, entry: Entry | None = None) -> Awaitable[User | None]:
        """Bind a user to this uid, or with None to none. If the user had another one, the sessions and API tokens end.
        None if there is no such user. Raises Conflict if another user is bound to the uid."""

    def find_user(key: str, network: str = "") -> Awaitable[Account | None]:
        """The account with this key, None if there is none. ``network`` is the one that ``known`` is about."""

    def find_users(asked: Sequence[tuple[str, str]]) -> Awaitable[Sequence[Account | None]]:
        """The same for several pairs of key and network, in their order."""

    def list_users(after_key: str, limit: int) -> Awaitable[Sequence[UserRow]]:
        """Users in the order of their keys, beginning after this one."""

    def set_role(key: str, role: Role, entry: Entry | None = None) -> Awaitable[User | None]:
        """Give a user this role. Returns the user as it is then, None if there is none. Raises LastAdmin if no admin
        that is not disabled would be left although there is one now."""

    def set_disabled(key: str, disabled: bool, entry: Entry | None = None) -> Awaitable[User | None]:
        """Disable a user, which ends its sessions and API tokens, or enable it again. Returns and raises like
        :meth:`set_role`."""

    def set_weight(key: str, weight: float, entry: Entry | None = None) -> Awaitable[bool]:
        """Set a user's share of the slots, compared with the weights of the others (1 at first). False if there is no
        such user."""

    def set_password(
        user_id: int, old: str, new: str, keep: bytes | None, entry: Entry | None = None
    ) -> Awaitable[bool]:
        """Replace the bcrypt hash ``old``. Ends all sessions and API tokens of the user except the session with the
        hash ``keep``, and forgets a one-time code. False if the stored hash is neither ``old`` nor ``new``: repeating
        the call changes nothing and returns True."""

    def replace_hash(user_id: int, old: str, new: str) -> Awaitable[bool]:
        """Replace the bcrypt hash ``old`` by another one of the same password: nothing ends. Returns like
        :meth:`set_password`."""

    def highest_rounds() -> Awaitable[int]:
        """The highest cost of a stored bcrypt hash, 0 if there is none. Reads all users."""

    def set_code(key: str, code: bytes, seconds: float, entry: Entry | None = None) -> Awaitable[User | None]:
        """Store the hash of a one-time code for so long. The password is empty from now on, and the user's sessions and
        API tokens end. None if there is no such user."""

    def use_code(user_id: int, code: bytes, new: str, entry: Entry | None = None) -> Awaitable[bool]:
        """Set the bcrypt hash ``new`` if the hash of the user's valid one-time code is ``code``, which is then used up.
        False if it is not; True also when the call is repeated."""

    def begin_totp(user_id: int, secret: str) -> Awaitable[bool]:
        """Store the secret of a second factor, which does not count before it is confirmed, in place of an earlier one
        that does not count. False if the user has one that counts, or does not exist."""

    def confirm_totp(
        user_id: int, factor: Factor, recovery_codes: Sequence[bytes], session: bytes, entry: Entry | None = None
    ) -> Awaitable[bool]:
        """Have the second factor count from now on: ``factor`` has the secret that waits, and the first step that is
        used up. Store the hashes of recovery codes, and that this session has shown the second factor. False if that
        secret does not wait, or the session has ended; True also when the call is repeated."""

    def end_totp(user_id: int, factor: Factor, entry: Entry | None = None) -> Awaitable[bool]:
        """Forget the user's second factor, its recovery codes, and which sessions and API tokens have shown it. False
        if it is not accepted; True also when the call is repeated."""

    def reset_totp(key: str, entry: Entry | None = None) -> Awaitable[User | None]:
        """The same without showing it, also for a secret that waits. None if there is no such user."""

    def delete_user(user_id: int, entry: Entry | None = None) -> Awaitable[bool]:
        """Delete an account: its name is free, its sessions, tokens, devices, password and second factor are gone; its
        id is never used again, and its tasks stay until :meth:`purge_deleted` has deleted them. False if there is no
        such user. Raises LastAdmin as :meth:`set_role` does."""

    def deleted_users() -> Awaitable[Sequence[int]]:
        """Ids of deleted users who have tasks, or who were deleted SETTLE_SECONDS ago and whose purge is not noted as
        final yet; at most 100."""

    def cancel_deleted(user_id: int, limit: int) -> Awaitable[Sequence[Task]]:
        """Cancel up to ``limit`` open tasks of a deleted user. Returns them; a repeated call returns only what it has
        cancelled itself."""

    def purge_deleted(user_id: int, limit: int) -> Awaitable[bool]:
        """Delete up to ``limit`` tasks of a deleted user that have ended and that nobody holds, with their logs and
        attempts. True if the user has no tasks now: :meth:`deleted_users` names it again if a request that was under
        way stores one, and no more once SETTLE_SECONDS have passed since the deletion."""

    def open_session(user_id: int, session: NewSession, entry: Entry | None = None) -> Awaitable[None]:
        """Store a session or an API token. Deletes the user's expired ones, and the oldest of its kind beyond
        MAX_SESSIONS. Repeating the call changes nothing. Raises AuthRequired if the user was disabled or deleted
        meanwhile, has another password or uid, or if the session that asks has ended; WrongCode if the second factor is
        not accepted, and TotpRequired if there is none with a password or a uid although the user needs one."""

    def find_sessions(token_hashes: Sequence[bytes], idle: float) -> Awaitable[Mapping[bytes, Session]]:
        """Those of the sessions and API tokens that are valid now and whose users are neither disabled nor deleted.
        Notes that they are used, if that was last noted more than an hour ago, or more than a tenth of ``idle``."""

    def list_sessions(user_id: int, idle: float) -> Awaitable[Sequence[Session]]:
        """The valid sessions and API tokens of a user, the newest first."""

    def close_session(token_hash: bytes, entry: Entry | None = None) -> Awaitable[None]:
        """Delete a session, if it exists."""

    def end_session(user_id: int, session_id: int, entry: Entry | None = None) -> Awaitable[bool]:
        """Delete this session or API token of the user. False if it has none with this id."""

    def end_sessions(user_id: int, keep: bytes | None, entry: Entry | None = None) -> Awaitable[int]:
        """Delete all sessions and API tokens of a user but the one with the hash ``keep``. Returns how many."""

    def create_invitation(token_hash: bytes, uses: int, seconds: float, entry: Entry) -> Awaitable[int]:
        """Store an invitation. Returns its id. Repeating the call returns the same id."""

    def is_invited(token_hash: bytes) -> Awaitable[bool]:
        """Whether this invitation is valid now."""

    def list_invitations() -> Awaitable[Sequence[Invitation]]:
        """The valid ones, the newest first, at most 1,000."""

    def end_invitation(invitation_id: int, entry: Entry | None = None) -> Awaitable[bool]:
        """Delete an invitation. False if there is none with this id."""

    def audit(entries: Sequence[Entry]) -> Awaitable[None]:
        """Add rows to the audit."""

    def count_refusals(subjects: Sequence[str], seconds: float) -> Awaitable[Sequence[int]]:
        """For each account with one of these keys, the sum of ``number`` over the rows of wrong guesses at it in the
        last so many seconds: those of GUESSED with any outcome but ``ok`` and NO_GUESS."""

    def list_audit(
        before_id: int | None, limit: int, subject: str | None = None, action: str | None = None
    ) -> Awaitable[Sequence[Audited]]:
        """Rows of the audit, the newest first, those with lower ids than ``before_id``. With ``subject``, only those
        in which this key of a username is the subject, or in which this user is the actor."""

    def sweep_accounts(audit_days: float, idle: float) -> Awaitable[bool]:
        """Delete what is past: expired and idle sessions, expired or spent invitations, devices older than
        DEVICE_SECONDS, rows of the audit older than ``audit_days``; of each some thousands at a time. True if there is
        more of something."""
