"""Runs handlers in child processes, and programs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

import msgspec

from taskd.worker.context import clean_lines
from taskd.worker.executors.executor import Ended, Place
from taskd.worker.forkserver.client import Ending, Exited, Job, Raised, Returned
from taskd.worker.handler_results import Fault, Success, cut_trace, error_line, one_line, retry_delay, success

MAX_OUTPUT_BYTES = 4096
"""Of a program's last output, in its result."""


class ProcessExecutor:
    """A handler in a child process, or a program. Stopping ends all of it."""

    patience: float | None = None
    stubborn = ""

    def __init__(self, name: str, start: Callable[[], Job], over: Callable[[], None] | None = None) -> None:
        self._name = name
        self._start = start
        self._over = over
        self._job: Job | None = None

    def begin(self, ended: Ended) -> None:
        """Hand it over to the fork server."""

        def over(ending: Success | Fault) -> None:
            if self._over is not None:
                self._over()
            ended(ending)

        try:
            self._job = self._start()
        except OSError as e:
            over(Fault(error_line(e)))
        else:
            self._job.done.addCallback(lambda ending: over(of_child(ending)))

    def cancel(self) -> None:
        """End it with all that it has started."""
        if self._job is not None:
            self._job.stop()

    def place(self) -> Place:
        """In a process of its own."""
        return Place(self._name)


def of_child(ending: Ending) -> Success | Fault:
    """What the end of a child process means."""
    if isinstance(ending, Returned):
        return _returned_text(ending.value)
    if isinstance(ending, Raised):
        if ending.rejected:
            return Fault(one_line(ending.message) or ending.type, final=True)
        if ending.retry:
            return Fault(one_line(ending.message) or "to be tried again", after=retry_delay(ending.retry_after))
        words = ": ".join(each for each in (ending.type, ending.message) if each)
        return Fault(one_line(words), cut_trace(ending.trace) or None)
    if isinstance(ending, Exited):
        return of_program(ending)
    return Fault(one_line(f"the child process ended: {ending.reason}"))


def of_program(exited: Exited) -> Success | Fault:
    """What the end of a program means: with status 0 its last output is the result."""
    tail = [line for each in exited.tail for line in clean_lines(each)[0]]
    if exited.status == 0 and exited.reason is None:
        return success({"status": 0, "seconds": round(exited.seconds, 3), "output": last_output(tail)})
    what = exited.reason
    if what is None and exited.signal is not None:
        what = f"killed by {_signal_name(exited.signal)}"
    elif what is None:
        what = f"exited with status {exited.status}"
    said = next((line.strip() for line in reversed(tail) if line.strip()), "")
    return Fault(one_line(f"{what}: {said}" if said else what), cut_trace("\n".join(tail)) or None)


def last_output(lines: Sequence[str]) -> str:
    """The last of the lines, whole ones if possible, in at most MAX_OUTPUT_BYTES of UTF-8."""
    raw = "\n".join(lines).encode()
    if len(raw) > MAX_OUTPUT_BYTES:
        raw = raw[-MAX_OUTPUT_BYTES:]
        raw = raw[raw.find(b"\n") + 1 :]
    return raw.decode(errors="ignore")


def _returned_text(raw: bytes) -> Success | Fault:
    """A child's result: whatever wrote there, only what can be stored goes on."""
    try:
        return success(msgspec.json.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        return Fault(f"the result cannot be stored: {error_line(e)}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
