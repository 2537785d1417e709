"""The real worker with two more handlers: ``python -m tests.faults.worker OPTIONS`` is ``twistd taskworker OPTIONS``.

``record`` writes a line to the file that FAULTS_RUNS names, then takes ``{"seconds": n}`` as ``simulate`` does.
``poison`` writes a line too, and ends the process at once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from taskd.model.backoff import Backoff
from taskd.model.limits import DEFAULT_ATTEMPTS
from taskd.model.tasks import Task
from taskd.ports.handler import ITaskContext, ITaskHandler
from taskd.worker import wiring
from taskd.worker.attempt import Attempt
from taskd.worker.runner import Runner
from tests.daemons import TWISTD

KIND = "record"
"""The kind of most tasks."""

RUNS = "FAULTS_RUNS"
"""The environment variable that names the file of runs."""


class Run(NamedTuple):
    """The start of an attempt. ``worker`` is the process id, ``at`` the time in seconds since 1970."""

    task_id: int
    dispatch: int
    attempt: int
    worker: int
    at: float


def read_runs(file: Path) -> list[Run]:
    """The runs that all workers have recorded, in order."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else []:
        task_id, dispatch, attempt, worker, at = line.split()
        found.append(Run(int(task_id), int(dispatch), int(attempt), int(worker), float(at)))
    return found


class RunLog:
    """The file of runs. Each line is one write, so that lines of several workers do not mix."""

    def __init__(self, file: str) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def begun(self, task: Task) -> None:
        """Record that an attempt of this task starts."""
        line = f"{task.id} {task.dispatch} {task.attempt} {os.getpid()} {time.time():.6f}\n"
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

    def run(self, task: ITaskContext) -> Any:
        """Run the other handler."""
        return self._then.run(task)


@implementer(ITaskHandler)
class Poison(_Kind):
    """Ends the worker process."""

    kind = "poison"

    async def run(self, task: ITaskContext) -> Any:
        """End the process."""
        os._exit(1)


class RecordingRunner(Runner):
    """Records each run with its dispatch, which a handler does not get."""

    run_log: RunLog

    def run(self, task: Task, user: str, said: Any) -> Attempt:
        """Record the run, then start it."""
        if task.kind in (Record.kind, Poison.kind):
            self.run_log.begun(task)
        return super().run(task, user, said)


def main() -> None:
    """Run twistd after replacing the Runner in the wiring, so that the plugin adds the handlers of this module."""
    RecordingRunner.run_log = RunLog(os.environ[RUNS])

    def runner(clock: IReactorTime, handlers: Iterable[ITaskHandler], **others: Any) -> Runner:
        (simulate,) = handlers
        return RecordingRunner(clock, [simulate, Record(simulate), Poison()], **others)

    vars(wiring)["Runner"] = runner
    # imported late, because its imports may install a reactor
    from twisted.scripts.twistd import run

    sys.argv = [*TWISTD, "taskworker", *sys.argv[1:]]
    run()


if __name__ == "__main__":
    main()
