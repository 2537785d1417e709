"""A program on a pseudo-terminal, used as a person would: wait for a text, type an answer."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

# A new session has no controlling terminal yet, and Ctrl-C only reaches processes that have this one.
_OWN_THE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A terminal of ``columns`` by 24 cells that runs one program. As a context manager it ends with the block.

    The terminal stays open after the program has ended, so that a test can check its state.
    """

    def __init__(
        self, command: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path | None = None, columns: int = 80
    ) -> None:
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._seen = 0
        self.before = self.modes()
        self.output = ""
        """Everything that the program has written so far."""
        self._process = subprocess.Popen(
            [sys.executable, "-ISc", _OWN_THE_TERMINAL, *command],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )

    def expect(self, text: str, timeout: float = 15.0) -> str:
        """Wait for a text after the last expected one; returns the output before it. Raises AssertionError."""
        deadline = time.monotonic() + timeout
        while (found := self.output.find(text, self._seen)) < 0:
            if not self._read(deadline):
                raise AssertionError(f"no {text!r} within {timeout} s, only {self.output[self._seen :]!r}")
        passed, self._seen = self.output[self._seen : found], found + len(text)
        return passed

    def press(self, text: str) -> None:
        """Press these keys; a line ends with ``\\n``."""
        os.write(self._master, text.encode())

    def answer(self, question: str, text: str) -> str:
        """Wait for a question and type a line; returns the output before the question."""
        passed = self.expect(question)
        self.press(f"{text}\n")
        return passed

    def control(self, letter: str) -> None:
        """Press Ctrl and a letter."""
        self.press(chr(ord(letter.upper()) - 64))

    def modes(self) -> list[object]:
        """The settings of the terminal: echo, line editing and so on."""
        return termios.tcgetattr(self._slave)

    @property
    def echoes(self) -> bool:
        """Whether the terminal echoes input."""
        flags = self.modes()[3]
        assert isinstance(flags, int)
        return bool(flags & termios.ECHO)

    def wait(self, timeout: float = 15.0) -> int:
        """The program's exit status. Raises AssertionError if it does not end in time."""
        deadline = time.monotonic() + timeout
        while (status := self._process.poll()) is None:
            # Read on, because a program that writes to a full terminal would block
            self._read(min(deadline, time.monotonic() + 0.05))
            if time.monotonic() > deadline:
                raise AssertionError(f"still running after {timeout} s: {self.output[self._seen :]!r}")
        while self._read(time.monotonic()):
            pass
        return status

    def close(self) -> None:
        """Kill the program and close the terminal."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)
        os.close(self._master)
        os.close(self._slave)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        if ready:
            self.output += self._decode(os.read(self._master, 65536))
        return bool(ready)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
