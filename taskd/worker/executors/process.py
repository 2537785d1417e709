"""Runs handlers in child processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from taskd.model.text import cut_trace, one_line
from taskd.ports.handler import ITaskHandler
from taskd.worker.attempt import Attempt, Place
from taskd.worker.executors.executor import name_of
from taskd.worker.forkserver.client import ForkServerClient, Job
from taskd.worker.forkserver.messages import Died, JobEnd, Raised, Returned
from taskd.worker.handler_results import Fault, HandlerResult, error_line, handler_returned, rejected, to_retry


class ProcessExecutor:
    """Runs handlers in the children of a fork server."""

    def __init__(self, forkserver: ForkServerClient) -> None:
        self._forkserver = forkserver

    def run(self, attempt: Attempt, handler: ITaskHandler, user: str, payload: Mapping[str, Any]) -> None:
        """Have a child call it."""
        task = attempt.task
        context = {
            "id": task.id,
            "attempt": task.attempt,
            "max_attempts": attempt.max_attempts,
            "user": user,
            "task": task.task,
            "kind": task.kind,
            "queue": task.queue,
            "payload": payload,
        }
        job = self._forkserver.call(task.kind, context, attempt)
        attempt.execution = JobExecution(job, name_of(handler))
        job.done.addCallback(lambda end: attempt.end(result_of_child(end)))


class JobExecution:
    """A handler or a program that runs in processes. Cancelling ends all of them."""

    patience: float | None = None
    stubborn = ""

    def __init__(self, job: Job, name: str) -> None:
        self._job = job
        self._name = name

    def cancel(self) -> None:
        """End all of its processes."""
        self._job.stop()

    def place(self) -> Place:
        """Only its name: it is in another process."""
        return Place(self._name)


def result_of_child(end: JobEnd) -> HandlerResult:
    """What a handler did whose job ended like this."""
    if isinstance(end, Returned):
        return _decoded(end.value)
    if isinstance(end, Raised):
        if end.rejected:
            return rejected(end.name, end.message)
        if end.retry:
            return to_retry(end.message, end.retry_after)
        words = ": ".join(each for each in (end.name, end.message) if each)
        return Fault(one_line(words), cut_trace(end.trace) or None)
    assert isinstance(end, Died)
    return Fault(one_line(f"the child process ended: {end.reason}"))


def _decoded(raw: msgspec.Raw) -> HandlerResult:
    # The handler can write into the child's connection: check the result again.
    try:
        return handler_returned(msgspec.json.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        return Fault(f"the result cannot be stored: {error_line(e)}")
