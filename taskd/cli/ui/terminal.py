"""The terminal, pipe or file that commands read lines from and write lines to, without blocking the reactor."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, TextIO

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from taskd.cli.errors import EndOfInput, OutputClosed
from taskd.client.errors import ClientError

MAX_LINE = 1024 * 1024
"""The most bytes in one line of input."""


@implementer(IReadDescriptor)
class Input:
    """Lines from a file descriptor, which is read only while a command waits for one.

    It stays in blocking mode, because standard output and the shell share that mode with it. A terminal in line mode
    becomes readable when a whole line or the end is available.
    """

    def __init__(self, reactor: Any, stream: IO[Any] | None) -> None:
        self._reactor = reactor
        self._fd = -1 if stream is None or stream.closed else stream.fileno()
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._buffer = b""
        self._waiting: Deferred[bytes] | None = None
        self.tty = self._fd >= 0 and os.isatty(self._fd)

    async def line(self) -> str:
        """The next line, without its end. Raises EndOfInput, or ClientError for a line that is not text."""
        while b"\n" not in self._buffer:
            if not await self._more():
                if not self._buffer:
                    raise EndOfInput
                self._buffer += b"\n"
        line, _, self._buffer = self._buffer.partition(b"\n")
        return self._text(line)

    async def lines(self) -> list[str]:
        """All lines that are available, at least one; waits for the first. Raises like :meth:`line`."""
        first = await self.line()
        whole, end, rest = self._buffer.rpartition(b"\n")
        if not end:
            return [first]
        self._buffer = rest
        return [first, *map(self._text, whole.split(b"\n"))]

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """In this context, the terminal does not echo input."""
        if not self.tty:
            yield
            return
        import termios

        before = termios.tcgetattr(self._fd)
        silent = termios.tcgetattr(self._fd)
        silent[3] &= ~termios.ECHO
        termios.tcsetattr(self._fd, termios.TCSADRAIN, silent)
        try:
            yield
        finally:
            with contextlib.suppress(termios.error):  # the terminal may have hung up
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
        """Decode as UTF-8, or else in the encoding of the locale."""
        line = line.removesuffix(b"\r")
        for encoding in ("utf-8", self._encoding):
            with contextlib.suppress(UnicodeDecodeError, LookupError):
                return line.decode(encoding)
        raise ClientError("not_utf8")

    def fileno(self) -> int:
        """The descriptor, for the reactor."""
        return self._fd

    def doRead(self) -> None:
        """The reactor calls this when a read will not block."""
        self._reactor.removeReader(self)
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:  # another process has set non-blocking mode, and has read first
            self._reactor.addReader(self)
            return
        except OSError:  # the terminal has hung up
            data = b""
        self._received(data)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor no longer watches the descriptor: treat that as its end."""
        self._received(b"")

    def _received(self, data: bytes) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.called:
            waiting.callback(data)

    def logPrefix(self) -> str:
        """The name in logs."""
        return "input"


class Output:
    """Standard output and error. Every write is flushed. A write to a closed pipe raises OutputClosed."""

    def __init__(self, stdout: TextIO | None, stderr: TextIO | None) -> None:
        self._stdout = stdout
        self._stderr = stderr
        self._foot = ""
        self.tty = stdout is not None and stdout.isatty()
        self.encoding = getattr(stdout, "encoding", None) or "utf-8"

    @property
    def pipe(self) -> int | None:
        """The descriptor of standard output if that is a pipe, whose reader may close it."""
        with contextlib.suppress(OSError, ValueError):
            fd = -1 if self._stdout is None else self._stdout.fileno()
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                return fd
        return None

    def lines(self, lines: Iterable[str]) -> None:
        """Write lines to standard output."""
        self._write(self._stdout, "".join(f"{line}\n" for line in lines))

    def line(self, line: str) -> None:
        """Write one line to standard output."""
        self.lines((line,))

    def raw(self, *lines: bytes) -> None:
        """Write lines as the server sent them: in UTF-8, whatever the locale is."""
        data = b"".join(b"%b\n" % line for line in lines)
        buffer = getattr(self._stdout, "buffer", None)
        if buffer is None:
            self._write(self._stdout, data.decode())
        else:
            self._write(buffer, data)

    def prompt(self, text: str) -> None:
        """Write a question without a line end. If a program reads standard output, it goes to standard error."""
        self._write(self._stdout if self.tty else self._stderr, text)

    def note(self, line: str) -> None:
        """Write a line for the user to standard error, and ignore an error."""
        with contextlib.suppress(OutputClosed, ClientError):
            self._write(self._stderr, f"{line}\n")

    def foot(self, lines: Iterable[str]) -> None:
        """Keep these lines below everything that is written later; they replace the earlier ones.

        The output must be a terminal that can move its cursor, and wider than each of the lines.
        """
        erase, self._foot = self._erase(), "".join(f"{line}\n" for line in lines)
        if erase or self._foot:
            self._put(self._stdout, erase + self._foot)

    def _write(self, stream: Any, data: str | bytes) -> None:
        """Write above the foot."""
        if not self._foot or stream is None:
            self._put(stream, data)
        elif stream is self._stdout and isinstance(data, str):
            self._put(stream, self._erase() + data + self._foot)  # in one write, to avoid flicker
        else:
            self._put(self._stdout, self._erase())
            self._put(stream, data)
            self._put(self._stdout, self._foot)

    def _erase(self) -> str:
        """What erases the foot."""
        lines = self._foot.count("\n")
        return f"\x1b[{lines}A\r\x1b[J" if lines else ""

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
    """Whether the output is a terminal that can move its cursor and erase lines."""
    return tty and env.get("TERM") not in (None, "", "dumb")


def colour_wanted(env: Mapping[str, str], tty: bool) -> bool:
    """Whether to use colours: on such a terminal, unless NO_COLOR is set (no-color.org)."""
    return can_move(env, tty) and not env.get("NO_COLOR")
