"""The worker as it is delivered, with two more handlers: ``python -m tests.faults.worker OPTIONS`` is ``twistd
taskworker OPTIONS``.

``record`` notes that an attempt has begun, then takes ``{"seconds": n}`` as ``simulate`` does. ``poison`` notes it and
ends the process on the spot. The notes go to the file that FAULTS_RUNS names.
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
"""The variable that names the file of runs."""


class Run(NamedTuple):
    """An attempt that has begun: ``worker`` is the process id, ``at`` the time in seconds since 1970."""

    task_id: int
    dispatch: int
    attempt: int
    worker: int
    at: float


def read_runs(file: Path) -> list[Run]:
    """What all workers have noted, in their order."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else []:
        task_id, dispatch, attempt, worker, at = line.split()
        found.append(Run(int(task_id), int(dispatch), int(attempt), int(worker), float(at)))
    return found


class Notes:
    """The file, open for appending: one write a line, so that those of several workers do not mix."""

    def __init__(self, file: str) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def begun(self, task: Task) -> None:
        """An attempt begins here."""
        line = f"{task.id} {task.dispatch} {task.attempt} {os.getpid()} {time.time():.6f}\n"
        os.write(self._file, line.encode())


class _Kind:
    """What both kinds say of themselves."""

    isolation = "async"
    timeout: float | None = None
    max_attempts = DEFAULT_ATTEMPTS
    backoff = Backoff()
    summary = ""


@implementer(ITaskHandler)
class Record(_Kind):
    """Does as another handler does."""

    kind = KIND

    def __init__(self, then: ITaskHandler) -> None:
        self._then = then

    def run(self, task: ITaskContext) -> Any:
        """Run it."""
        return self._then.run(task)


@implementer(ITaskHandler)
class Poison(_Kind):
    """Ends the process that runs it."""

    kind = "poison"

    async def run(self, task: ITaskContext) -> Any:
        """Die."""
        os._exit(1)


class NotingRunner(Runner):
    """Notes each run, with the dispatch that a handler does not see."""

    notes: Notes

    def run(self, task: Task, user: str, said: Any) -> Attempt:
        """Note, then run."""
        if task.kind in (Record.kind, Poison.kind):
            self.notes.begun(task)
        return super().run(task, user, said)


def main() -> None:
    """Run twistd, whose plugin finds the wiring with the handlers of this module added."""
    NotingRunner.notes = Notes(os.environ[RUNS])

    def runner(clock: IReactorTime, handlers: Iterable[ITaskHandler], **others: Any) -> Runner:
        (simulate,) = handlers
        return NotingRunner(clock, [simulate, Record(simulate), Poison()], **others)

    vars(wiring)["Runner"] = runner
    # only now: what it imports may choose a reactor
    from twisted.scripts.twistd import run

    sys.argv = [*TWISTD, "taskworker", *sys.argv[1:]]
    run()


if __name__ == "__main__":
    main()
