"""Input and output on real pipes and pseudo-terminals, without a running reactor."""

from __future__ import annotations

import io
import os
import pty
import termios
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from taskd.cli.errors import EndOfInput, OutputClosed
from taskd.cli.ui.terminal import MAX_LINE, Input, Output, colour_wanted
from taskd.client.errors import ClientError


class Readers:
    """The part of a reactor that watches descriptors. A test decides when they are readable."""

    def __init__(self) -> None:
        self.watched: list[Any] = []

    def addReader(self, reader: Any) -> None:
        self.watched.append(reader)

    def removeReader(self, reader: Any) -> None:
        if reader in self.watched:
            self.watched.remove(reader)

    def ready(self) -> None:
        """The watched descriptors become readable."""
        for reader in tuple(self.watched):
            reader.doRead()


class Pipe:
    """An input that reads a pipe."""

    def __init__(self, encoding: str = "utf-8") -> None:
        read, self._write = os.pipe()
        self.reactor = Readers()
        self._stream = os.fdopen(read, encoding=encoding)
        self.input = Input(self.reactor, self._stream)

    def write(self, data: bytes) -> None:
        """Write into the pipe."""
        os.write(self._write, data)

    def end(self) -> None:
        """Close the writing end."""
        os.close(self._write)

    def close(self) -> None:
        """Close both ends."""
        self._stream.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def begun(work: Coroutine[Any, Any, Any]) -> Deferred[Any]:
    """A started coroutine."""
    return Deferred.fromCoroutine(work)


def outcome(work: Deferred[Any]) -> Any:
    """Its result so far. Raises its exception."""
    results: list[Any] = []
    work.addBoth(results.append)
    (result,) = results
    if isinstance(result, Failure):
        result.raiseException()
    return result


class TestInput:
    def test_lines_one_by_one(self, pipe: Pipe) -> None:
        pipe.write(b"one\r\n\ntw")
        line = begun(pipe.input.line())
        assert not line.called, "nothing is read before the reactor says so"
        pipe.reactor.ready()
        assert outcome(line) == "one"
        assert pipe.reactor.watched == [], "nor behind what somebody waits for"
        assert outcome(begun(pipe.input.line())) == ""
        rest = begun(pipe.input.line())
        pipe.write(b"o")
        pipe.end()
        pipe.reactor.ready()
        pipe.reactor.ready()
        assert outcome(rest) == "two"
        last = begun(pipe.input.line())
        pipe.reactor.ready()
        with pytest.raises(EndOfInput):
            outcome(last)

    def test_all_available_lines(self, pipe: Pipe) -> None:
        pipe.write(b"one\ntwo\nthr")
        lines = begun(pipe.input.lines())
        pipe.reactor.ready()
        assert outcome(lines) == ["one", "two"]
        pipe.write(b"ee\n")
        pipe.end()
        lines = begun(pipe.input.lines())
        pipe.reactor.ready()
        assert outcome(lines) == ["three"]

    def test_a_line_without_end(self, pipe: Pipe) -> None:
        line = begun(pipe.input.line())
        for _ in range(MAX_LINE // 65536 + 2):
            if not line.called:
                pipe.write(b"x" * 65536)
                pipe.reactor.ready()
        with pytest.raises(ClientError) as caught:
            outcome(line)
        assert caught.value.key == "input_too_long"
        pipe.end()

    @pytest.mark.parametrize(
        ("encoding", "data", "text"),
        [("utf-8", "año", "año"), ("latin-1", "año", "año"), ("ascii", "año", "año"), ("latin-1", b"a\xf1o", "año")],
    )
    def test_utf_8_or_else_the_encoding_of_the_locale(self, encoding: str, data: str | bytes, text: str) -> None:
        pipe = Pipe(encoding)
        pipe.write((data if isinstance(data, bytes) else data.encode()) + b"\n")
        line = begun(pipe.input.line())
        pipe.reactor.ready()
        assert outcome(line) == text
        pipe.end()
        pipe.close()

    def test_neither_encoding(self, pipe: Pipe) -> None:
        pipe.write(b"a\xf1o\nnext\n")
        line = begun(pipe.input.line())
        pipe.reactor.ready()
        with pytest.raises(ClientError) as caught:
            outcome(line)
        assert caught.value.key == "not_utf8"
        assert outcome(begun(pipe.input.line())) == "next"
        pipe.end()

    def test_non_blocking_mode(self, pipe: Pipe) -> None:
        os.set_blocking(pipe.input.fileno(), False)
        line = begun(pipe.input.line())
        pipe.reactor.ready()
        assert not line.called, "nothing there is not the end"
        pipe.write(b"late\n")
        pipe.reactor.ready()
        assert outcome(line) == "late"
        pipe.end()

    def test_cancelled(self, pipe: Pipe) -> None:
        line = begun(pipe.input.line())
        line.cancel()
        with pytest.raises(CancelledError):
            outcome(line)
        assert pipe.reactor.watched == []
        pipe.end()

    def test_the_reactor_stops_watching(self, pipe: Pipe) -> None:
        line = begun(pipe.input.line())
        pipe.input.connectionLost(Failure(OSError()))
        with pytest.raises(EndOfInput):
            outcome(line)
        pipe.end()

    def test_no_stream(self) -> None:
        with open(os.devnull) as closed:
            pass
        for stream in (None, closed):
            source = Input(Readers(), stream)
            assert not source.tty
            with pytest.raises(EndOfInput):
                outcome(begun(source.line()))


class TestHidden:
    def test_the_terminal_is_restored(self) -> None:
        master, slave = pty.openpty()
        with os.fdopen(slave) as stream:
            source = Input(Readers(), stream)
            assert source.tty
            before = termios.tcgetattr(slave)
            with pytest.raises(KeyError), source.hidden():
                assert not termios.tcgetattr(slave)[3] & termios.ECHO
                assert termios.tcgetattr(slave)[3] & termios.ICANON
                raise KeyError
            assert termios.tcgetattr(slave) == before
        os.close(master)

    def test_a_pipe_has_no_echo(self, pipe: Pipe) -> None:
        with pipe.input.hidden():
            pass
        pipe.end()


class TestOutput:
    def pipes(self) -> tuple[int, io.TextIOWrapper]:
        read, write = os.pipe()
        return read, os.fdopen(write, "w", encoding="ascii", errors="backslashreplace")

    def test_text_and_bytes_in_their_order(self) -> None:
        read, stream = self.pipes()
        out = Output(stream, stream)
        out.line("año")
        out.raw(b'{"task":"a\xc3\xb1o"}')
        out.lines(("x", "y"))
        out.note("note")
        stream.close()
        assert os.read(read, 1000) == b'a\\xf1o\n{"task":"a\xc3\xb1o"}\nx\ny\nnote\n'
        os.close(read)

    def test_a_closed_pipe(self) -> None:
        read, stream = self.pipes()
        os.close(read)
        out = Output(stream, stream)
        with pytest.raises(OutputClosed):
            out.line("x")
        out.note("lost, without a word")
        with pytest.raises(BrokenPipeError):
            stream.close()

    def test_a_full_disk(self) -> None:
        stream = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
        out = Output(stream, None)
        with pytest.raises(ClientError) as caught:
            out.line("x")
        assert caught.value.fields["why"] == "No space left on device"
        with pytest.raises(OSError):
            stream.close()

    def test_no_stream(self) -> None:
        out = Output(None, None)
        out.line("x")
        out.raw(b"x")
        out.note("x")
        out.prompt("x")
        assert not out.tty
        assert out.pipe is None

    def test_only_a_pipe_is_watched(self) -> None:
        read, stream = self.pipes()
        assert Output(stream, None).pipe == stream.fileno()
        stream.close()
        os.close(read)
        with open(os.devnull, "w") as null:
            assert Output(null, None).pipe is None
        assert Output(io.StringIO(), None).pipe is None

    def test_a_prompt_goes_to_the_terminal(self) -> None:
        stdout, stderr = io.StringIO(), io.StringIO()
        Output(stdout, stderr).prompt("Name: ")
        assert (stdout.getvalue(), stderr.getvalue()) == ("", "Name: ")


@pytest.mark.parametrize(
    ("env", "tty", "wanted"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "dumb"}, True, False),
        ({}, True, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
    ],
)
def test_colours(env: dict[str, str], tty: bool, wanted: bool) -> None:
    assert colour_wanted(env, tty) is wanted
