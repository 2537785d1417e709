"""A Python child: forked from the warm forkserver, it runs one task after the other until it is not fit for another."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import mmap
import os
import signal
import socket
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Generator, Mapping
from types import FrameType, TracebackType
from typing import Any

import msgspec
from zope.interface import implementer

from taskd.model.errors import TaskdError
from taskd.ports.handler import ITaskContext, ITaskHandler
from taskd.worker.context import clean_fraction, clean_lines, clean_note
from taskd.worker.forkserver import process_tree
from taskd.worker.forkserver.messages import Call, Raised, Returned, decode_cancel_order, encode
from taskd.worker.handler import Reject, Retry
from taskd.worker.handler_results import encode_result, error_line, one_line, retry_delay, trace_of

PAGE_BYTES = 4096

_HEADER = struct.Struct("=II")
_RESET = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}
_encode_progress = msgspec.json.Encoder().encode
_decode_progress = msgspec.json.Decoder(tuple[int, float, str]).decode


def write_progress(page: mmap.mmap, job: int, fraction: float, note: str) -> None:
    """Leave the newest progress in memory shared with the fork server, which looks there when it has time: however
    often a
    handler says it, it costs nobody else anything. The checksum tells a half-written one."""
    data = _encode_progress((job, fraction, note))
    page[: _HEADER.size + len(data)] = _HEADER.pack(len(data), zlib.crc32(data)) + data


def read_progress(page: mmap.mmap, job: int) -> tuple[float, str] | None:
    """The newest progress of this job, None while there is none that is whole."""
    length, checksum = _HEADER.unpack_from(page)
    data = page[_HEADER.size : _HEADER.size + length]
    if not length or zlib.crc32(data) != checksum:
        return None
    try:
        of, fraction, note = _decode_progress(data)
    except msgspec.DecodeError:
        return None
    return (fraction, note) if of == job else None


class Heard:
    """Awaiting it takes no time: what was said is said."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


@implementer(ITaskContext)
class ChildContext:
    """One attempt, as its handler in a child process sees it."""

    id: int
    attempt: int
    max_attempts: int
    user: str
    task: str
    kind: str
    queue: str
    payload: Mapping[str, Any]

    def __init__(
        self, attributes: Mapping[str, Any], progress: Callable[[float, str], None], output: Callable[[bytes], None]
    ) -> None:
        self.__dict__.update(attributes)
        self._progress = progress
        self._output = output
        self._cancelled = False
        self._listens = False

    @property
    def cancelled(self) -> bool:
        """True once the attempt should end. Who looks here ends by itself: from the first look on SIGTERM, which would
        have ended the process, sets this instead."""
        if not self._listens and threading.current_thread() is threading.main_thread():
            self._listens = True
            # a handler of the handler's own stays
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                signal.signal(signal.SIGTERM, self._cancel)
        return self._cancelled

    def _cancel(self, number: int, frame: FrameType | None) -> None:
        self._cancelled = True

    def progress(self, fraction: float, note: str = "") -> Heard:
        """Say how far it is, from 0 to 1, and at what. Raises TypeError for what is no number, ValueError for NaN."""
        self._progress(clean_fraction(fraction), clean_note(note))
        return Heard()

    def log(self, text: str) -> None:
        """Add a line, or several, to the task's log, behind what was printed before."""
        lines, _ = clean_lines(text)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        self._output("".join(f"{line}\n" for line in lines).encode())


class Child:
    """The loop of a child. Making one turns the process that the fork server has forked into it."""

    def __init__(
        self,
        forkserver: int,
        channel: socket.socket,
        output: int,
        page: mmap.mmap,
        handlers: Mapping[str, ITaskHandler],
    ) -> None:
        self._channel = channel
        self._page = page
        self._handlers = handlers
        self._pid = os.getpid()
        os.setsid()
        process_tree.become_subreaper()
        process_tree.die_with_parent(forkserver, signal.SIGKILL)
        process_tree.yield_to_the_worker()
        default_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        wire_standard_streams(output)
        self._output = os.dup(output)
        os.close(output)
        self._streams = _open_streams()
        # a crash in C says where in the task's log
        with contextlib.suppress(Exception):
            faulthandler.enable(2)
        self._folder = os.getcwd()
        self._files = self._look_at_files()

    def run(self) -> None:
        """Until the fork server hangs up."""
        reader = self._channel.makefile("rb")
        while line := reader.readline():
            call = decode_cancel_order(line)
            assert isinstance(call, Call)
            ending = self._task(call)
            if os.getpid() != self._pid:
                # the handler forked, and its copy came out as well
                os._exit(0)
            fit = self._tidy()
            self._channel.sendall(encode(msgspec.structs.replace(ending, fit=fit)))
            if not fit:
                return

    def _task(self, call: Call) -> Returned | Raised:
        job = call.job
        context = ChildContext(
            msgspec.json.decode(call.context),
            lambda fraction, note: write_progress(self._page, job, fraction, note),
            self._print,
        )
        try:
            handler = self._handlers.get(call.kind)
            if handler is None:
                return Raised(job, "LookupError", f"no handler of the kind {call.kind!r} runs in a child process", "")
            value = handler.run(context)
        # also those that would end the process: this is the handler's, not ours
        except BaseException as e:
            return raised(job, e)
        try:
            return Returned(job, msgspec.Raw(encode_result(value).encode()))
        except TaskdError as e:
            return _unstorable(job, e.message)
        except BaseException as e:
            # objects of the handler's own may fail while they are written
            return _unstorable(job, error_line(e))

    def _print(self, data: bytes) -> None:
        view = memoryview(data)
        with contextlib.suppress(OSError):
            while view:
                view = view[os.write(self._output, view) :]

    def _tidy(self) -> bool:
        """Put back what a task may have changed. Returns whether all is as it was for the next one."""
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        default_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        sys.stdout, sys.stderr = self._streams
        try:
            os.chdir(self._folder)
            same = self._look_at_files() == self._files
        except OSError:
            same = False
        # a thread that goes on would do so beside, and in the name of, the next task
        return same and threading.active_count() == 1

    def _look_at_files(self) -> list[tuple[int, int]]:
        found = [os.fstat(fd) for fd in (0, 1, 2, self._output, self._channel.fileno())]
        return [(each.st_dev, each.st_ino) for each in found]


def raised(job: int, error: BaseException) -> Raised:
    """What a handler raised, as the worker is told."""
    name = type(error).__name__
    if isinstance(error, Reject | TaskdError):
        return Raised(job, name, _message(error), "", rejected=True)
    if isinstance(error, Retry):
        return Raised(job, name, _message(error), "", retry=True, retry_after=retry_delay(error.after))
    # its first frame is ours
    begins: TracebackType | None = error.__traceback__
    error.__traceback__ = begins.tb_next if begins is not None else None
    if isinstance(error, SystemExit):
        return Raised(job, name, f"the handler called sys.exit({error.code!r})"[:200], trace_of(error) or "")
    return Raised(job, name, _message(error), trace_of(error) or "")


def _unstorable(job: int, why: str) -> Raised:
    return Raised(job, "", one_line(f"the result cannot be stored: {why}"), "")


def _message(error: BaseException) -> str:
    return one_line(error_line(error).removeprefix(type(error).__name__).removeprefix(": "))


def default_signals() -> None:
    """Every signal does what it does to a new process, but SIGPIPE and SIGXFSZ, which Python ignores and reports as
    exceptions."""
    for number in _RESET:
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)


def wire_standard_streams(output: int) -> None:
    """stdin is empty; stdout and stderr are the task's output."""
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(output, 1)
    os.dup2(output, 2)


def _open_streams() -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
    """stdout and stderr that pass a line on when it is complete and take any text."""
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
    made = []
    for fd in (1, 2):
        raw = io.BufferedWriter(io.FileIO(fd, "w", closefd=False))
        made.append(io.TextIOWrapper(raw, "utf-8", "backslashreplace", line_buffering=True))
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = made  # type: ignore[misc]
    return made[0], made[1]
