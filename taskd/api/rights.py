"""What the open connections may still do: sessions end, users are disabled, roles change, wherever that is decided.

Whoever changes an account announces it, so that a change takes effect within a second. Without the broker it takes
effect within FRESH seconds, because the store is asked again. While the store is away, what it said last holds for
LATEST seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.api.principal import Principal
from taskd.api.subscriptions import Subscriptions
from taskd.batching import Batcher
from taskd.model.errors import AuthRequired, Unavailable
from taskd.model.users import Role, User
from taskd.ports.accounts import Session
from taskd.ports.store import IStore

FRESH = 10.0
"""Seconds for which an answer of the store about a session holds."""

LATEST = 60.0
"""The same while the store is away."""

LATE = 5.0
"""Seconds after the news of a change in which an answer of the store may be from before it."""

SWEEP = 4.0
"""Seconds between looks at the sessions of those who get events: they send no request that would ask."""

CHECKED = 1000
"""Sessions in one statement at most."""


class _Live:
    """A session of open connections. ``checked`` is the time of the last answer of the store that it is valid, ``ends``
    the time when it expires; before ``fresh``, requests need no new answer. All times are by the clock. ``waiting`` are
    the requests that wait for one answer together."""

    __slots__ = ("checked", "ends", "fresh", "lacks_totp", "members", "role", "session", "totp", "waiting")

    def __init__(self, session: Session, role: Role, lacks_totp: bool, checked: float, ends: float) -> None:
        self.members: set[Subscriptions] = set()
        self.waiting: list[Deferred[None]] | None = None
        self.update(session, role, lacks_totp, checked, ends)

    def update(self, session: Session, role: Role, lacks_totp: bool, checked: float, ends: float) -> None:
        """The store has said this."""
        self.session = session
        self.role = role
        self.totp = session.user.totp
        self.lacks_totp = lacks_totp
        self.checked = checked
        self.ends = ends
        self.fresh = min(checked + FRESH, ends)

    def doubt(self) -> None:
        """What the store has said counts no more, nor does what it is about to say, for requests that come from now
        on."""
        self.checked = self.fresh = float("-inf")
        self.waiting = None

    def of(self, principal: Principal) -> Principal:
        """The principal with its present role and second factor."""
        if self.role is principal.role and self.totp is principal.totp and self.lacks_totp is principal.lacks_totp:
            return principal
        return replace(principal, role=self.role, totp=self.totp, lacks_totp=self.lacks_totp)

    @property
    def operator(self) -> bool:
        """Whether it sees the tasks of all users."""
        return self.role is not Role.USER and not self.lacks_totp


class Rights:
    """``idle`` is after how many seconds without use a login ends. ``role_of`` is the role of a user, as the store and
    the settings have it. ``admin_totp``: an admin needs a session that has shown the second factor."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        idle: float,
        role_of: Callable[[User], Role],
        admin_totp: bool = False,
    ) -> None:
        self._clock = clock
        self._store = store
        self._idle = idle
        self._role_of = role_of
        self._admin_totp = admin_totp
        self._live: dict[bytes, _Live] = {}
        self._of_user: dict[int, set[bytes]] = {}
        self._session_of: dict[Subscriptions, bytes] = {}
        self._changed_at: dict[int, float] = {}
        """When the rights of users have changed lately."""
        self._checks: Batcher[Sequence[bytes], Mapping[bytes, Session]] = Batcher(
            clock, self._read, max_weight=CHECKED, weigh=len
        )
        self._sweeps = LoopingCall(self._sweep)
        self._sweeps.clock = clock

    def start(self) -> None:
        """Begin to look at the sessions of those who get events."""
        self._sweeps.start(SWEEP, now=False)

    def stop(self) -> None:
        """Look no more."""
        if self._sweeps.running:
            self._sweeps.stop()

    # -- connections

    def enter(self, subscriptions: Subscriptions, session: Session) -> None:
        """The store has just said that this connection's session is valid."""
        self.leave(subscriptions)
        if subscriptions.closed:
            return
        live = self._note(session)
        live.members.add(subscriptions)
        self._session_of[subscriptions] = session.token_hash
        subscriptions.on_close.add(self.leave)

    def leave(self, subscriptions: Subscriptions) -> None:
        """The connection is closed, or nobody is logged in on it any more."""
        token_hash = self._session_of.pop(subscriptions, None)
        if token_hash is not None and (live := self._live.get(token_hash)) is not None:
            live.members.discard(subscriptions)
            if not live.members:
                self._forget(live)

    def connections(self, user_id: int) -> int:
        """How many connections of this user there are."""
        return sum(len(self._live[token_hash].members) for token_hash in self._of_user.get(user_id, ()))

    # -- requests

    def fresh(self, principal: Principal) -> Principal | None:
        """The same as :meth:`present`, if that needs no :meth:`check` before. Each request asks this."""
        live = self._live.get(principal.session or b"")
        if live is None or self._clock.seconds() >= live.fresh:
            return None
        return live.of(principal)

    async def check(self, principal: Principal, anew: bool = True) -> None:
        """Ask the store about the session. Raises Unavailable if it is away for LATEST seconds. If not ``anew``, the
        answer to a question that is under way is good enough: so the requests of a session go on in the order in which
        they came."""
        token_hash = principal.session or b""
        live = self._live.get(token_hash)
        if live is None:
            return
        now = self._clock.seconds()
        if now >= live.ends:
            self._end(live)
            return
        try:
            await (self._check([token_hash]) if anew else self._share(live))
        except Unavailable:
            if self._clock.seconds() - live.checked >= LATEST:
                raise

    def _share(self, live: _Live) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        if live.waiting is not None:
            live.waiting.append(done)
        else:
            waiting = live.waiting = [done]
            Deferred.fromCoroutine(self._check([live.session.token_hash])).addBoth(self._shared, live, waiting)
        return done

    def _shared(self, result: object, live: _Live, waiting: list[Deferred[None]]) -> None:
        if live.waiting is waiting:
            live.waiting = None
        for done in waiting:
            if isinstance(result, Failure):
                done.errback(result)
            else:
                done.callback(None)

    def present(self, principal: Principal) -> Principal:
        """The principal with its present role and second factor. Raises AuthRequired if the session has ended."""
        live = self._live.get(principal.session or b"")
        if live is None:
            raise AuthRequired("the session has ended; log in again")
        return live.of(principal)

    # -- news

    def changed(self, user_ids: Collection[int]) -> None:
        """The rights of these users have changed, or some of their sessions have ended."""
        now = self._clock.seconds()
        self._changed_at = {user: at for user, at in self._changed_at.items() if now - at <= LATE}
        self._changed_at.update(dict.fromkeys(user_ids, now))
        hashes = [token_hash for user_id in user_ids for token_hash in self._of_user.get(user_id, ())]
        for token_hash in hashes:
            self._live[token_hash].doubt()
        if hashes:
            Deferred.fromCoroutine(self._check_soon(hashes))

    # -- the store

    async def _check_soon(self, hashes: Sequence[bytes]) -> None:
        try:
            await self._check(hashes)
        except Unavailable:
            pass  # the next request of each asks again, or the next sweep
        except Exception:
            self._log.failure("sessions could not be checked")

    async def _check(self, hashes: Sequence[bytes]) -> None:
        for start in range(0, len(hashes), CHECKED):
            piece = hashes[start : start + CHECKED]
            found = await self._checks.submit(piece)
            for token_hash in piece:
                if token_hash not in self._live:
                    continue
                session = found.get(token_hash)
                if session is None:
                    self._end(self._live[token_hash])
                else:
                    self._note(session)

    async def _read(self, requests: list[Sequence[bytes]]) -> Sequence[Mapping[bytes, Session]]:
        hashes = list(dict.fromkeys(token_hash for hashes in requests for token_hash in hashes))
        return [await self._store.find_sessions(hashes, self._idle)] * len(requests)

    def _note(self, session: Session) -> _Live:
        now = self._clock.seconds()
        # what was read before the news of a change says nothing
        checked = now if now - self._changed_at.get(session.user.id, float("-inf")) > LATE else float("-inf")
        ends = now + (session.expires_at - self._store.now()).total_seconds()
        role = self._role_of(session.user)
        lacks_totp = self._admin_totp and role is Role.ADMIN and not session.totp
        live = self._live.get(session.token_hash)
        if live is None:
            live = self._live[session.token_hash] = _Live(session, role, lacks_totp, checked, ends)
            self._of_user.setdefault(session.user.id, set()).add(session.token_hash)
        was_operator = live.operator
        live.update(session, role, lacks_totp, checked, ends)
        if was_operator and not live.operator:
            for subscriptions in tuple(live.members):
                subscriptions.keep_only(session.user.id)
        return live

    def _end(self, live: _Live) -> None:
        self._forget(live)
        for subscriptions in tuple(live.members):
            self._session_of.pop(subscriptions, None)
            subscriptions.end_session()

    def _forget(self, live: _Live) -> None:
        token_hash, user_id = live.session.token_hash, live.session.user.id
        if self._live.get(token_hash) is live:
            del self._live[token_hash]
            hashes = self._of_user[user_id]
            hashes.discard(token_hash)
            if not hashes:
                del self._of_user[user_id]

    def _sweep(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._check_waiting())

    async def _check_waiting(self) -> None:
        """Check the sessions of those who get events. Never fails."""
        now = self._clock.seconds()
        due = []
        for live in tuple(self._live.values()):
            if now >= live.ends:
                self._end(live)
            elif now - live.checked >= FRESH - SWEEP:
                # no any(): a generator for each of 10,000 idle connections costs a tenth of a percent of a core
                for each in live.members:
                    if each.active:
                        due.append(live)
                        break
        try:
            await self._check([live.session.token_hash for live in due])
        except Unavailable:
            now = self._clock.seconds()
            for live in due:
                if now - live.checked >= LATEST:
                    for subscriptions in tuple(live.members):
                        subscriptions.suspend()
        except Exception:
            self._log.failure("sessions could not be checked")
