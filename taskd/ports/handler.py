"""What a worker runs: the interface of a handler and of what it gets."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

from zope.interface import Attribute, Interface

from taskd.model.backoff import Backoff

ISOLATIONS = ("async", "thread", "process", "program")
"""Ways of running: on the reactor, in a thread, in a child process that is reused, as a program of its own."""


class ITaskContext(Interface):
    """What a handler gets: its task, and ways to say how it goes. The same calls work on the reactor, in a thread and
    in a child process."""

    id: int = Attribute("the task's number; with attempt an idempotency key for what the handler does elsewhere")
    attempt: int = Attribute("which attempt this is, from 1 on")
    max_attempts: int = Attribute("after how many the task has failed")
    user: str = Attribute("the owner's username")
    task: str = Attribute("what it is, in the owner's words")
    kind: str = Attribute("the kind it is run as")
    queue: str = Attribute("the queue it came through")
    payload: Mapping[str, Any] = Attribute("the arguments, a JSON object")
    cancelled: bool = Attribute("True once the attempt should end: cancelled, out of time, or the worker stops")

    def progress(fraction: float, note: str = "") -> Awaitable[None]:
        """Say how far it is, from 0 to 1, and at what. It is said at once; awaiting is allowed and never needed."""

    def log(text: str) -> None:
        """Add a line, or several, to the task's log."""


class ITaskHandler(Interface):
    """Runs the tasks of one kind. What provides it in a Twisted plugin is served by every worker there."""

    kind: str = Attribute("the kind of task it serves")
    isolation: str = Attribute("'async', 'thread' or 'process': where run() is called")
    timeout: float | None = Attribute("seconds that an attempt may take; a task may ask for less")
    max_attempts: int = Attribute("how often a task is tried that does not say so itself")
    backoff: Backoff = Attribute("how long to wait between attempts")
    summary: str = Attribute("one line for people")

    def run(task: ITaskContext) -> Any:
        """Do the work; the answer is the result, any JSON value. With isolation ``async`` it must not block, and its
        answer is awaited. Raising fails the attempt: taskd.worker.Retry and taskd.worker.Reject say how."""
