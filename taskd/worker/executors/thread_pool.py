"""Threads for handlers that block: a pool of their own, since the reactor's serves DNS and others."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from threading import Thread
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool
from zope.interface import Interface, implementer

STOP_SECONDS = 5.0
"""What the threads get to come back when the worker stops; one that does not is left behind."""


class IThreads(Interface):
    """Runs functions beside the reactor."""

    def start() -> None:
        """Begin to take work."""

    def stop() -> Awaitable[None]:
        """Take no more work, and wait for what runs, but not for long. Never fails."""

    def call(function: Callable[[], None]) -> None:
        """Run it in a thread. It must not raise."""

    def wake(function: Callable[[], None]) -> None:
        """Run it in the reactor's thread soon. May be called in any thread."""


class _Pool(ThreadPool):
    # a daemon thread does not keep the process alive, even if it hangs
    threadFactory: Any = staticmethod(functools.partial(Thread, daemon=True))


@implementer(IThreads)
class Threads:
    """Up to ``size`` threads, made as they are needed. With at least the worker's slots no task waits for one, since a
    thread that hangs keeps its slot."""

    _log = Logger()

    def __init__(self, reactor: Any, size: int) -> None:
        self._reactor = reactor
        self._pool = _Pool(minthreads=0, maxthreads=size, name="taskd.worker")

    def start(self) -> None:
        """Begin to take work."""
        self._pool.start()

    async def stop(self) -> None:
        """Take no more work, and wait up to STOP_SECONDS for what runs."""
        if not self._pool.started:
            return
        ended: Deferred[None] = Deferred()
        came: list[bool] = []

        def over(all_came: bool) -> None:
            if not came:
                came.append(all_came)
                ended.callback(None)

        def join() -> None:
            self._pool.stop()
            self._reactor.callFromThread(over, True)

        timer = self._reactor.callLater(STOP_SECONDS, over, False)
        # joining blocks, so that it has a thread to itself
        Thread(target=join, name="taskd.worker.stop", daemon=True).start()
        await ended
        if timer.active():
            timer.cancel()
        if not came[0]:
            self._log.warn("{count} threads do not come back and are left behind", count=len(self._pool.working))

    def call(self, function: Callable[[], None]) -> None:
        """Run it in a thread. It must not raise."""
        self._pool.callInThread(function)

    def wake(self, function: Callable[[], None]) -> None:
        """Run it in the reactor's thread soon. May be called in any thread."""
        self._reactor.callFromThread(function)
