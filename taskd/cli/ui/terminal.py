"""The terminal, or what stands in its place: lines in without blocking the reactor, and lines out."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple, Protocol, TextIO

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from taskd.client.errors import ClientError, EndOfInput, OutputClosed

MAX_LINE = 1024 * 1024
"""Bytes in one line of input, beyond which it cannot be meant."""


class Screen(NamedTuple):
    """A terminal that can move its cursor, in cells; ``colour`` allows colours."""

    columns: int
    rows: int
    colour: bool


class Source(Protocol):
    """Where lines come from. Raises EndOfInput after the last one."""

    tty: bool

    async def line(self) -> str:
        """The next line, without its end."""

    async def lines(self) -> list[str]:
        """All the lines that are there now, at least one; waits for it."""

    def hidden(self) -> contextlib.AbstractContextManager[None]:
        """While it lasts, what is typed is not shown."""


@implementer(IReadDescriptor)
class Input:
    """Lines from a file descriptor, which is read only while somebody waits for one.

    It stays in blocking mode, which it shares with standard output and with the shell; a terminal in its line
    mode is readable when a whole line, or the end, is there.
    """

    def __init__(self, reactor: Any, stream: IO[Any] | None) -> None:
        self._reactor = reactor
        self._fd = -1 if stream is None or stream.closed else stream.fileno()
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._buffer = b""
        self._waiting: Deferred[bytes] | None = None
        self.tty = self._fd >= 0 and os.isatty(self._fd)

    async def line(self) -> str:
        """The next line, without its end. Raises EndOfInput, or ClientError for one that is no text."""
        while b"\n" not in self._buffer:
            if not await self._more():
                if not self._buffer:
                    raise EndOfInput
                self._buffer += b"\n"
        line, _, self._buffer = self._buffer.partition(b"\n")
        return self._text(line)

    async def lines(self) -> list[str]:
        """All the lines that are there now, at least one; waits for it. Raises like :meth:`line`."""
        first = await self.line()
        whole, end, rest = self._buffer.rpartition(b"\n")
        if not end:
            return [first]
        self._buffer = rest
        return [first, *map(self._text, whole.split(b"\n"))]

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """While it lasts, the terminal does not echo what is typed."""
        if not self.tty:
            yield
            return
        import termios

        before = termios.tcgetattr(self._fd)
        silent = list(before)
        silent[3] = before[3] & ~termios.ECHO
        termios.tcsetattr(self._fd, termios.TCSADRAIN, silent)
        try:
            yield
        finally:
            with contextlib.suppress(termios.error):  # it may have been hung up
                termios.tcsetattr(self._fd, termios.TCSADRAIN, before)

    async def _more(self) -> bool:
        if self._fd < 0:
            return False
        if len(self._buffer) > MAX_LINE:
            raise ClientError("input_too_long", code="too_large")
        self._waiting = Deferred(lambda _: self._reactor.removeReader(self))
        self._reactor.addReader(self)
        data = await self._waiting
        self._buffer += data
        return bool(data)

    def _text(self, line: bytes) -> str:
        """What the bytes say: in UTF-8, or else in the encoding of the user's locale."""
        line = line.removesuffix(b"\r")
        for encoding in ("utf-8", self._encoding):
            with contextlib.suppress(UnicodeDecodeError, LookupError):
                return line.decode(encoding)
        raise ClientError("not_utf8")

    def fileno(self) -> int:
        """The descriptor for the reactor."""
        return self._fd

    def doRead(self) -> None:
        """The reactor says that a read will not block."""
        self._reactor.removeReader(self)
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:  # somebody we share it with was faster, and has put it into non-blocking mode
            self._reactor.addReader(self)
            return
        except OSError:  # a terminal that has been hung up
            data = b""
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.called:
            waiting.callback(data)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gave the descriptor up: the same as its end."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.called:
            waiting.callback(b"")

    def logPrefix(self) -> str:
        """The name in logs."""
        return "input"


class Output:
    """Standard output and error. Every write is flushed; a reader that went away raises OutputClosed."""

    def __init__(self, stdout: TextIO | None, stderr: TextIO | None) -> None:
        self._stdout = stdout
        self._stderr = stderr
        self._foot: list[str] = []
        self.tty = stdout is not None and stdout.isatty()
        self.encoding = getattr(stdout, "encoding", None) or "utf-8"

    @property
    def pipe(self) -> int | None:
        """The descriptor of standard output where that is a pipe, whose reader can go away."""
        with contextlib.suppress(OSError, ValueError):
            if self._stdout is not None and stat.S_ISFIFO(os.fstat(self._stdout.fileno()).st_mode):
                return self._stdout.fileno()
        return None

    def lines(self, lines: Iterable[str]) -> None:
        """Lines for people or scripts."""
        self._write(self._stdout, "".join(f"{line}\n" for line in lines))

    def line(self, line: str) -> None:
        """One line."""
        self.lines((line,))

    def raw(self, lines: Iterable[bytes]) -> None:
        """Lines as they came over the wire: UTF-8, whatever the locale."""
        data = b"".join(b"%b\n" % line for line in lines)
        buffer = getattr(self._stdout, "buffer", None)
        if buffer is None:
            self._write(self._stdout, data.decode())
        else:
            self._write(buffer, data)

    def prompt(self, text: str) -> None:
        """A question, without a line end; not on an output that is read by a program."""
        self._write(self._stdout if self.tty else self._stderr, text)

    def note(self, line: str) -> None:
        """A line about what goes on, on standard error."""
        with contextlib.suppress(OutputClosed, ClientError):
            self._write(self._stderr, f"{line}\n")

    def foot(self, lines: Sequence[str]) -> None:
        """Keep these lines below everything that is written, instead of those before. Only for a terminal that can
        move its cursor, and for lines that are narrower than it."""
        before, self._foot = self._foot, list(lines)
        if before or lines:
            self._put(self._stdout, self._erase(before) + self._drawn())

    def _write(self, stream: Any, data: str | bytes) -> None:
        """Above the foot, if there is one."""
        if not self._foot or stream is None:
            self._put(stream, data)
        elif stream is self._stdout and isinstance(data, str):
            self._put(stream, self._erase(self._foot) + data + self._drawn())  # at once, so that nothing flickers
        else:
            self._put(self._stdout, self._erase(self._foot))
            self._put(stream, data)
            self._put(self._stdout, self._drawn())

    @staticmethod
    def _erase(lines: Sequence[str]) -> str:
        return f"\x1b[{len(lines)}A\r\x1b[J" if lines else ""

    def _drawn(self) -> str:
        return "".join(f"{line}\n" for line in self._foot)

    def _put(self, stream: Any, data: str | bytes) -> None:
        if stream is None:
            return
        try:
            stream.write(data)
            stream.flush()
        except BrokenPipeError:
            raise OutputClosed from None
        except (OSError, ValueError) as e:
            raise ClientError("output_failed", code="internal", why=getattr(e, "strerror", None) or e) from None


def can_move(env: Mapping[str, str], tty: bool) -> bool:
    """Whether the output is a terminal that can move its cursor and erase."""
    return tty and env.get("TERM") not in (None, "", "dumb")


def colour_wanted(env: Mapping[str, str], tty: bool) -> bool:
    """Whether to use colours: on a terminal that has them, unless NO_COLOR is set (no-color.org)."""
    return can_move(env, tty) and not env.get("NO_COLOR")
