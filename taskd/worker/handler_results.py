"""How a handler's work ended, in words and values that can be stored. It knows no reactor, as children use it, too."""

from __future__ import annotations

import math
import os
import re
import traceback
from types import TracebackType
from typing import Any, NamedTuple

import msgspec

from taskd.model.errors import BadRequest, TaskdError
from taskd.model.json_text import encode_json
from taskd.model.limits import MAX_DELAY_SECONDS, MAX_RESULT_BYTES, MAX_TRACE_CHARS
from taskd.worker.handler import Reject, Retry

MAX_ERROR_CHARS = 1000

_HERE = os.path.dirname(os.path.abspath(__file__))
OWN_FILES = frozenset(
    os.path.join(_HERE, *name.split("/"))
    for name in ("handler.py", "context.py", "handler_results.py", "executors/reactor.py", "executors/thread.py")
)
"""Between the worker and a handler's code: left out of tracebacks."""

_UNSTORABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_CUT = "\n  ...\n"


class Success(NamedTuple):
    """The handler has returned; ``result`` is JSON text."""

    result: str


class Fault(NamedTuple):
    """The attempt failed: ``error`` is one line, ``trace`` several. ``after`` is the delay in seconds that was asked
    for; ``final`` says that trying again would not help; ``cause`` is the exception, for the worker's own log."""

    error: str
    trace: str | None = None
    after: float | None = None
    final: bool = False
    cause: BaseException | None = None


def encode_result(value: Any) -> str:
    """JSON text of what a handler returned. Raises TaskdError for what cannot be stored, with one line that says why:
    no JSON value, larger than MAX_RESULT_BYTES, nested too deeply, NaN or Infinity, a NUL in a text."""
    text = encode_json(value, MAX_RESULT_BYTES, "result")
    # What would not come back as it is, NaN as null or a set as a list, is rare, as are tuples: then look closer. So it
    # is with the escape, which may be part of a text.
    if "\\u0000" in text or msgspec.json.decode(text) != value:
        _check(value)
    return text


def _check(value: Any) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _check(key)
            _check(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check(inner)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise BadRequest("result must not contain NaN or Infinity, which JSON does not have", field="result")
    elif isinstance(value, str):
        if "\0" in value:
            raise BadRequest("result must not contain the NUL character", field="result")
    elif value is not None and not isinstance(value, int):
        what = f"an object of type {type(value).__name__}"
        raise BadRequest(f"result must not contain {what}, which JSON does not have", field="result")


def success(value: Any) -> Success | Fault:
    """The handler returned this: a fault when it cannot be stored."""
    try:
        return Success(encode_result(value))
    except TaskdError as e:
        return Fault(one_line(f"the result cannot be stored: {e.message}"))
    except Exception as e:
        # objects of the handler's own may fail while they are written
        return Fault(f"the result cannot be stored: {error_line(e)}", trace_of(e), cause=e)


def fault(error: BaseException) -> Fault:
    """The handler raised this. A domain error of taskd is a rejection: a wrong payload stays wrong."""
    if isinstance(error, Reject | TaskdError):
        return Fault(one_line(_words(error)) or type(error).__name__, final=True)
    if isinstance(error, Retry):
        return Fault(one_line(_words(error)) or "to be tried again", after=retry_delay(error.after))
    return Fault(error_line(error), trace_of(error), cause=error)


def retry_delay(after: Any) -> float | None:
    """Seconds that somebody asked for, from 0 to MAX_DELAY_SECONDS: what is no number counts as 0."""
    if after is None:
        return None
    if isinstance(after, bool) or not isinstance(after, int | float) or not after > 0:
        return 0.0
    return float(min(after, MAX_DELAY_SECONDS))


def error_line(error: BaseException) -> str:
    """The type and message of an exception in one line of at most MAX_ERROR_CHARS."""
    name, text = type(error).__name__, _words(error)
    return one_line(f"{name}: {text}" if text else name)


def one_line(text: str, limit: int = MAX_ERROR_CHARS) -> str:
    """A text as one line of at most ``limit`` characters that can be stored and shown."""
    line = storable(" ".join(text[: 4 * limit].split()))
    return line if len(line) <= limit else line[: limit - 3] + "..."


def storable(text: str) -> str:
    """A text without what a database or a terminal would not take: control characters but tab and newline, and lone
    surrogates, become U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text)


def cut_trace(text: str) -> str:
    """A traceback of at most MAX_TRACE_CHARS: the middle is left out, as the ends say most."""
    if len(text) > MAX_TRACE_CHARS:
        half = (MAX_TRACE_CHARS - len(_CUT)) // 2
        text = text[:half] + _CUT + text[-half:]
    return storable(text)


def trace_of(error: BaseException) -> str | None:
    """The traceback of an exception with those that led to it, from the handler's code on. None when it was not raised
    there."""
    begins = _beyond_own(error.__traceback__)
    if begins is None:
        return None
    try:
        text = "".join(traceback.TracebackException(type(error), error, begins, compact=True).format())
    except Exception:
        # an exception of somebody else's may fail at being shown
        text = "".join(traceback.format_tb(begins)) + error_line(error)
    return cut_trace(text.rstrip())


def _beyond_own(found: TracebackType | None) -> TracebackType | None:
    while found is not None and found.tb_frame.f_code.co_filename in OWN_FILES:
        found = found.tb_next
    return found


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(its message cannot be shown)"
