"""Who may guess a password, and when.

Three limits, all in memory and by the source of a login (:func:`taskd.model.addresses.network_of`):

- After a wrong password, the pair of account and source waits: a second at first, twice as long after each further one,
  at most 15 minutes. The right password ends this, and so do 24 hours without a wrong one.
- A source has a number of wrong passwords a minute, for all accounts.
- An account has a number of wrong passwords an hour from all strangers together, on all servers: other servers' guesses
  come from the audit (:class:`taskd.api.refusal_log.RefusalLog`).

A *known* source, from which this account has logged in lately, is under the first limit only. So nobody can lock out an
owner who comes from a known source. An account that does not exist is treated like any other.

A guess counts as wrong from its beginning until it turns out right, so guesses at the same time gain nothing.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from typing import NamedTuple, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from taskd.api.account_reader import AccountReader
from taskd.api.rate_limit import RateLimit
from taskd.api.recent import MAX_SOURCES, Recent
from taskd.api.refusal_log import RefusalLog
from taskd.model.errors import RateLimited

K = TypeVar("K")

FIRST_DELAY = 1.0
"""Seconds after the first wrong password."""

MAX_DELAY = 15 * 60.0

FORGET_SECONDS = 24 * 3600.0
"""A pair starts anew so long after its last wrong password."""

HOUR = 3600.0

LOCAL_LOGINS = 60
"""Logins of a user of the machine a minute. Each looks up a name and writes to the database."""

READ_SECONDS = 60.0
"""How long the number of guesses at an account that the store has counted is used."""

READ_GUESSES = 10
"""After so many guesses here, the number is read again, and other servers are told of them soon."""

ACCOUNT_RETRY = 300.0
"""``retry_after`` in seconds of an account that strangers may not try now. At most an hour later they may."""


class _Failures(NamedTuple):
    """Wrong passwords of a pair since its last right one."""

    number: int
    last: float
    """The time of the last one."""

    @property
    def until(self) -> float:
        """When the next guess is allowed."""
        return self.last + min(FIRST_DELAY * 2.0 ** min(self.number - 1, 30), MAX_DELAY)


class _Account:
    """Guesses of strangers at one account in the last hour."""

    def __init__(self) -> None:
        self.read_at = float("-inf")
        self.stored = 0
        """Those that the store had, and those that were to be stored, when reading began."""
        self.since = 0
        """Those that have failed here since then."""
        self.readers: list[Deferred[None]] | None = None


class Guess:
    """A password that is being checked. One of its methods is called in the end."""

    def __init__(self, throttle: LoginThrottle, account: str, network: str, known: bool) -> None:
        self._throttle = throttle
        self._account = account
        self._network = network
        self._known = known

    def failed(self) -> None:
        """The password is wrong, or there is no such account."""
        self._throttle._ended(self._account, self._network, self._known, False)

    def succeeded(self) -> None:
        """The password is right."""
        self._throttle._ended(self._account, self._network, self._known, True)

    def dropped(self) -> None:
        """It was not checked."""
        self._throttle._ended(self._account, self._network, self._known, None)


class LoginThrottle:
    """``logins`` are the wrong passwords of a source a minute, ``registrations`` its registrations and tries of
    invitations an hour, ``guesses`` the wrong passwords of an account an hour; 0 is no limit. At most ``most`` of each
    are remembered exactly."""

    def __init__(
        self,
        clock: IReactorTime,
        reader: AccountReader,
        refusals: RefusalLog,
        logins: int = 60,
        registrations: int = 20,
        guesses: int = 100,
        most: int = MAX_SOURCES,
    ) -> None:
        self._clock = clock
        self._reader = reader
        self._refusals = refusals
        self._most_guesses = guesses
        self._logins = RateLimit(clock, logins, 60.0, most)
        self._registrations = RateLimit(clock, registrations, HOUR, most)
        self._local = RateLimit(clock, LOCAL_LOGINS, 60.0, most)
        self._pairs: Recent[tuple[str, str], _Failures] = Recent(self._holds, _worst, most)
        self._most = most
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._pairs_busy: Counter[tuple[str, str]] = Counter()
        self._accounts_busy: Counter[str] = Counter()

    async def check(self, account: str, network: str, known: bool) -> None:
        """Whether a guess would be allowed now. ``account`` is the key of a username. Raises RateLimited, and
        Unavailable if the guesses at the account cannot be read."""
        if self._most_guesses and not known:
            await self._read(account)
        self._refuse(account, network, known)

    def begin(self, account: str, network: str, known: bool) -> Guess:
        """A password is going to be checked now. Raises RateLimited."""
        pair = (account, network)
        self._refuse(account, network, known)
        if self._pairs_busy[pair] and self._pairs.get(pair) is not None:
            # or a guesser would have as many tries after each delay as there are threads
            raise _refusal("another login to this account is being checked; try again in {} seconds", 1.0)
        self._pairs_busy[pair] += 1
        if not known:
            self._logins.take(network)
            self._accounts_busy[account] += 1
        return Guess(self, account, network, known)

    def register(self, network: str) -> None:
        """Count a registration, or a try of an invitation. Raises RateLimited."""
        if seconds := self._registrations.wait(network):
            raise _refusal("too many registrations from your address; try again in {} seconds", seconds)
        self._registrations.take(network)

    def local_login(self, uid: int) -> None:
        """Count a login of a user of the machine. Raises RateLimited."""
        if seconds := self._local.wait(str(uid)):
            raise _refusal("too many logins of your user of this machine; try again in {} seconds", seconds)
        self._local.take(str(uid))

    def _refuse(self, account: str, network: str, known: bool) -> None:
        failures = self._pairs.get((account, network))
        now = self._clock.seconds()
        if failures is not None and failures.until > now:
            raise _refusal("wrong passwords before; try again in {} seconds", failures.until - now)
        if known:
            return
        if seconds := self._logins.wait(network):
            raise _refusal("too many wrong passwords from your address; try again in {} seconds", seconds)
        if self._most_guesses and self._guesses(account) >= self._most_guesses:
            text = (
                "too many wrong passwords for this account; log in from where you have logged in lately, or try again"
                " in {} seconds, an hour at most"
            )
            raise _refusal(text, ACCOUNT_RETRY)

    def _guesses(self, account: str) -> int:
        """Guesses of strangers in the last hour, with those that are being checked."""
        found = self._accounts.get(account)
        return self._accounts_busy[account] + (found.stored + found.since if found is not None else 0)

    async def _read(self, account: str) -> None:
        """Read how many guesses the store knows of, unless that was read lately. Callers at the same time share it."""
        found = self._account(account)
        if self._clock.seconds() < found.read_at + READ_SECONDS and found.since < READ_GUESSES:
            return
        if found.readers is not None:
            done: Deferred[None] = Deferred()
            found.readers.append(done)
            return await done
        found.readers = []
        outcome: Failure | None = None
        # Guesses that are stored meanwhile count twice until the next time, and none is missed.
        pending, before = self._refusals.pending(account), found.since
        try:
            stored = await self._reader.guesses(account)
            found.stored = stored + pending
            found.since -= before
            found.read_at = self._clock.seconds()
        except Exception:
            outcome = Failure()
            raise
        finally:
            readers, found.readers = found.readers, None
            for reader in readers:
                reader.callback(None) if outcome is None else reader.errback(outcome)

    def _account(self, account: str) -> _Account:
        """What is known of this account. One that is forgotten is read again from the store."""
        found = self._accounts.setdefault(account, _Account())
        self._accounts.move_to_end(account)
        if len(self._accounts) > self._most:
            self._accounts.popitem(last=False)
        return found

    def _ended(self, account: str, network: str, known: bool, right: bool | None) -> None:
        pair = (account, network)
        _one_less(self._pairs_busy, pair)
        if not known:
            _one_less(self._accounts_busy, account)
        if right is not False:
            if right:
                self._pairs.clear(pair)
            if not known:
                self._logins.give_back(network)
            return
        before = self._pairs.own(pair)
        self._pairs.set(pair, _Failures((before.number if before is not None else 0) + 1, self._clock.seconds()))
        if not known and self._most_guesses:
            found = self._account(account)
            found.since += 1
            if found.since >= READ_GUESSES:
                self._refusals.hurry()

    def _holds(self, failures: _Failures) -> bool:
        return failures.last + FORGET_SECONDS > self._clock.seconds()


def _worst(one: _Failures, other: _Failures) -> _Failures:
    return _Failures(max(one.number, other.number), max(one.last, other.last))


def _one_less(counter: Counter[K], key: K) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]


def _refusal(text: str, seconds: float) -> RateLimited:
    whole = max(1, math.ceil(seconds))
    return RateLimited(text.format(whole), retry_after=whole)
