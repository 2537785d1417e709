"""Logins in memory: hashes that take their time on a clock, and a guard above a real store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase

from taskd.api.account_reader import AccountReader
from taskd.api.hash_queue import HashQueue
from taskd.api.login_guard import Client, LoginGuard
from taskd.api.login_throttle import HOUR, LoginThrottle
from taskd.api.refusal_log import RefusalLog
from taskd.api.tarpit import Tarpit
from taskd.store.sqlite.store import SqliteStore
from tests.unit.stage import NOON, StageRunner, now

THREADS = 4
HASH = 0.23
"""Seconds that a hash takes."""

RIGHT = "right"


class SlowHashes:
    """Threads that run a function for HASH seconds, and that are never given more than they can run."""

    def __init__(self, clock: Clock, threads: int = THREADS) -> None:
        self.clock = clock
        self.threads = threads
        self.busy = 0
        self.begun = 0

    async def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        assert self.busy < self.threads
        self.busy += 1
        self.begun += 1
        try:
            return await deferLater(self.clock, HASH, function, *args)
        finally:
            self.busy -= 1


class Server:
    """What a server has of its own: a guard and its parts."""

    def __init__(self, clock: Clock, store: SqliteStore, most: int = 65_536, held: int = 1000, **limits: int) -> None:
        self.hashes = SlowHashes(clock)
        self.refusals = RefusalLog(clock, store)
        reader = AccountReader(clock, store, HOUR)
        self.throttle = LoginThrottle(clock, reader, self.refusals, most=most, **limits)
        self.queue = HashQueue(clock, self.hashes, THREADS)
        self.tarpit = Tarpit(clock, most=held)
        self.guard = LoginGuard(reader, self.throttle, self.queue, self.tarpit, self.refusals)

    def login(
        self, key: str, address: str | None = "192.0.2.1", password: str = RIGHT, known: bool = False, owner: Any = None
    ) -> Deferred[bool]:
        """Check a password as Accounts does."""
        client = Client(address, object() if owner is None else owner)
        return Deferred.fromCoroutine(self.guard.check(key, client, known, RIGHT.__eq__, password))


class LoginCase(SynchronousTestCase):
    """One store on a clock, and servers."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.runner = StageRunner()
        self.store = SqliteStore(self.runner, self.clock, lambda: NOON.timestamp() + self.clock.seconds())
        now(self.store.start())
        self.server = self.new_server()

    def new_server(self, **options: int) -> Server:
        """Another server on the same store."""
        return Server(self.clock, self.store, **options)

    def advance(self, seconds: float, step: float = HASH / 4) -> None:
        """Let time pass in small steps, and a moment more, so that what ends now has ended."""
        end = self.clock.seconds() + seconds + 1e-6
        while (left := end - self.clock.seconds()) > 1e-9:
            self.clock.advance(min(left, step))

    def guess(self, key: str, address: str = "192.0.2.1", known: bool = False, server: Server | None = None) -> str:
        """Try a wrong password, and wait for the answer. ``wrong``, or the class of the error."""
        outcome = self.outcome((server or self.server).login(key, address, "wrong", known))
        self.advance(6.0)
        [found] = outcome
        return found

    def outcome(self, login: Deferred[bool]) -> list[str]:
        """Gets what has become of a login, when it has."""
        found: list[str] = []
        login.addCallbacks(
            lambda good: found.append("right" if good else "wrong"),
            lambda failure: found.append(failure.type.__name__),
        )
        return found
