"""The interfaces of a handler and of its argument."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

from zope.interface import Attribute, Interface

from taskd.model.backoff import Backoff

ISOLATIONS = ("async", "thread", "process", "program")
"""Where a task runs: on the reactor, in a thread, in a child process that is reused, or as a program."""

IN_PROCESS = ("async", "thread")
"""Those that run in the worker's own process, so that a handler can kill the worker. A child process dies alone."""


class ITaskContext(Interface):
    """The argument of a handler: its task, and methods to report progress and log lines. They are the same on the
    reactor, in a thread and in a child process."""

    id: int = Attribute("the task's number; together with attempt an idempotency key for other services")
    attempt: int = Attribute("the number of this attempt, from 1 on")
    max_attempts: int = Attribute("after so many failed attempts the task fails")
    user: str = Attribute("the owner's username")
    task: str = Attribute("the owner's description of the task")
    kind: str = Attribute("the kind of the task")
    queue: str = Attribute("the queue that delivered it")
    payload: Mapping[str, Any] = Attribute("the arguments, a JSON object")
    cancelled: bool = Attribute("True as soon as the attempt should end: cancelled, out of time, or the worker stops")

    def progress(fraction: float, note: str = "") -> Awaitable[None]:
        """Report how far the task is, from 0 to 1, and what it is doing. Synchronous: awaiting the result is allowed,
        but never necessary."""

    def log(text: str) -> None:
        """Add one or more lines to the task's log."""


class ITaskHandler(Interface):
    """Runs the tasks of one kind. Workers also serve the Twisted plugins that provide it."""

    kind: str = Attribute("the kind of task that it serves")
    isolation: str = Attribute("'async', 'thread' or 'process': where run() is called")
    timeout: float | None = Attribute("seconds that an attempt may take; None: no limit; a task may ask for less")
    max_attempts: int = Attribute("the number of attempts of a task that does not set its own")
    backoff: Backoff = Attribute("the delays between attempts")
    summary: str = Attribute("one line for people")

    def run(task: ITaskContext) -> Any:
        """Do the work and return the result, any JSON value. With isolation ``async`` it must not block, and returns an
        awaitable. An exception fails the attempt: see taskd.worker.Retry and taskd.worker.Reject."""
