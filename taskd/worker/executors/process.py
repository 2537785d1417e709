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
from taskd.worker.forkserver.messages import JobEnd
from taskd.worker.handler_results import Fault, HandlerResult, Success, error_line, handler_returned, retry_delay


class ProcessExecutor:
    """Runs handlers in the children of a fork server."""

    def __init__(self, forkserver: ForkServerClient) -> None:
        self._forkserver = forkserver

    def run(self, attempt: Attempt, handler: ITaskHandler, attributes: Mapping[str, Any]) -> None:
        """Have a child call it."""
        job = self._forkserver.call(handler.kind, attributes, attempt)
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
    """What a handler did whose job ended like this. The handler can write into the child's connection: check it
    again."""
    if isinstance(end, Success):
        try:
            return handler_returned(msgspec.json.decode(end.result))
        except (ValueError, RecursionError) as e:
            return Fault(f"the result cannot be stored: {error_line(e)}")
    if isinstance(end, Fault):
        trace = cut_trace(end.trace) if end.trace else None
        return Fault(one_line(end.error), trace, retry_delay(end.after), end.final)
    return Fault(one_line(f"the child process ended: {end.reason}"))
