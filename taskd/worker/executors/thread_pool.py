"""A pool of threads for handlers that block. The reactor's own pool resolves names and must stay free."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from threading import Thread
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool
from zope.interface import Interface, implementer

STOP_SECONDS = 5.0
"""What running handlers get to return when the worker stops. A thread that hangs then is left behind."""


class IThreads(Interface):
    """Runs functions in threads."""

    def start() -> None:
        """Begin to take work."""

    def stop() -> Awaitable[None]:
        """Take no more work, and wait a few seconds for what runs. Never fails."""

    def call(function: Callable[[], None]) -> None:
        """Run it in a thread. It must not raise."""

    def call_aside(function: Callable[[], None]) -> None:
        """Run it in a thread that no task needs. It must not raise."""

    def wake(function: Callable[[], None]) -> None:
        """Run it in the reactor's thread soon. May be called in any thread."""


class _Pool(ThreadPool):
    # a daemon thread does not keep the process alive, even if it hangs
    threadFactory: Any = staticmethod(functools.partial(Thread, daemon=True))


@implementer(IThreads)
class Threads:
    """Up to ``size`` threads, started when they are needed. No task waits for one if ``size`` is at least the number of
    the worker's slots, because a thread that hangs keeps its slot."""

    _log = Logger()

    def __init__(self, reactor: Any, size: int) -> None:
        self._reactor = reactor
        self._pool = _Pool(minthreads=0, maxthreads=size, name="taskd.worker")
        self._aside = _Pool(minthreads=0, maxthreads=1, name="taskd.worker.aside")

    def start(self) -> None:
        """Begin to take work."""
        self._pool.start()
        self._aside.start()

    async def stop(self) -> None:
        """Take no more work, and wait up to STOP_SECONDS for what runs."""
        if not self._pool.started:
            return
        ended: Deferred[None] = Deferred()

        def join() -> None:
            self._pool.stop()
            self._aside.stop()
            self._reactor.callFromThread(ended.callback, None)

        # joining blocks: it needs a thread of its own
        Thread(target=join, name="taskd.worker.stop", daemon=True).start()
        try:
            await ended.addTimeout(STOP_SECONDS, self._reactor)
        except TimeoutError:
            self._log.warn(
                "{count} threads do not return and are left behind",
                count=len([*self._pool.working, *self._aside.working]),
            )

    def call(self, function: Callable[[], None]) -> None:
        """Run it in a thread. It must not raise."""
        self._pool.callInThread(function)

    def call_aside(self, function: Callable[[], None]) -> None:
        """Run it in a thread that no task needs. It must not raise."""
        self._aside.callInThread(function)

    def wake(self, function: Callable[[], None]) -> None:
        """Run it in the reactor's thread soon. May be called in any thread."""
        self._reactor.callFromThread(function)
