"""The worker as it is delivered, with two more handlers: ``python -m tests.faults.worker OPTIONS`` is ``twistd
taskworker OPTIONS``.

``record`` notes that an attempt has begun, then takes ``{"seconds": n}`` as ``simulate`` does. ``poison`` notes it and
ends the process on the spot. The notes go to the file that FAULTS_RUNS names.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from zope.interface import implementer

from taskd.model import Task
from taskd.ports import ITaskHandler
from taskd.worker import tap
from taskd.worker.runner import Runner
from tests.daemons import TWISTD

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


@implementer(ITaskHandler)
class Record:
    """Notes its run, then does as another handler does."""

    kind = "record"

    def __init__(self, notes: Notes, then: ITaskHandler) -> None:
        self._notes = notes
        self._then = then

    async def run(self, task: Task, payload: Mapping[str, Any]) -> Any:
        """Note, then run."""
        self._notes.begun(task)
        return await self._then.run(task, payload)


@implementer(ITaskHandler)
class Poison:
    """Ends the process that runs it."""

    kind = "poison"

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    async def run(self, task: Task, payload: Mapping[str, Any]) -> Any:
        """Note, then die."""
        self._notes.begun(task)
        os._exit(1)


def main() -> None:
    """Run twistd, whose plugin finds the wiring with the handlers of this module added."""
    notes = Notes(os.environ[RUNS])

    def runner(handlers: Iterable[ITaskHandler]) -> Runner:
        (simulate,) = handlers
        return Runner([simulate, Record(notes, simulate), Poison(notes)])

    vars(tap)["Runner"] = runner
    # only now: what it imports may choose a reactor
    from twisted.scripts.twistd import run

    sys.argv = [*TWISTD, "taskworker", *sys.argv[1:]]
    run()


if __name__ == "__main__":
    main()
