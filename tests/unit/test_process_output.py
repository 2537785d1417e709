"""The output of a task between its pipe and its log."""

from __future__ import annotations

import subprocess
import sys

from taskd.model.limits import MAX_LINE_CHARS
from taskd.worker.forkserver.messages import LineBuffer
from taskd.worker.forkserver.output_buffer import QUEUE_BYTES, QUEUE_LINES, TAIL_LINES, OutputBuffer


def taken(*chunks: bytes, last: bool = False) -> tuple[list[str], int]:
    """The lines of these chunks, and how many were dropped."""
    output = OutputBuffer()
    for chunk in chunks:
        output.feed(chunk)
    return output.take(last=last)


def test_only_complete_lines_are_given_out() -> None:
    output = OutputBuffer()
    output.feed(b"one\ntw")
    assert output.take() == (["one"], 0)
    output.feed(b"o\n\nthree")
    assert output.take() == (["two", ""], 0)
    assert output.take() == ([], 0)
    assert output.take(last=True) == (["three"], 0)
    assert output.total == 14


def test_lines_are_clean() -> None:
    assert taken(b"a\x00b\x1b[1mc\td\x7f\r\n") == (["ab[1mc\td"], 0)
    assert taken(b"\xff\xc3\xb1\n") == (["\ufffd\u00f1"], 0)
    assert taken("a\u2028b\x85c\n".encode()) == (["abc"], 0)
    # a progress bar, as the terminal would show it
    assert taken(b"1%\r50%\r100%\n") == (["100%"], 0)
    assert taken(b"x" * 10_000 + b"\n") == (["x" * MAX_LINE_CHARS], 0)


def test_a_character_may_be_split_between_two_chunks() -> None:
    raw = "ñandú\n".encode()
    for at in range(len(raw)):
        assert taken(raw[:at], raw[at:]) == (["ñandú"], 0)


def test_the_oldest_lines_are_dropped_and_counted() -> None:
    line = b"x" * 99 + b"\n"
    lines, dropped = taken(*[line * 100] * 50)
    assert len(lines) + dropped == 5000
    assert sum(map(len, lines)) + len(lines) <= QUEUE_BYTES
    assert len(lines) > QUEUE_BYTES // 100 - 2
    lines, dropped = taken(b"\n" * 50_000, b"end\n")
    assert (len(lines), lines[-1], dropped) == (QUEUE_LINES, "end", 50_001 - QUEUE_LINES)


def test_a_line_without_end_is_bounded() -> None:
    output = OutputBuffer()
    output.feed(b"before\n")
    for _ in range(100):
        output.feed(b"x" * 65536)
    output.feed(b"x\nafter\n")
    # the line before it was dropped
    assert output.take() == (["x" * MAX_LINE_CHARS, "after"], 1)


def test_the_tail_has_the_last_lines_whatever_was_taken() -> None:
    output = OutputBuffer()
    assert output.tail() == []
    output.feed(b"".join(b"line %d\n" % i for i in range(10_000)))
    output.take()
    output.feed(b"no end")
    assert output.tail() == [*(f"line {i}" for i in range(10_000 - TAIL_LINES + 1, 10_000)), "no end"]
    output.feed(b"x" * 100_000)
    assert output.tail() == ["x" * MAX_LINE_CHARS]


def test_the_fork_server_imports_no_twisted() -> None:
    code = (
        "import sys, taskd.worker.forkserver.preload; print(sorted(m for m in sys.modules if m.startswith('twisted')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"


def test_lines_of_messages_are_joined_and_bounded() -> None:
    buffer = LineBuffer(10)
    assert buffer.feed(b"a") == []
    assert buffer.feed(b"b\nc\nd") == [b"ab", b"c"]
    assert buffer.feed(b"\n") == [b"d"]
    try:
        buffer.feed(b"x" * 11)
    except ValueError as e:
        assert "10 bytes" in str(e)
    else:
        raise AssertionError("it was taken")
