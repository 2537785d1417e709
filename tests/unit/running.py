"""Fakes for the surroundings of an attempt: threads and child processes that the test controls, and a listener that
records the output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.worker.context import OutputListener
from taskd.worker.executors.thread_pool import IThreads
from taskd.worker.forkserver.messages import JobEnd, Program

NOON = datetime(2025, 3, 1, 12, tzinfo=timezone.utc)


def make_task(kind: str = "k", payload: str = "{}", attempt: int = 1, **more: Any) -> Task:
    """A task that a worker runs."""
    return Task(7, 1, "work", kind, "q", State.RUNNING, NOON, NOON, payload, attempt=attempt, dispatch=2, **more)


class RecordingListener:
    """Records the output of a task."""

    def __init__(self) -> None:
        self.progresses: list[tuple[float, str]] = []
        self.received: list[str] = []
        self.dropped = 0
        self.times = 0

    def progress(self, fraction: float, note: str) -> None:
        """Record a progress."""
        self.progresses.append((fraction, note))

    def lines(self, lines: Sequence[str], dropped: int) -> None:
        """Record lines."""
        self.times += 1
        self.received += lines
        self.dropped += dropped


@implementer(IThreads)
class FakeThreads:
    """Runs functions at once; with ``held`` only when :meth:`run` or :meth:`run_in_reactor` is called."""

    def __init__(self, held: bool = False) -> None:
        self.held = held
        self.running = False
        self._work: list[Callable[[], None]] = []
        self._for_reactor: list[Callable[[], None]] = []

    def start(self) -> None:
        """Only remember it."""
        self.running = True

    async def stop(self) -> None:
        """Only remember it."""
        self.running = False

    def call(self, function: Callable[[], None]) -> None:
        """Run it now or later."""
        self._work.append(function)
        if not self.held:
            self.run()

    def call_aside(self, function: Callable[[], None]) -> None:
        """Run it now or later."""
        self.call(function)

    def wake(self, function: Callable[[], None]) -> None:
        """Run it now or later."""
        self._for_reactor.append(function)
        if not self.held:
            self.run_in_reactor()

    def run(self) -> None:
        """Run what waits for a thread."""
        while self._work:
            self._work.pop(0)()

    @property
    def wakeups(self) -> int:
        """How many calls wait for the reactor."""
        return len(self._for_reactor)

    def run_in_reactor(self) -> None:
        """Run what waits for the reactor."""
        while self._for_reactor:
            self._for_reactor.pop(0)()


class FakeJob:
    """A child process that ends when ``done`` is fired."""

    def __init__(self, what: Program | tuple[str, Mapping[str, Any]], listener: OutputListener) -> None:
        self.what: Any = what
        self.listener = listener
        self.stopped = 0
        self.done: Deferred[JobEnd] = Deferred()

    def stop(self) -> None:
        """Count the call. The job goes on until the test ends it."""
        self.stopped += 1


class FakeForkServer:
    """Gives its jobs to the test."""

    def __init__(self) -> None:
        self.running = False
        self.jobs: list[FakeJob] = []

    async def start(self) -> None:
        """Only remember it."""
        self.running = True

    async def stop(self) -> None:
        """Only remember it."""
        self.running = False

    def call(self, kind: str, context: Mapping[str, Any], listener: OutputListener) -> FakeJob:
        """Remember the job."""
        return self._add((kind, context), listener)

    def execute(self, program: Program, listener: OutputListener) -> FakeJob:
        """Remember the job."""
        return self._add(program, listener)

    def _add(self, what: Any, listener: OutputListener) -> FakeJob:
        self.jobs.append(FakeJob(what, listener))
        return self.jobs[-1]
