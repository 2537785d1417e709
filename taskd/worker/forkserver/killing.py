"""Kills process trees until nothing of them is left, and finds the orphans of tasks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping

from taskd.worker.forkserver import process_tree
from taskd.worker.forkserver.jobs import Process

UNKILLABLE_SECONDS = 5.0
"""A process that is still there so long after SIGKILL (it hangs in a device, or belongs to root) is reported and
left alone."""


class TreeKiller:
    """Reaps the children of this process and kills the trees of those ``processes`` that are to end."""

    def __init__(self, processes: Mapping[int, Process]) -> None:
        self._processes = processes
        self._pid = os.getpid()
        # not ours to kill; at first what the handler modules started when they were imported
        self._left_alone = frozenset(process_tree.children(self._pid))
        self._orphans: dict[int, float] = {}

    @property
    def is_killing(self) -> bool:
        """Whether :meth:`kill` has something to do."""
        return bool(self._orphans) or any(p.ending_since is not None for p in self._processes.values())

    def begin(self, process: Process) -> None:
        """Kill a process with its tree. :meth:`kill` goes on with it."""
        if process.ending_since is None:
            process.ending_since = time.monotonic()
            if process.job is not None:
                process.job.stop_by = None
        if process.status is None:
            process_tree.kill(process.pid)

    def reap(self) -> Iterator[tuple[Process, int]]:
        """The processes that have ended, and their wait statuses."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._left_alone -= {pid}
            process = self._processes.get(pid)
            if process is not None:
                yield process, status

    def kill(self, now: float) -> list[Process]:
        """Kill what is still there. Returns the processes of which nothing is left."""
        ending = [p for p in self._processes.values() if p.ending_since is not None]
        for process in ending:
            self._kill_tree(process, now)
        in_grace = self._in_grace(now)
        # The kernel's list may miss some while others end: look twice.
        orphans = self._find_orphans() | self._find_orphans()
        self._kill_orphans(orphans, in_grace, now)
        left = orphans - self._left_alone
        if left - in_grace:
            return []
        return [p for p in ending if p.status is not None and not (p.job is not None and left & p.job.members)]

    def _kill_tree(self, process: Process, now: float) -> None:
        if process.status is not None:
            return
        assert process.ending_since is not None
        if now > process.ending_since + UNKILLABLE_SECONDS:
            process_tree.report(f"process {process.pid} of a task cannot be killed")
            self._left_alone |= {process.pid} | process_tree.descendants(process.pid)
            process.status = signal.SIGKILL
        else:
            process_tree.kill(process.pid)

    def _kill_orphans(self, orphans: set[int], in_grace: set[int], now: float) -> None:
        for pid in orphans - in_grace:
            if now > self._orphans.setdefault(pid, now) + UNKILLABLE_SECONDS:
                process_tree.report(f"process {pid}, left behind by a task, cannot be killed")
                self._left_alone |= {pid}
            process_tree.kill(pid)
        for pid in set(self._orphans) - orphans:
            del self._orphans[pid]

    def _in_grace(self, now: float) -> set[int]:
        """The processes that got TERM and still have time, even if the root of their tree has ended."""
        in_grace: set[int] = set()
        for process in self._processes.values():
            if process.job is not None and process.job.stop_by is not None and process.job.stop_by > now:
                in_grace |= process.job.members
        return in_grace

    def _find_orphans(self) -> set[int]:
        """Children that the fork server has not forked: a task left them behind, and their parent has ended."""
        return set(process_tree.children(self._pid)) - set(self._processes) - self._left_alone
