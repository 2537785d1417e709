"""The real worker with two more handlers: ``python -m tests.faults.worker OPTIONS`` is ``twistd taskworker OPTIONS``.

Every attempt writes a line when it begins and one when it ends to the file that FAULTS_RUNS names. ``record`` takes
``{"seconds": n}`` as ``simulate`` does, after ``{"fails": n}`` attempts that fail at once; with ``{"talks": n}`` it
writes so many lines into the task's log meanwhile. ``poison`` ends the process:
``{"how": "exit"}``, ``"kill"`` or ``"crash"``. The kinds of tests.faults.handlers are served too.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from zope.interface import implementer

from taskd.model.backoff import Backoff
from taskd.model.limits import DEFAULT_ATTEMPTS
from taskd.model.tasks import Task
from taskd.ports.handler import ITaskContext, ITaskHandler
from taskd.worker import wiring
from taskd.worker.attempt import Attempt
from taskd.worker.handler import Retry
from taskd.worker.runner import Runner
from tests.daemons import TWISTD

KIND = "record"
"""The kind of most tasks."""

RUNS = "FAULTS_RUNS"
"""The environment variable that names the file of runs."""


class Run(NamedTuple):
    """An attempt. ``worker`` is the process id, ``at`` and ``until`` are its begin and end in seconds since 1970.

    ``until`` is None for an attempt that has not ended, or whose worker has died.
    """

    task_id: int
    dispatch: int
    attempt: int
    worker: int
    at: float
    until: float | None = None


def read_runs(file: Path) -> list[Run]:
    """The runs that all workers have recorded, in the order in which they began.

    An end without a begin is a run of its own: a copy of a worker has run the worker's code.
    """
    found: dict[tuple[int, int, int, int], list[Run]] = {}
    # the workers write monotonic times, because a scenario may set their clocks
    offset = time.time() - time.monotonic()
    for line in file.read_text().splitlines() if file.exists() else []:
        what, *numbers, at = line.split()
        task_id, dispatch, attempt, worker = (int(number) for number in numbers)
        when = float(at) + offset
        runs = found.setdefault((task_id, dispatch, attempt, worker), [])
        if what == "begin" or not runs or runs[-1].until is not None:
            runs.append(Run(task_id, dispatch, attempt, worker, when))
        if what == "end":
            runs[-1] = runs[-1]._replace(until=when)
    return sorted((run for runs in found.values() for run in runs), key=lambda run: run.at)


class RunLog:
    """The file of runs. Each line is one write, so that lines of several workers do not mix."""

    def __init__(self, file: str) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, what: str, task: Task) -> None:
        """Record the begin or the end of an attempt of this task."""
        line = f"{what} {task.id} {task.dispatch} {task.attempt} {os.getpid()} {time.monotonic():.6f}\n"
        os.write(self._file, line.encode())


class _Kind:
    """The attributes that both kinds share."""

    isolation = "async"
    timeout: float | None = None
    max_attempts = DEFAULT_ATTEMPTS
    backoff = Backoff()
    summary = ""


@implementer(ITaskHandler)
class Record(_Kind):
    """Runs another handler."""

    kind = KIND

    def __init__(self, then: ITaskHandler) -> None:
        self._then = then

    async def run(self, task: ITaskContext) -> Any:
        """Run the other handler, unless this attempt must fail."""
        if task.attempt <= task.payload.get("fails", 0):
            raise Retry("it was told to fail", after=0)
        if "talks" in task.payload:
            from twisted.internet import reactor

            for n in range(task.payload["talks"]):
                task.log(f"part {n}")
                await deferLater(reactor, task.payload["seconds"] / task.payload["talks"])
            return None
        return await self._then.run(task)


@implementer(ITaskHandler)
class Poison(_Kind):
    """Ends the worker process."""

    kind = "poison"

    async def run(self, task: ITaskContext) -> Any:
        """End the process."""
        how = task.payload.get("how", "exit")
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "crash":
            ctypes.string_at(0)
        os._exit(1)


class RecordingRunner(Runner):
    """Records each run with its dispatch, which a handler does not get."""

    run_log: RunLog

    def run(self, task: Task, user: str, said: Any) -> Attempt:
        """Record the run, then start it."""
        self.run_log.write("begin", task)
        attempt = super().run(task, user, said)
        attempt.freed.addCallback(lambda _: self.run_log.write("end", task))
        return attempt


def main() -> None:
    """Run twistd after replacing the Runner in the wiring, so that the plugin adds the handlers of this module."""
    RecordingRunner.run_log = RunLog(os.environ[RUNS])

    def runner(clock: IReactorTime, handlers: Iterable[ITaskHandler], **others: Any) -> Runner:
        simulate, *more = handlers
        return RecordingRunner(clock, [simulate, *more, Record(simulate), Poison()], **others)

    vars(wiring)["Runner"] = runner
    # imported late, because its imports may install a reactor
    from twisted.scripts.twistd import run

    sys.argv = [*TWISTD, "taskworker", *sys.argv[1:]]
    run()


if __name__ == "__main__":
    main()
