"""What the fork server knows about a job, and about the process that runs it."""

from __future__ import annotations

import contextlib
import os
import socket
import time

from taskd.worker.forkserver.messages import JobEnd, LineBuffer, Program
from taskd.worker.forkserver.output_buffer import OutputBuffer
from taskd.worker.forkserver.progress_memory import ProgressMemory

MAX_END_BYTES = 2 * 1024 * 1024
"""Of the message that a job ended. A result is far smaller: the task itself sends a longer one."""

_CHUNK = 64 * 1024


class JobState:
    """A job while the fork server has it: it runs in ``process``. ``stop_by`` is the end of its grace, ``members`` are
    the processes that got TERM. ``reason`` is the limit that ended it."""

    process: Process

    def __init__(self, id: int, program: Program | None) -> None:
        self.id = id
        self.program = program
        self.begun = time.monotonic()
        self.output = OutputBuffer()
        self.progress: tuple[float, str] | None = None
        self.end: JobEnd | None = None
        self.reason: str | None = None
        self.stop_by: float | None = None
        self.members: set[int] = set()

    def drain_output(self) -> None:
        """Read what is left in the pipe. No process of the job is left that could fill it."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.process.output, _CHUNK):
                self.output.feed(data)

    def exceeded_output(self) -> str | None:
        """The reason if its program wrote too much."""
        if self.program is None or self.output.total <= self.program.max_output:
            return None
        return f"wrote more than {self.program.max_output} bytes"


class Process:
    """A child or a supervisor: the root of a tree. ``ending_since`` is the time from which the fork server ends its
    tree, ``status`` its wait status once it is reaped. ``page`` is None for a supervisor."""

    def __init__(self, pid: int, channel: socket.socket, output: int, page: ProgressMemory | None) -> None:
        self.pid = pid
        self.channel = channel
        self.output = output
        self.page = page
        self.lines = LineBuffer(MAX_END_BYTES)
        self.unsent = b""
        self.job: JobState | None = None
        self.tasks = 0
        self.ending_since: float | None = None
        self.status: int | None = None

    def send(self) -> None:
        """Send as much of ``unsent`` as it takes now."""
        try:
            self.unsent = self.unsent[self.channel.send(self.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            # it has ended; waitpid will report it
            self.unsent = b""

    def is_connected(self) -> bool:
        """Whether an idle child has its end of the channel open. A killed one has not, even before it is reaped."""
        try:
            self.channel.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def read_output(self) -> bool:
        """Read a chunk of its output. False at the end of the pipe."""
        try:
            data = os.read(self.output, _CHUNK)
        except BlockingIOError:
            return True
        if self.job is not None:
            self.job.output.feed(data)
        return bool(data)

    def close(self) -> None:
        """Close its files here."""
        self.channel.close()
        os.close(self.output)
