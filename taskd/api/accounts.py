"""Accounts: who may register and log in, passwords, session tokens, API tokens, one-time codes.

The guard limits guesses, and has bcrypt run in threads of its own, so that a burst of logins delays neither the reactor
nor name resolution.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.api.local_users import LocalUsers, uid_text
from taskd.api.login_guard import Client, LoginGuard
from taskd.api.password_hashes import HighestCost, make_hash, matches, rounds_of
from taskd.api.principal import Principal
from taskd.model.errors import (
    AuthRequired,
    BadRequest,
    Conflict,
    Forbidden,
    NotFound,
    NoUser,
    TaskdError,
    WrongCredentials,
    quote,
)
from taskd.model.tokens import (
    CODE_SECONDS,
    TOKEN_PREFIX,
    check_scopes,
    check_token_name,
    code_hash,
    new_code,
    new_token,
    token_hash,
)
from taskd.model.users import (
    Registration,
    Role,
    User,
    check_new_password,
    check_new_username,
    normalize_username,
    password_bytes,
)
from taskd.ports.accounts import Account, Audited, Entry, Invitation, NewSession, Session, UserRow
from taskd.ports.store import IStore


class Accounts:
    """``guard`` limits what strangers may try. ``rounds`` is bcrypt's cost. A login is valid for ``session_seconds``,
    and ends after ``idle`` seconds without use. ``admins`` are the keys of users who are admins whatever their role in
    the store, whether they exist or not. ``reveal_unknown``: a login says that nobody has the name, as the first
    version of the protocol did. ``local`` knows the users of this machine; without it they need a password."""

    _log = Logger()

    def __init__(
        self,
        store: IStore,
        guard: LoginGuard,
        rounds: int,
        session_seconds: int,
        make_token: Callable[[], str] = new_token,
        admins: Collection[str] = (),
        *,
        idle: float = 7 * 86_400.0,
        registration: Registration = Registration.OPEN,
        reveal_unknown: bool = False,
        local: LocalUsers | None = None,
    ) -> None:
        self.session_seconds = session_seconds
        self.idle = idle
        self.registration = registration
        self.guard = guard
        self._store = store
        self._rounds = rounds
        self._make_token = make_token
        self._admins = frozenset(admins)
        self._reveal_unknown = reveal_unknown
        self._local = local
        self._highest_cost = HighestCost(store, rounds)

    def role_of(self, user: User) -> Role:
        """The role of a user: the settings may name admins, too."""
        if self._admins and normalize_username(user.username)[1] in self._admins:
            return Role.ADMIN
        return user.role

    async def register(self, client: Client, username: str, password: str, invitation: str | None = None) -> User:
        """Create an account. Raises BadRequest, Forbidden, UsernameInUse, RateLimited, Unavailable."""
        if self.registration is Registration.CLOSED:
            raise Forbidden("nobody can register here; ask an admin for an account")
        name, key = check_new_username(username)
        secret = check_new_password(password, name)
        await self.guard.registration(client, key)
        invited = await self._check_invitation(invitation)
        if key in self._admins:
            # whoever came first would be an admin
            text = "is the name of an admin in TASKD_ADMINS: the machine's administrator makes it, with taskadmin"
            raise Forbidden(f"{quote(name)} {text}", field="username")
        hashed = await self.guard.hash_new(client, False, make_hash, secret, self._rounds)
        entry = Entry("register", actor=name, subject=key, address=client.address)
        return await self._store.create_user(name, key, hashed, entry, invitation=invited)

    async def _check_invitation(self, invitation: str | None) -> bytes | None:
        """The hash of the invitation that is needed. Nobody without one can find out which names there are."""
        if self.registration is Registration.OPEN:
            return None
        if invitation is None:
            raise Forbidden("registration is by invitation here; ask an admin for one", field="invitation")
        hashed = token_hash(invitation)
        if not await self._store.is_invited(hashed):
            raise Forbidden("this invitation is not valid, or no longer; ask for a new one", field="invitation")
        return hashed

    async def login(self, client: Client, username: str, password: str) -> tuple[Session, str]:
        """A new session and its token. Raises BadRequest, WrongCredentials, NoUser, Forbidden for a disabled user,
        RateLimited, Unavailable."""
        name, key = normalize_username(username)
        account = await self._check_password(client, name, key, password)
        try:
            opened = await self._log_in_with(client, account)
        except AuthRequired:
            if not self._is_outdated(account):
                raise
            # another login of the same user may have replaced the hash by one of the present cost
            account = await self._check_password(client, name, key, password)
            opened = await self._log_in_with(client, account)
        self._renew_hash(account, password)
        return opened

    async def login_local(self, client: Client, uid: int | None) -> tuple[Session, str]:
        """The same for a user of this machine, whose uid the kernel has said. Raises Forbidden, RateLimited,
        Unavailable."""
        if self._local is None:
            raise Forbidden("local logins are off here; the administrator sets TASKD_LOCAL_USERS=1", field="local")
        if uid is None:
            text = "a local login needs a connection to a UNIX socket of this server, without a balancer in between"
            raise Forbidden(text, field="local")
        user = await self._local.find(client, uid)
        return await self._open_session(client, user, uid_text(uid), local_uid=uid)

    async def _log_in_with(self, client: Client, account: Account) -> tuple[Session, str]:
        if account.user.disabled:
            raise Forbidden("this account is disabled; ask an admin", field="username")
        return await self._open_session(client, account.user, password=account.password)

    async def _open_session(
        self, client: Client, user: User, details: str | None = None, **checked: Any
    ) -> tuple[Session, str]:
        """A new session and its token. ``checked`` are fields of NewSession that must still hold."""
        client.admit(user.id)
        token = self._make_token()
        key = normalize_username(user.username)[1]
        entry = Entry("login", user.id, user.username, user.id, key, client.address, details=details)
        new = NewSession(token_hash(token), self.session_seconds, client.address or "", client.network, **checked)
        await self._store.open_session(user.id, new, entry)
        found = await self._store.find_sessions([new.token_hash], self.idle)
        if new.token_hash not in found:
            raise AuthRequired("the session has just been ended; log in again")
        return found[new.token_hash], token

    async def _check_password(
        self, client: Client, name: str, key: str, password: str, action: str = "login"
    ) -> Account:
        """The account with this key, if this is its password. An unknown name costs the same work and gets the same
        answer as a wrong password. Every action but the login is for a client that is logged in with this account."""
        secret = password_bytes(password)
        account = await self._store.find_user(key, client.network)
        rounds = await self._highest_cost.get()
        stored = account.password if account is not None else ""
        known = action != "login" or (account is not None and account.known)
        good = await self.guard.check(key, client, known, matches, secret, stored, rounds, action=action)
        if account is None and self._reveal_unknown:
            raise NoUser(f"nobody is registered as {quote(name)}; register first", field="username")
        if account is None or not good:
            raise WrongCredentials("username or password is not right", field="password")
        return account

    def _is_outdated(self, account: Account) -> bool:
        """Whether the stored hash has another cost than the settings want."""
        return rounds_of(account.password) not in (None, self._rounds)

    def _renew_hash(self, account: Account, password: str) -> None:
        """After the reply to a login, give its password a hash of the present cost, if no login waits then."""
        if self._is_outdated(account):
            done = self.guard.hash_later(make_hash, password_bytes(password), self._rounds)
            Deferred.fromCoroutine(self._replace_hash(account, done)).addErrback(self._not_renewed)

    async def _replace_hash(self, account: Account, new: Awaitable[str]) -> None:
        await self._store.replace_hash(account.user.id, account.password, await new)

    def _not_renewed(self, failure: Failure) -> None:
        if failure.check(TaskdError) is None:
            self._log.failure("a password hash was not renewed", failure)
        # else the next login tries again

    async def resume(self, token: str) -> Session:
        """The session of an earlier login, or an API token. Raises AuthRequired, Unavailable."""
        hashed = token_hash(token)
        found = await self._store.find_sessions([hashed], self.idle)
        if hashed not in found:
            raise AuthRequired("the session is unknown or has ended; log in with username and password", field="token")
        return found[hashed]

    async def forget(self, session: bytes, entry: Entry | None = None) -> None:
        """End a session. Raises Unavailable."""
        await self._store.close_session(session, entry)

    # -- passwords

    async def change_password(self, client: Client, who: Principal, password: str, new_password: str) -> None:
        """Set a new password and end all other sessions and API tokens. Raises BadRequest, WrongCredentials, Conflict,
        RateLimited, Unavailable."""
        secret = _new_password(new_password, who.username)
        key = normalize_username(who.username)[1]
        account = await self._check_password(client, who.username, key, password, "change_password")
        hashed = await self.guard.hash_new(client, True, make_hash, secret, self._rounds)
        entry = Entry("change_password", who.user_id, who.username, who.user_id, key, who.address)
        done = await self._store.set_password(who.user_id, account.password, hashed, who.session, entry)
        if not done and self._is_outdated(account):
            # a login may have replaced the hash by one of the present cost
            account = await self._check_password(client, who.username, key, password, "change_password")
            done = await self._store.set_password(who.user_id, account.password, hashed, who.session, entry)
        if not done:
            raise Conflict("the password was changed by somebody else meanwhile; log in again", field="password")

    async def set_password(self, client: Client, username: str, code: str, new_password: str) -> User:
        """Set a password with a one-time code. Raises BadRequest, WrongCredentials, RateLimited, Unavailable."""
        name, key = normalize_username(username)
        secret = _new_password(new_password, name)
        account = await self._store.find_user(key, client.network)
        given = code_hash(code)
        stored = (account.code if account is not None else None) or b""
        good = await self.guard.check(key, client, False, hmac.compare_digest, stored, given, action="set_password")
        if account is not None and good:
            hashed = await self.guard.hash_new(client, False, make_hash, secret, self._rounds)
            user = account.user
            entry = Entry("set_password", user.id, user.username, user.id, key, client.address)
            if await self._store.use_code(user.id, given, hashed, entry):
                return user
        raise WrongCredentials("this one-time code is not right for this username, or no longer", field="code")

    async def reset_password(self, admin: Principal, username: str) -> tuple[User, str]:
        """A one-time code with which the user sets a new password; the old one is gone. Raises BadRequest, NoUser,
        Unavailable."""
        name, key = normalize_username(username)
        code = new_code()
        user = await self._store.set_code(key, code_hash(code), CODE_SECONDS, _entry("reset_password", admin, key))
        return _found(user, name), code

    async def delete_account(self, client: Client, who: Principal, password: str) -> None:
        """Delete the client's own account. Raises BadRequest, WrongCredentials, LastAdmin, RateLimited, Unavailable."""
        key = normalize_username(who.username)[1]
        await self._check_password(client, who.username, key, password, "delete_account")
        await self._store.delete_user(who.user_id, _entry("delete_account", who, key))

    # -- sessions and API tokens

    async def sessions(self, who: Principal) -> Sequence[Session]:
        """The client's own sessions and API tokens, the newest first. Raises Unavailable."""
        return await self._store.list_sessions(who.user_id, self.idle)

    async def end_session(self, who: Principal, session_id: int) -> None:
        """End one of the client's own. Raises NotFound, Unavailable."""
        entry = _own_entry("end_session", who, f"session {session_id}")
        if not await self._store.end_session(who.user_id, session_id, entry):
            raise NotFound(f"you have no session {session_id}", field="session_id")

    async def end_sessions(self, who: Principal, keep_this: bool) -> int:
        """End all of the client's own. Returns how many. Raises Unavailable."""
        keep = who.session if keep_this else None
        return await self._store.end_sessions(who.user_id, keep, _own_entry("end_sessions", who))

    async def new_token(
        self, who: Principal, name: str, days: float, scopes: Sequence[str] | None
    ) -> tuple[Session, str]:
        """A new API token. Raises BadRequest, Unavailable."""
        name = check_token_name(name)
        allowed = check_scopes(scopes)
        token = TOKEN_PREFIX + self._make_token()
        new = NewSession(
            token_hash(token),
            days * 86_400,
            who.address or "",
            name=name,
            ending=token[-8:],
            scopes=allowed,
            asked_by=who.session,
        )
        details = f"{name}, for {days:g} days, {' '.join(allowed)}"
        await self._store.open_session(who.user_id, new, _own_entry("new_token", who, details))
        found = await self._store.find_sessions([new.token_hash], self.idle)
        if new.token_hash not in found:
            raise Conflict("the token has just been ended; make another one")
        return found[new.token_hash], token

    # -- for admins

    async def set_weight(self, admin: Principal, username: str, weight: float) -> str:
        """Set a user's share of the slots. Returns the name. Raises BadRequest, NoUser, Unavailable."""
        name, key = normalize_username(username)
        entry = _entry("set_weight", admin, key, f"weight {weight:g}")
        if not await self._store.set_weight(key, weight, entry):
            raise no_user(name)
        return name

    async def set_role(self, admin: Principal, username: str, role: Role) -> User:
        """Raises BadRequest, NoUser, LastAdmin, Unavailable."""
        name, key = normalize_username(username)
        entry = _entry("set_role", admin, key, f"role {role.value}")
        return _found(await self._store.set_role(key, role, entry), name)

    async def set_disabled(self, admin: Principal, username: str, disabled: bool) -> User:
        """Raises BadRequest, NoUser, LastAdmin, Unavailable."""
        name, key = normalize_username(username)
        entry = _entry("set_disabled", admin, key, "disabled" if disabled else "enabled")
        return _found(await self._store.set_disabled(key, disabled, entry), name)

    async def end_user_sessions(self, admin: Principal, username: str) -> tuple[User, int]:
        """End all sessions and API tokens of a user. Raises BadRequest, NoUser, Unavailable."""
        user = await self.find(username)
        key = normalize_username(username)[1]
        return user, await self._store.end_sessions(user.id, None, _entry("end_user_sessions", admin, key))

    async def find(self, username: str) -> User:
        """The user with this name. Raises BadRequest, NoUser, Unavailable."""
        name, key = normalize_username(username)
        account = await self._store.find_user(key)
        return _found(None if account is None else account.user, name)

    async def list_users(self, after_key: str, limit: int) -> Sequence[UserRow]:
        """Users in the order of their keys, after this one. Raises Unavailable."""
        return await self._store.list_users(after_key, limit)

    async def invite(self, admin: Principal, uses: int, days: float) -> tuple[int, str]:
        """The id of a new invitation and its text. Raises Unavailable."""
        invitation = self._make_token()
        entry = _entry("invite", admin, "", f"{uses} uses, {days:g} days")
        number = await self._store.create_invitation(token_hash(invitation), uses, days * 86_400, entry)
        return number, invitation

    async def invitations(self) -> Sequence[Invitation]:
        """Raises Unavailable."""
        return await self._store.list_invitations()

    async def end_invitation(self, admin: Principal, invitation_id: int) -> None:
        """Raises NotFound, Unavailable."""
        entry = _entry("end_invitation", admin, "", f"invitation {invitation_id}")
        if not await self._store.end_invitation(invitation_id, entry):
            raise NotFound(f"there is no invitation {invitation_id}", field="invitation_id")

    async def read_audit(
        self, before_id: int | None, limit: int, username: str | None, action: str | None
    ) -> Sequence[Audited]:
        """Rows of the audit, the newest first. Raises BadRequest, Unavailable."""
        key = None if username is None else normalize_username(username)[1]
        return await self._store.list_audit(before_id, limit, key, action)


def no_user(name: str) -> NoUser:
    """Nobody has this name. Only admins may learn it."""
    return NoUser(f"nobody is registered as {quote(name)}", field="username")


def _found(user: User | None, name: str) -> User:
    if user is None:
        raise no_user(name)
    return user


def _entry(action: str, who: Principal, key: str, details: str | None = None) -> Entry:
    return Entry(action, who.user_id, who.username, subject=key, address=who.address, details=details)


def _own_entry(action: str, who: Principal, details: str | None = None) -> Entry:
    """An entry whose subject is the client's own account."""
    return _entry(action, who, normalize_username(who.username)[1], details)


def _new_password(password: str, username: str) -> bytes:
    """The bytes of a new password in a field of its own. Raises BadRequest."""
    try:
        return check_new_password(password, username)
    except BadRequest as e:
        raise BadRequest(e.message, field="new_password") from None
