"""Standard output and error at the start and end of the program. This module does not need Twisted."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from taskd.cli.errors import BROKEN_PIPE, INTERRUPTED
from taskd.cli.texts.catalogue import Texts


def _streams() -> list[Any]:
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]


def run_program(run: Callable[[Sequence[str], Texts], int], argv: Sequence[str] | None, texts: Texts) -> int:
    """Run one command line, by default the process's own. Returns the exit status, also after Ctrl-C and when nobody
    reads the output any more."""
    escape_unencodable()
    try:
        return run(sys.argv[1:] if argv is None else argv, texts)
    except KeyboardInterrupt:
        note("\n" + texts("interrupted"))
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
    finally:
        flush()


def escape_unencodable() -> None:
    """Write a character that the locale cannot encode as an escape, instead of raising UnicodeEncodeError."""
    for stream in _streams():
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def note(line: str) -> None:
    """Write a line to standard error, and ignore an error."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)


def flush() -> None:
    """Flush both streams silently: at exit the interpreter would print an error for a closed pipe."""
    try:
        for stream in _streams():
            stream.flush()
    except (OSError, ValueError):
        _discard()


def _discard() -> None:
    """Send the interpreter's own flush at exit to /dev/null."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as null:
        for stream in _streams():
            os.dup2(null.fileno(), stream.fileno())
