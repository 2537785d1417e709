"""Accounts: who may register and log in, passwords, session tokens, API tokens, one-time codes, second factors.

The guard limits guesses, and has bcrypt run in threads of its own, so that a burst of logins delays neither the reactor
nor name resolution.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.api.local_users import LocalUsers, uid_text
from taskd.api.login_guard import LOCAL_LOGIN, TOTP_CONFIRM, Client, LoginGuard
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
    code_missing,
    code_refused,
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
from taskd.model.totp import digits_of, new_recovery_codes, new_secret, secret_uri, step_of
from taskd.model.users import (
    Registration,
    Role,
    User,
    check_new_password,
    check_new_username,
    normalize_username,
    password_bytes,
)
from taskd.ports.accounts import Account, Audited, Entry, Factor, Invitation, NewSession, Session, UserRow
from taskd.ports.store import IStore

TOKEN_IS_KNOWN = ("change_password", "delete_account", "totp_begin")
"""Actions in which a valid token counts like a known address. Not those in which a code could be guessed: who has
stolen the token and the password must not try codes from many addresses."""


class _HashRenewed(AuthRequired):
    """The session was not opened because the stored hash is another one, which may be of the same password."""


class Accounts:
    """``guard`` limits what strangers may try. ``rounds`` is bcrypt's cost. A login is valid for ``session_seconds``,
    and ends after ``idle`` seconds without use. ``admins`` are the keys of users who are admins whatever their role in
    the store, whether they exist or not. ``reveal_unknown``: a login says that nobody has the name, as the first
    version of the protocol did. ``local`` knows the users of this machine; without it they need a password.
    ``admin_totp``: admins need a second factor. ``wall`` is the time that authenticators have, too, in seconds since
    1970: not that of the store, which may keep a wrong time so that no task moves."""

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
        admin_totp: bool = False,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.session_seconds = session_seconds
        self.idle = idle
        self.registration = registration
        self.guard = guard
        self.admin_totp = admin_totp
        self._wall = wall
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

    async def login(self, client: Client, username: str, password: str, code: str | None = None) -> tuple[Session, str]:
        """A new session and its token. ``code`` is that of the second factor. Raises BadRequest, WrongCredentials,
        NoUser, TotpRequired, WrongCode, Forbidden for a disabled user, RateLimited, Unavailable."""
        name, key = normalize_username(username)
        try:
            return await self._log_in(client, name, key, password, code)
        except _HashRenewed:
            # once more, with the hash of the present cost
            return await self._log_in(client, name, key, password, code)

    async def _log_in(
        self, client: Client, name: str, key: str, password: str, code: str | None
    ) -> tuple[Session, str]:
        token = ""

        async def enter(account: Account) -> bool:
            nonlocal token
            token = self._make_token()
            if account.user.disabled:
                raise Forbidden("this account is disabled; ask an admin", field="username")
            factor = self._factor(account, code) if account.user.totp else None
            try:
                await self._open_session(client, account.user, token, password=account.password, factor=factor)
            except AuthRequired as e:
                if self._is_outdated(account):
                    # another login of the same user may have replaced the hash by one of the present cost
                    raise _HashRenewed(e.message) from None
                raise
            return True

        account = await self._check_password(client, name, key, password, second=enter)
        if not account.user.totp:
            await enter(account)
        self._renew_hash(account, password)
        return await self._opened(token)

    async def login_local(self, client: Client, uid: int | None, code: str | None = None) -> tuple[Session, str]:
        """The same for a user of this machine, whose uid the kernel has said. Raises Forbidden, TotpRequired,
        WrongCode, RateLimited, Unavailable."""
        if self._local is None:
            raise Forbidden("local logins are off here; the administrator sets TASKD_LOCAL_USERS=1", field="local")
        if uid is None:
            text = "a local login needs a connection to a UNIX socket of this server, without a balancer in between"
            raise Forbidden(text, field="local")
        user = await self._local.find(client, uid)
        token = self._make_token()
        enter = partial(self._open_session, client, user, token, uid_text(uid), local_uid=uid)
        if user.totp:
            key = normalize_username(user.username)[1]
            account = await self._store.find_user(key)

            async def second() -> bool:
                if account is None or account.user.id != user.id or not account.user.totp:
                    raise AuthRequired("the account was changed by somebody else meanwhile; log in again")
                await enter(factor=self._factor(account, code))
                return True

            # The kernel's word stands for a password that is right, so only the code can be guessed. The user is a
            # source of its own: others share the socket, and their wrong passwords must not lock this one out.
            own = replace(client, address=uid_text(uid))
            await self.guard.check(key, own, True, _right, action=LOCAL_LOGIN, second=second)
        else:
            await enter()
        return await self._opened(token)

    async def _open_session(
        self, client: Client, user: User, token: str, details: str | None = None, **checked: Any
    ) -> None:
        """Store a login. ``checked`` are fields of NewSession that must still hold."""
        client.admit(user.id)
        key = normalize_username(user.username)[1]
        entry = Entry("login", user.id, user.username, user.id, key, client.address, details=details)
        new = NewSession(token_hash(token), self.session_seconds, client.address or "", client.network, **checked)
        await self._store.open_session(user.id, new, entry)

    async def _opened(self, token: str) -> tuple[Session, str]:
        return await self._session(token, AuthRequired("the session has just been ended; log in again")), token

    async def _session(self, token: str, missing: TaskdError) -> Session:
        """The session or API token with this text. Raises ``missing`` if there is none, Unavailable."""
        hashed = token_hash(token)
        found = await self._store.find_sessions([hashed], self.idle)
        if hashed not in found:
            raise missing
        return found[hashed]

    async def _check_password(
        self,
        client: Client,
        name: str,
        key: str,
        password: str,
        action: str = "login",
        second: Callable[[Account], Awaitable[bool]] | None = None,
    ) -> Account:
        """The account with this key, if this is its password. An unknown name costs the same work and gets the same
        answer as a wrong password. Every action but the login is for a client that is logged in with this account.
        ``second`` is that of :meth:`LoginGuard.check`, and is called only for an account with a second factor. Without
        it the password alone is enough, and no wrong guesses are forgotten: or else a thief of the password and a
        session could guess codes in between without end."""
        secret = password_bytes(password)
        account = await self.guard.account(key, client)
        rounds = await self._highest_cost.get()
        stored = account.password if account is not None else ""
        known = action in TOKEN_IS_KNOWN or (account is not None and account.known)
        then = None if account is None or not account.user.totp else partial(second or _no_more, account)
        good = await self.guard.check(key, client, known, matches, secret, stored, rounds, action=action, second=then)
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
        text = "the session is unknown or has ended; log in with username and password"
        return await self._session(token, AuthRequired(text, field="token"))

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
        account = await self.guard.account(key, client)
        given = code_hash(code)
        stored = (account.code if account is not None else None) or b""
        second = partial(_no_more, account) if account is not None and account.user.totp else None
        good = await self.guard.check(
            key, client, False, hmac.compare_digest, stored, given, action="set_password", second=second
        )
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

    # -- second factors

    async def begin_totp(self, client: Client, who: Principal, password: str) -> tuple[str, str]:
        """The secret of a second factor and its URI. It counts once it is confirmed. Raises BadRequest,
        WrongCredentials, Conflict, RateLimited, Unavailable."""
        key = normalize_username(who.username)[1]
        await self._check_password(client, who.username, key, password, "totp_begin")
        secret = new_secret()
        if not await self._store.begin_totp(who.user_id, secret):
            raise Conflict("your account has a second factor already; turn it off first, with totp_off")
        return secret, secret_uri(secret, who.username)

    async def confirm_totp(self, client: Client, who: Principal, code: str) -> list[str]:
        """Have the second factor count from now on. Returns the recovery codes. Raises WrongCode, Conflict,
        RateLimited, Unavailable."""
        key = normalize_username(who.username)[1]
        account = await self.guard.account(key, client)
        if account is None or account.totp is None or account.user.totp:
            raise Conflict("no second factor waits to be confirmed; begin with totp_begin")
        codes, begun, entry = new_recovery_codes(), account.totp, _own_entry(TOTP_CONFIRM, who)

        async def second() -> bool:
            factor = self._code_factor(begun, code)
            hashes = [code_hash(each) for each in codes]
            if not await self._store.confirm_totp(who.user_id, factor, hashes, who.session or b"", entry):
                raise Conflict("the second factor was changed by somebody else meanwhile; begin again with totp_begin")
            return False

        # nothing but the code is checked, with the limits of passwords
        await self.guard.check(key, client, account.known, _right, action=TOTP_CONFIRM, second=second)
        return codes

    async def end_totp(self, client: Client, who: Principal, password: str, code: str) -> None:
        """Turn the second factor off. Raises BadRequest, WrongCredentials, WrongCode, Conflict, RateLimited,
        Unavailable."""
        key = normalize_username(who.username)[1]
        entry = _own_entry("totp_off", who)

        async def second(account: Account) -> bool:
            if not await self._store.end_totp(who.user_id, self._factor(account, code), entry):
                raise code_refused()
            return True

        account = await self._check_password(client, who.username, key, password, "totp_off", second)
        if not account.user.totp:
            raise Conflict("your account has no second factor")

    async def reset_totp(self, admin: Principal, username: str) -> User:
        """Turn the second factor of a user off. Raises BadRequest, NoUser, Unavailable."""
        name, key = normalize_username(username)
        return _found(await self._store.reset_totp(key, _entry("reset_totp", admin, key)), name)

    def _factor(self, account: Account, code: str | None) -> Factor:
        """What a code shows of this account's second factor. Raises TotpRequired without one, WrongCode."""
        secret = account.totp or ""
        if not code:
            raise code_missing()
        if digits_of(code) is None:
            return Factor(secret, recovery=code_hash(code))
        return self._code_factor(secret, code)

    def _code_factor(self, secret: str, code: str) -> Factor:
        """The same for a code of an authenticator. Raises WrongCode."""
        digits = digits_of(code)
        step = None if digits is None else step_of(secret, digits, self._wall())
        if step is None:
            raise code_refused()
        return Factor(secret, step)

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
        return await self._session(token, Conflict("the token has just been ended; make another one")), token

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


async def _no_more(account: Account) -> bool:
    """The password, or the one-time code, is all that is asked for, and less than a login needs."""
    return False


def _right() -> bool:
    return True


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
