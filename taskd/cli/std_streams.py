"""Standard output and error at the program's very start and end, before Twisted is imported."""

from __future__ import annotations

import contextlib
import os
import sys


def accept_any_letter() -> None:
    """A letter that the locale cannot write is shown as an escape, rather than ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def note(line: str) -> None:
    """A line on standard error, if it takes one."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)


def flush() -> None:
    """Flush now, where it can be silent: at exit the interpreter would complain about a closed pipe."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        _discard()


def _discard() -> None:
    """Let the interpreter's own last flush go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                os.dup2(null, stream.fileno())
        os.close(null)
