"""Everything that stands between a password and its hash: limits, the fair line, late refusals, the audit of refusals.

How :class:`taskd.api.accounts.Accounts` uses it, with ``client`` made by the transport's ``Principal``::

    async def login(self, username, password, client):
        name, key = normalize_username(username)
        secret = password_bytes(password)
        account = await self._guard.account(key, client)
        # an unknown user and one without a password cost a hash as well, in the same line
        stored = account.password if account is not None and account.password else self._dummy
        known = account is not None and account.known
        good = await self._guard.check(key, client, known, _matches, secret, stored)
        if account is None or not good: ...

Whether a guess is right is said by ``_matches``: it must return False for the dummy and for an overlong password, or
these guesses would not count.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from taskd.api.account_reader import AccountReader
from taskd.api.hash_queue import LEISURE, HashQueue, Place, RunHash
from taskd.api.login_throttle import HOUR, Guess, LoginThrottle
from taskd.api.networks import SharedAddressNotice
from taskd.api.refusal_log import RefusalLog
from taskd.api.tarpit import Tarpit
from taskd.model.addresses import network_of
from taskd.model.errors import Draining, RateLimited, TotpRequired, WrongCode, WrongCredentials
from taskd.ports.accounts import Account, Entry, IAccountStore

LOGIN, REGISTER, SET_PASSWORD, TOTP_CONFIRM = "login", "register", "set_password", "totp_confirm"
LOCAL_LOGIN = "local_login"
"""Actions as the audit names them."""

WITHOUT_HASH = (SET_PASSWORD, TOTP_CONFIRM, LOCAL_LOGIN)
"""Those that check a code and no password."""


@dataclass(frozen=True)
class Client:
    """Who asks. ``owner`` is the connection: when it is closed, :meth:`LoginGuard.leave` is called with it. ``admit``
    is called with the user who is about to log in, and may raise RateLimited. ``closed``: the connection is closed."""

    address: str | None
    owner: Hashable
    admit: Callable[[int], None] = lambda user_id: None
    closed: Callable[[], bool] = lambda: False

    @property
    def network(self) -> str:
        """The source that the limits count."""
        return network_of(self.address)


def open_guard(
    clock: IReactorTime,
    store: IAccountStore,
    run_hash: RunHash,
    threads: int,
    *,
    logins: int = 0,
    registrations: int = 0,
    guesses: int = 0,
) -> LoginGuard:
    """A guard with all its parts. The limits are those of :class:`LoginThrottle`; 0 is no limit. ``run_hash`` runs
    ``threads`` calls at a time."""
    refusals = RefusalLog(clock, store)
    reader = AccountReader(clock, store, HOUR)
    throttle = LoginThrottle(clock, reader, refusals, logins, registrations, guesses)
    return LoginGuard(reader, throttle, HashQueue(clock, run_hash, threads), Tarpit(clock), refusals)


class LoginGuard:
    """Its parts are started and stopped by whoever has made them, but for those that :meth:`stop` stops."""

    def __init__(
        self,
        reader: AccountReader,
        throttle: LoginThrottle,
        hashes: HashQueue,
        tarpit: Tarpit,
        refusals: RefusalLog,
    ) -> None:
        self._reader = reader
        self._throttle = throttle
        self._hashes = hashes
        self._tarpit = tarpit
        self._refusals = refusals
        self._notice = SharedAddressNotice()

    def account(self, key: str, client: Client) -> Deferred[Account | None]:
        """The account that this client asks for. Fails with Unavailable."""
        return self._reader.account(key, client.network)

    async def check(
        self,
        key: str,
        client: Client,
        known: bool,
        matches: Callable[..., bool],
        *args: Any,
        action: str = LOGIN,
        second: Callable[[], Awaitable[bool]] | None = None,
    ) -> bool:
        """Whether ``matches(*args)``, which runs in a thread, says that the password of the account with this key is
        right. ``known``: the account has logged in from this network lately, or the client has a valid token of this
        account. A wrong password goes to the audit.

        ``second`` runs once the password is right, where the account has a second factor. It says whether all that the
        account needs was right; only then are earlier wrong guesses forgotten. If it raises WrongCode, that is a wrong
        guess like a wrong password. Any other error, such as TotpRequired, is neither. It raises WrongCode before it
        waits for anything if it can, so that guesses at the same time gain nothing.

        Raises what ``second`` raises; RateLimited, late; CutOff if the connection is to be closed; Draining when it is
        closed; Unavailable.
        """
        network = client.network
        guess: Guess | None = None

        def admit() -> None:
            nonlocal guess
            guess = self._throttle.begin(key, network, known)

        try:
            await self._throttle.check(key, network, known)
            _check_open(client)
            good = await self._hashes.run(
                Place(network, known, client.owner, admit, action not in WITHOUT_HASH), matches, *args
            )
        except RateLimited as e:
            self._count(action, key, network, e.code)
            _check_open(client)
            await self._tarpit.refuse(e, network, client.owner)
            raise
        except BaseException:
            if guess is not None:
                guess.dropped()
            raise
        assert guess is not None
        if not good:
            guess.failed()
            # one code for all wrong guesses: the audit's reader sees by the subject whether there is such a user
            self._count(action, key, network, WrongCredentials.code)
            return False
        try:
            whole = second is None or await second()
        except WrongCode as e:
            guess.failed()
            self._count(action, key, network, e.code)
            raise
        except BaseException as e:
            guess.dropped()
            if isinstance(e, TotpRequired):
                # somebody has the password
                self._count(action, key, network, e.code)
            raise
        if whole:
            guess.succeeded()
            self._notice.logged_in(key, client.address)
        else:
            guess.dropped()
        return True

    async def hash_new(self, client: Client, known: bool, function: Callable[..., Any], *args: Any) -> Any:
        """Hash a password that is to be set, in the same line. ``known``: by a client with a valid token. Raises as
        :meth:`check` does."""
        network = client.network
        _check_open(client)
        try:
            return await self._hashes.run(Place(network, known, client.owner), function, *args)
        except RateLimited as e:
            await self._tarpit.refuse(e, network, client.owner)
            raise

    def hash_later(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Hash in a later turn of the reactor, when no login waits. Fails with RateLimited if some wait now, or if too
        many such hashes do, and with Draining when the queue stops."""
        return self._hashes.run(LEISURE, function, *args)

    async def registration(self, client: Client, key: str = "") -> None:
        """Count a registration or a try of an invitation, before anything else is done for it. Raises as :meth:`check`
        does."""
        network = client.network
        try:
            self._throttle.register(network)
        except RateLimited as e:
            self._count(REGISTER, key, network, e.code)
            await self._tarpit.refuse(e, network, client.owner)
            raise

    async def local_login(self, client: Client, uid: int) -> None:
        """Count a login of a user of the machine, before anything else is done for it. Raises as :meth:`check` does."""
        try:
            self._throttle.local_login(uid)
        except RateLimited as e:
            await self._tarpit.refuse(e, client.network, client.owner)
            raise

    def local_refused(self, who: str, code: str) -> None:
        """Note a refused login of a user of the machine in the audit. The entry names no account: it is no guess at a
        password, so it counts for none."""
        self._refusals.add(Entry(LOGIN, outcome=code, details=who))

    def leave(self, owner: Hashable) -> None:
        """This connection is closed: it waits for nothing any more."""
        self._hashes.leave(owner)
        self._tarpit.leave(owner)

    async def stop(self) -> None:
        """Refuse all that wait, and store the refusals. Before the store stops."""
        self._hashes.stop()
        self._tarpit.stop()
        await self._refusals.stop()

    def _count(self, action: str, key: str, network: str, code: str) -> None:
        self._refusals.add(Entry(action, subject=key, address=network or None, outcome=code))


def _check_open(client: Client) -> None:
    """A connection that is closed takes no place in a line. Raises Draining."""
    if client.closed():
        raise Draining("this connection is closed; connect again")
