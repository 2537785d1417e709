"""Runs programs."""

from __future__ import annotations

import functools
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.logger import Logger

from taskd.model.text import cut_trace, one_line
from taskd.worker.attempt import Attempt
from taskd.worker.executors.process import JobExecution, result_of_child
from taskd.worker.executors.thread_pool import IThreads
from taskd.worker.forkserver.client import ForkServerClient
from taskd.worker.forkserver.messages import Exited, JobEnd
from taskd.worker.forkserver.process_tree import killed_by
from taskd.worker.handler_results import Fault, HandlerResult, error_line, handler_returned
from taskd.worker.programs import Command

MAX_OUTPUT_BYTES = 4096
"""Of a program's last output, in its result."""


class ProgramExecutor:
    """Runs programs by a fork server. ``threads`` remove their temporary folders."""

    _log = Logger()

    def __init__(self, forkserver: ForkServerClient, threads: IThreads) -> None:
        self._forkserver = forkserver
        self._threads = threads

    def run(self, attempt: Attempt, handler: Command, attributes: Mapping[str, Any]) -> None:
        """Start the program, in a new folder unless its configuration names one. Raises Reject if the payload does not
        fit."""
        arguments = handler.arguments(attributes["payload"])
        try:
            folder = handler.cwd or tempfile.mkdtemp(prefix="taskd-")
        except OSError as e:
            attempt.end(Fault(error_line(e)))
            return
        job = self._forkserver.execute(handler.program(arguments, folder), attempt)
        attempt.execution = JobExecution(job, handler.kind)

        def end(job_end: JobEnd) -> None:
            attempt.end(result_of_program(job_end) if isinstance(job_end, Exited) else result_of_child(job_end))
            if handler.cwd is None:
                # in a thread: the folder may hold a million files
                with self._log.failuresHandled("the folder {folder} cannot be removed", folder=folder):
                    self._threads.call_aside(functools.partial(shutil.rmtree, folder, ignore_errors=True))

        job.done.addCallback(end)


def result_of_program(exited: Exited) -> HandlerResult:
    """What a program did that ended like this: its last output is the result if its status is 0."""
    if exited.status == 0 and exited.reason is None:
        return handler_returned({"status": 0, "seconds": round(exited.seconds, 3), "output": last_output(exited.tail)})
    what = exited.reason
    if what is None:
        what = f"exited with status {exited.status}" if exited.signal is None else killed_by(exited.signal)
        if exited.signal == signal.SIGXFSZ:
            what += ": a file grew beyond max_file"
    last = next((line.strip() for line in reversed(exited.tail) if line.strip()), "")
    return Fault(one_line(f"{what}: {last}" if last else what), cut_trace("\n".join(exited.tail)) or None)


def last_output(lines: Sequence[str]) -> str:
    """The last of the lines, whole ones if possible, in at most MAX_OUTPUT_BYTES of UTF-8."""
    raw = "\n".join(lines).encode()
    if len(raw) > MAX_OUTPUT_BYTES:
        raw = raw[-MAX_OUTPUT_BYTES:]
        raw = raw[raw.find(b"\n") + 1 :]
    return raw.decode(errors="ignore")
