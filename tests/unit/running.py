"""What an attempt needs around it, in memory: threads that run when they are told to, children that end when they are
told to, and an ear for what tasks say."""

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
    """A task that was claimed."""
    return Task(7, 1, "work", kind, "q", State.RUNNING, NOON, NOON, payload, attempt=attempt, dispatch=2, **more)


class Ear:
    """Hears what a task says."""

    def __init__(self) -> None:
        self.progressed: list[tuple[float, str]] = []
        self.lines_heard: list[str] = []
        self.dropped = 0
        self.times = 0

    def progress(self, fraction: float, note: str) -> None:
        """One more time."""
        self.progressed.append((fraction, note))

    def lines(self, lines: Sequence[str], dropped: int) -> None:
        """Some more lines."""
        self.times += 1
        self.lines_heard += lines
        self.dropped += dropped


@implementer(IThreads)
class FakeThreads:
    """Runs functions at once; with ``held`` when :meth:`run` is called. The reactor has time when :meth:`hear` is."""

    def __init__(self, held: bool = False) -> None:
        self.held = held
        self.running = False
        self._work: list[Callable[[], None]] = []
        self._heard: list[Callable[[], None]] = []

    def start(self) -> None:
        """Nothing has to be made ready."""
        self.running = True

    async def stop(self) -> None:
        """Nothing has to be waited for."""
        self.running = False

    def call(self, function: Callable[[], None]) -> None:
        """Now or later."""
        self._work.append(function)
        if not self.held:
            self.run()

    def wake(self, function: Callable[[], None]) -> None:
        """Now or later."""
        self._heard.append(function)
        if not self.held:
            self.hear()

    def run(self) -> None:
        """Do what has been waiting for a thread."""
        while self._work:
            self._work.pop(0)()

    @property
    def wakeups(self) -> int:
        """How often the reactor would be woken."""
        return len(self._heard)

    def hear(self) -> None:
        """Do what has been waiting for the reactor."""
        while self._heard:
            self._heard.pop(0)()


class FakeJob:
    """A child process that ends when ``done`` is fired."""

    def __init__(self, what: Program | tuple[str, Mapping[str, Any]], listener: OutputListener) -> None:
        self.what: Any = what
        self.listener = listener
        self.stopped = 0
        self.done: Deferred[JobEnd] = Deferred()

    def stop(self) -> None:
        """It goes on until it is ended."""
        self.stopped += 1


class FakeForkServer:
    """Keeps its jobs for the test."""

    def __init__(self) -> None:
        self.running = False
        self.jobs: list[FakeJob] = []

    async def start(self) -> None:
        """Nothing is imported."""
        self.running = True

    async def stop(self) -> None:
        """Nothing is ended."""
        self.running = False

    def call(self, kind: str, context: Mapping[str, Any], listener: OutputListener) -> FakeJob:
        """Remember it."""
        return self._add((kind, context), listener)

    def execute(self, program: Program, listener: OutputListener) -> FakeJob:
        """Remember it."""
        return self._add(program, listener)

    def _add(self, what: Any, listener: OutputListener) -> FakeJob:
        self.jobs.append(FakeJob(what, listener))
        return self.jobs[-1]
