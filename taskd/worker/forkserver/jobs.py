"""What the fork server knows of a task, and of the process that runs it."""

from __future__ import annotations

import mmap
import socket
import time

from taskd.worker.forkserver.messages import Ending, LineBuffer, Program
from taskd.worker.forkserver.output import Output

MAX_ENDING_BYTES = 2 * 1024 * 1024
"""A result is far smaller: whoever sends more is not our child's code any more."""


class Job:
    """A task while it is here. ``stop_by`` is when its grace ends; ``members`` are the processes that got its TERM."""

    __slots__ = ("begun", "ending", "id", "members", "output", "program", "progress", "reason", "stop_by")

    def __init__(self, id: int, program: Program | None) -> None:
        self.id = id
        self.program = program
        self.begun = time.monotonic()
        self.output = Output()
        self.progress: tuple[float, str] | None = None
        self.ending: Ending | None = None
        self.reason: str | None = None
        self.stop_by: float | None = None
        self.members: set[int] = set()


class Process:
    """A child or a supervisor, the root of a tree. ``ended_at`` is when the fork server began to end it, ``gone`` is
    set
    when it was reaped."""

    __slots__ = ("channel", "ended_at", "gone", "job", "lines", "output", "page", "pid", "tasks", "unsent")

    def __init__(self, pid: int, channel: socket.socket, output: int, page: mmap.mmap | None) -> None:
        self.pid = pid
        self.channel = channel
        self.output = output
        self.page = page
        self.lines = LineBuffer(MAX_ENDING_BYTES)
        self.unsent = b""
        self.job: Job | None = None
        self.tasks = 0
        self.ended_at: float | None = None
        self.gone: int | None = None
