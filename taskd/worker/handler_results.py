"""What a handler did: it returned a result that can be stored, or it failed. Child processes import this: it uses no
reactor."""

from __future__ import annotations

import inspect
import math
import traceback
from types import FrameType, TracebackType
from typing import Any, TypeAlias

import msgspec

from taskd.model.errors import BadRequest, TaskdError
from taskd.model.json_text import encode_json
from taskd.model.limits import MAX_DELAY_SECONDS, MAX_RESULT_BYTES
from taskd.model.text import cut_trace, one_line
from taskd.worker.handler import Reject, Retry

HIDDEN_IN_TRACEBACKS = True
"""Tracebacks leave out the frames of every module that has this name: they stand between the worker and the handler's
code. unittest uses ``__unittest`` in the same way."""


class Success(msgspec.Struct, tag=True):
    """The handler returned. ``result`` is JSON text."""

    result: str


class Fault(msgspec.Struct, tag=True):
    """The handler failed. ``error`` is one line, ``trace`` several. ``after`` is the delay in seconds that the handler
    asked for. ``final``: a retry would not help. ``cause`` is the exception, for the worker's own log; a child process
    does not send it."""

    error: str
    trace: str | None = None
    after: float | None = None
    final: bool = False
    cause: BaseException | None = None


HandlerResult: TypeAlias = Success | Fault


def handler_returned(value: Any) -> HandlerResult:
    """The handler returned this value: a fault if it cannot be stored. It cannot if it is not a JSON value, larger than
    MAX_RESULT_BYTES, nested too deeply, or has NaN, Infinity or a NUL in a text."""
    try:
        text = encode_json(value, MAX_RESULT_BYTES, "result")
        # Values that decode to something else (NaN to null, a set to a list) are rare, so are tuples and the escape
        # for NUL, which may also be ordinary text. Only these need the slow check.
        if "\\u0000" in text or msgspec.json.decode(text) != value:
            _check(value)
        return Success(text)
    except TaskdError as e:
        if inspect.iscoroutine(value):
            value.close()
            return Fault("returned a coroutine that was not awaited: make the handler an async def, or await it")
        return Fault(one_line(f"the result cannot be stored: {e.message}"))
    except Exception as e:
        # the handler's own objects may fail while they are encoded
        return Fault(one_line(f"the result cannot be stored: {error_line(e)}"), trace_of(e), cause=e)


def handler_raised(error: BaseException) -> Fault:
    """The handler raised this. A TaskdError is a rejection: a wrong payload stays wrong."""
    if isinstance(error, Reject | TaskdError):
        return Fault(one_line(_message_of(error)) or type(error).__name__, final=True)
    if isinstance(error, Retry):
        return Fault(one_line(_message_of(error)) or "to be tried again", after=retry_delay(error.after))
    return Fault(error_line(error), trace_of(error), cause=error)


def _check(value: Any) -> None:
    """Raises BadRequest if JSON would change the value."""
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


def retry_delay(after: Any) -> float | None:
    """The requested delay in seconds, from 0 to MAX_DELAY_SECONDS. 0 if it is not a number."""
    if after is None:
        return None
    if isinstance(after, bool) or not isinstance(after, int | float) or not after > 0:
        return 0.0
    return float(min(after, MAX_DELAY_SECONDS))


def error_line(error: BaseException) -> str:
    """The type and message of an exception in one line of at most MAX_ERROR_CHARS."""
    name, text = type(error).__name__, _message_of(error)
    return one_line(f"{name}: {text}" if text else name)


def trace_of(error: BaseException) -> str | None:
    """The traceback of an exception and of its causes, from the handler's code on. None if the handler's code did not
    raise it."""
    begin = error.__traceback__
    while begin is not None and is_hidden(begin.tb_frame):
        begin = begin.tb_next
    if begin is None:
        return None
    return cut_trace(_format_trace(error, begin).rstrip())


def _format_trace(error: BaseException, begin: TracebackType) -> str:
    try:
        return "".join(traceback.TracebackException(type(error), error, begin, compact=True).format())
    except BaseException:
        # the __str__ of a foreign exception may fail
        return "".join(traceback.format_tb(begin)) + error_line(error)


def is_hidden(frame: FrameType) -> bool:
    """Whether tracebacks leave out this frame."""
    return "HIDDEN_IN_TRACEBACKS" in frame.f_globals


def _message_of(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:
        return "(its message cannot be shown)"
