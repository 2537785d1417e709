"""Handlers that wait, each by another clock of its process. None of them may end early or late."""

from __future__ import annotations

import threading

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from taskd.ports.handler import ITaskContext
from taskd.worker import handler


@handler("wait.reactor", max_attempts=1)
async def wait_by_the_reactor(task: ITaskContext) -> None:
    """Wait as handlers do that use the reactor."""
    from twisted.internet import reactor

    await deferLater(reactor, task.payload["seconds"])


@handler("wait.thread", max_attempts=1)
def wait_in_a_thread(task: ITaskContext) -> None:
    """Wait on an event: time.sleep fails under libfaketime."""
    threading.Event().wait(task.payload["seconds"])


@handler("wait.ever", max_attempts=1)
async def wait_for_ever(task: ITaskContext) -> None:
    """Wait until a timeout or an order ends it."""
    await Deferred()


@handler("leave.threads", max_attempts=1)
def leave_threads(task: ITaskContext) -> None:
    """Leave work in threads that Python and Twisted would wait for."""
    from concurrent.futures import ThreadPoolExecutor

    from twisted.internet import reactor

    never = threading.Event()
    threading.Thread(target=never.wait).start()
    ThreadPoolExecutor(1).submit(never.wait)
    reactor.callInThread(never.wait)  # type: ignore[attr-defined]
