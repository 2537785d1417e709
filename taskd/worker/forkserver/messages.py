"""What worker, forkserver and children say to each other: one JSON object per line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, Union

import msgspec


class Program(msgspec.Struct, frozen=True):
    """A program to run: ``argv`` with its absolute path first, never a shell; exactly ``env``; in the folder ``cwd``.

    ``memory`` limits the address space of each of its processes in bytes, ``processes`` how many there may be at a
    time, ``max_output`` the bytes it may write to stdout and stderr together.
    """

    argv: Sequence[str]
    cwd: str
    env: Mapping[str, str]
    memory: int | None
    processes: int | None
    max_output: int


# -- worker to forkserver


class Setup(msgspec.Struct, tag="setup", frozen=True):
    """The first line. ``path`` is the worker's ``sys.path``, so that both find the same modules; ``grace`` is in
    seconds; a child is replaced after ``max_tasks`` tasks."""

    path: Sequence[str]
    grace: float
    max_tasks: int


class Call(msgspec.Struct, tag="call", frozen=True):
    """Run the handler of a kind. ``context`` has the attributes of ITaskContext; the fork server hands the line on as
    it
    is."""

    job: int
    kind: str
    context: msgspec.Raw


class Execute(msgspec.Struct, tag="execute", frozen=True):
    """Run a program."""

    job: int
    program: Program


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """End a job: TERM, then KILL after the grace. A job that has ended is ignored."""

    job: int


Order: TypeAlias = Union[Setup, Call, Execute, Stop]  # noqa: UP007 (evaluated at run time on 3.10)

# -- forkserver to worker


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The modules are imported; jobs are taken from now on."""

    pid: int


class Broken(msgspec.Struct, tag="broken", frozen=True):
    """The modules cannot be imported. The fork server ends."""

    why: str


class Lines(msgspec.Struct, tag="lines", frozen=True):
    """Output of a job; ``dropped`` lines before these are lost."""

    job: int
    lines: Sequence[str]
    dropped: int


class Progress(msgspec.Struct, tag="progress", frozen=True):
    """How far a job is, from 0 to 1."""

    job: int
    fraction: float
    note: str


# -- endings: from a child to the fork server, and on to the worker


class Returned(msgspec.Struct, tag="returned", frozen=True):
    """``fit`` says that the child may take another task."""

    job: int
    value: msgspec.Raw
    fit: bool = True


class Raised(msgspec.Struct, tag="raised", frozen=True):
    """``name`` is the exception's class; empty when the result cannot be stored."""

    job: int
    name: str
    message: str
    trace: str
    retry_after: float | None = None
    rejected: bool = False
    retry: bool = False
    fit: bool = True


class Exited(msgspec.Struct, tag="exited", frozen=True):
    """``seconds`` is how long the program ran; ``tail`` and ``reason`` come from the fork server."""

    job: int
    status: int | None
    signal: int | None
    seconds: float
    tail: Sequence[str] = ()
    reason: str | None = None


class Died(msgspec.Struct, tag="died", frozen=True):
    """The process ended under its job, or could not be started."""

    job: int
    reason: str


Ending: TypeAlias = Union[Returned, Raised, Exited, Died]  # noqa: UP007 (evaluated at run time on 3.10)
News: TypeAlias = Union[Ready, Broken, Lines, Progress, Returned, Raised, Exited, Died]  # noqa: UP007

_encode = msgspec.json.Encoder().encode
decode_cancel_order = msgspec.json.Decoder(Order).decode
decode_ending = msgspec.json.Decoder(Ending).decode
decode_news = msgspec.json.Decoder(News).decode


def encode(message: Order | News) -> bytes:
    """One line, with its end."""
    return _encode(message) + b"\n"


class LineBuffer:
    """Puts lines together again."""

    def __init__(self, limit: int) -> None:
        self._data = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, without their ends. Raises ValueError for one above the limit."""
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
