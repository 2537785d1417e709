"""Reads what CPython's faulthandler writes: stacks of threads, and what has crashed the process."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

_FATAL = re.compile(r"Fatal Python error: (.+)")
# Python 3.14 has the thread's name in brackets
_THREAD = re.compile(r"(Current thread|Thread) 0x([0-9a-fA-F]+)(?: \[.*\])? \(most recent call first\):")
_STACK = "Stack (most recent call first):"
_FRAME = re.compile(r'  File (?:"(.*)"|\?\?\?), line (\d+|\?\?\?) in (.+)')


class Frame(NamedTuple):
    """A place in Python code. ``line`` is 0 if it is not known."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        function = self.function if self.function.startswith("<") else f"{self.function}()"
        return f"{self.file}:{self.line or '?'} in {function}"


class Stack(NamedTuple):
    """The frames of a thread, the innermost first. ``thread`` is its ident, None if the dump does not tell.

    ``current``: it has written the dump, so in the dump of a crash it is the one that has crashed."""

    thread: int | None
    current: bool
    frames: Sequence[Frame]


class Dump(NamedTuple):
    """What faulthandler has written. ``fatal`` says what has crashed the process, None if nothing has."""

    fatal: str | None
    stacks: Sequence[Stack]

    @property
    def current(self) -> Stack | None:
        """The stack of the thread that has written the dump."""
        return next((stack for stack in self.stacks if stack.current), None)


def parse(text: str) -> Dump:
    """Read a dump of Python 3.10 to 3.14. Skips what it does not know; never fails."""
    fatal: str | None = None
    stacks: list[Stack] = []
    frames: list[Frame] | None = None
    for line in text.splitlines():
        if match := _THREAD.match(line):
            frames = []
            stacks.append(Stack(int(match[2], 16), match[1] == "Current thread", frames))
        elif line == _STACK:
            frames = []
            stacks.append(Stack(None, True, frames))
        elif match := _FRAME.fullmatch(line):
            if frames is not None:
                number = int(match[2]) if match[2].isascii() and match[2].isdigit() else 0
                frames.append(Frame(match[1] or "???", number, match[3]))
        elif not line.startswith("  "):
            frames = None
            if fatal is None and (match := _FATAL.match(line)):
                fatal = match[1]
    return Dump(fatal, stacks)


_CRASHES = {
    "Segmentation fault": "a segmentation fault",
    "Bus error": "a bus error",
    "Illegal instruction": "an illegal instruction",
    "Floating point exception": "a floating-point exception",
    "Floating-point exception": "a floating-point exception",
    "Aborted": "an abort",
}


def crash_reason(fatal: str) -> str:
    """What has crashed the process, for people."""
    return f"crashed with {_CRASHES.get(fatal, fatal)}"


_STANDARD = os.path.dirname(os.__file__) + os.sep
_TASKD = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_WORKER = (_TASKD + "worker" + os.sep, _TASKD + "watchdog" + os.sep)
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


def place(frames: Sequence[Frame]) -> Frame | None:
    """Which of these frames tells people most: the innermost of their own code. That is neither the standard library,
    nor an installed package, nor taskd's worker. Without one, the innermost of an installed package, else the innermost
    of all."""

    def installed(frame: Frame) -> bool:
        return any(part in frame.file for part in _INSTALLED)

    # the folder of installed packages may be inside that of the standard library
    outside = [
        frame
        for frame in frames
        if not frame.file.startswith(("<", *_WORKER)) and (installed(frame) or not frame.file.startswith(_STANDARD))
    ]
    own = [frame for frame in outside if not installed(frame)]
    return next(iter([*own[:1], *outside[:1], *frames[:1]]), None)
