"""The names of this machine's users. A lookup may block for long, for example on LDAP, so it runs in a thread."""

from __future__ import annotations

import functools
import pwd
from collections.abc import Callable
from threading import Thread
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from taskd.model.errors import Unavailable

LOOKUP_SECONDS = 10.0
"""How long one who logs in waits for the name."""

MAX_LOOKUPS = 64
"""Lookups that run or wait for a thread, also those that nobody waits for any more."""

THREADS = 4


class _Pool(ThreadPool):
    # a lookup that hangs does not keep the process alive
    threadFactory: Any = staticmethod(functools.partial(Thread, daemon=True))


def find_name(uid: int) -> str | None:
    """The name of a uid, None if it has none. May block."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return None


class UserNames:
    """Looks up names in threads of its own: those of the reactor resolve hosts, and must stay free."""

    def __init__(self, reactor: Any, find: Callable[[int], str | None] = find_name) -> None:
        self._reactor = reactor
        self._find = find
        self._pool = _Pool(0, THREADS, "taskd.users")
        self._busy = 0

    def start(self) -> None:
        """Begin to take lookups."""
        self._pool.start()

    async def __call__(self, uid: int) -> str | None:
        """The name of a uid, None if it has none. Raises Unavailable if that takes too long."""
        if self._busy >= MAX_LOOKUPS:
            raise _no_answer()
        self._busy += 1
        answer: Deferred[str | None] = Deferred()
        lookup = deferToThreadPool(self._reactor, self._pool, self._find, uid)
        lookup.addBoth(self._ended).addCallbacks(answer.callback, answer.errback)
        try:
            return await answer.addTimeout(LOOKUP_SECONDS, self._reactor)
        except (TimeoutError, OSError):
            raise _no_answer() from None

    def _ended(self, result: Any) -> Any:
        self._busy -= 1
        return result


def _no_answer() -> Unavailable:
    return Unavailable("the machine does not say in time who you are; try again", retry_after=5)
