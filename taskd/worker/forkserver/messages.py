"""The messages between the worker, the fork server and its children: one JSON object per line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec

from taskd.worker.handler_results import HandlerResult


class Path(msgspec.Struct, frozen=True):
    """An argument that ends with a path: the text ``before`` it, and the ``value`` of the payload's ``field``. It is
    resolved where the program is started: links are looked up then, and by a process that may wait for a disk."""

    field: str
    before: str
    value: str


class Program(msgspec.Struct, frozen=True):
    """A program to run: ``argv`` with its absolute path first, never a shell; ``env`` is its whole environment; ``cwd``
    is its folder.

    ``memory`` limits the address space of each of its processes in bytes, ``processes`` their number at one time,
    ``max_output`` the bytes that it may write to stdout and stderr together, ``max_file`` the bytes of each file that
    it writes. Below ``root`` are all files that a Path in ``argv`` can name.
    """

    argv: Sequence[str | Path]
    cwd: str
    env: Mapping[str, str]
    memory: int | None
    processes: int | None
    max_output: int
    max_file: int | None = None
    root: str | None = None


class _Message(msgspec.Struct, tag=True):
    """The field ``type`` of its JSON object is the name of its class."""


class Setup(msgspec.Struct):
    """The argument of the reaper and of the fork server. The fork server imports ``modules``. ``path`` is the worker's
    ``sys.path``, so that both find the same ones. ``grace`` is in seconds. A child is replaced after ``max_tasks``
    tasks."""

    modules: Sequence[str]
    path: Sequence[str]
    grace: float
    max_tasks: int


# -- orders: from the worker to the fork server


class Call(_Message):
    """Run the handler of a kind. ``context`` has the attributes of ITaskContext. The fork server passes the line on to
    a child unchanged."""

    job: int
    kind: str
    context: msgspec.Raw


class Execute(_Message):
    """Run a program."""

    job: int
    program: Program


class Stop(_Message):
    """End a job: TERM, then KILL after the grace. Ignored if the job has ended."""

    job: int


Order: TypeAlias = Call | Execute | Stop

# -- how a job ended


class Exited(_Message):
    """A program ended with a ``status`` or by a ``signal`` after ``seconds``. The fork server adds the last lines of
    its output as ``tail``, and as ``reason`` the limit that ended it."""

    status: int | None
    signal: int | None
    seconds: float
    tail: Sequence[str] = ()
    reason: str | None = None


class Died(_Message):
    """The process ended before its task, or could not be started. ``reason`` is like "killed by SIGSEGV"."""

    reason: str


JobEnd: TypeAlias = HandlerResult | Exited | Died
"""A child reports what its handler did, a supervisor how its program exited."""

# -- events: from the fork server to the worker


class Ready(_Message):
    """The modules are imported: the fork server ``pid`` takes jobs from now on."""

    pid: int


class ImportFailed(_Message):
    """The modules cannot be imported. The fork server ends."""

    why: str


class Lines(_Message):
    """Output of a job. ``dropped`` lines before these are lost."""

    job: int
    lines: Sequence[str]
    dropped: int


class Progress(_Message):
    """The progress of a job, from 0 to 1."""

    job: int
    fraction: float
    note: str


class JobEnded(_Message):
    """A job ended. Children and supervisors send it to the fork server first. ``fit``: the child can run another
    task."""

    job: int
    end: JobEnd
    fit: bool = True


Event: TypeAlias = Ready | ImportFailed | Lines | Progress | JobEnded

_encode = msgspec.json.Encoder().encode
decode_order = msgspec.json.Decoder(Order).decode
decode_job_ended = msgspec.json.Decoder(JobEnded).decode
decode_event = msgspec.json.Decoder(Event).decode


def encode(message: Order | Event) -> bytes:
    """One line, with its newline."""
    return _encode(message) + b"\n"


class LineBuffer:
    """Joins chunks of bytes to lines of at most ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self._data = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, without their newlines. Raises ValueError if one exceeds the limit."""
        seen = len(self._data)
        self._data += data
        end = self._data.rfind(b"\n", seen)
        if len(self._data) - end - 1 > self._limit:
            raise ValueError(f"a line of more than {self._limit} bytes")
        if end < 0:
            return []
        lines = bytes(self._data[:end]).split(b"\n")
        del self._data[: end + 1]
        return lines
