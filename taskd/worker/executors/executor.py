"""What all executors share: the interface, and where a handler stands."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import Deferred

from taskd.ports.handler import ITaskHandler
from taskd.worker.handler_results import Fault, Success, cut_trace, success

Ended = Callable[["Success | Fault"], None]


class Place(NamedTuple):
    """Where a handler stands right now: one line, and the stack if it can be had."""

    line: str
    trace: str | None = None


class IExecution(Protocol):
    """One attempt under way."""

    patience: float | None
    """Seconds between :meth:`cancel` and an outcome that does not wait for the end; None: the end always comes."""

    stubborn: str
    """What to say of it, behind its place, when it does not end."""

    def begin(self, ended: Ended) -> None:
        """Run it."""

    def cancel(self) -> None:
        """Have it end soon."""

    def place(self) -> Place:
        """Where it stands."""


def name_of(handler: ITaskHandler) -> str:
    """What people call the handler's code."""
    function = getattr(handler, "function", None)
    return f"{getattr(function, '__qualname__', None) or type(handler).__name__}()"


def _returned(value: Any) -> Success | Fault:
    """What a handler's function returned, unless it is work that nobody would do."""
    if inspect.iscoroutine(value):
        value.close()
        return Fault("returned a coroutine that was not awaited: make the handler an async def, or await it")
    if isinstance(value, Deferred):
        value.addErrback(lambda _: None)
        return Fault("returned a Deferred from a thread: make the handler an async def that awaits it")
    return success(value)


def _place(handler: ITaskHandler, frames: Sequence[FrameType]) -> Place:
    """In words: the innermost frame in the handler's own file, or else the innermost of all."""
    if not frames:
        return Place(name_of(handler))
    file = _file_of(handler)
    at = next((f for f in reversed(frames) if f.f_code.co_filename == file), frames[-1])
    where = f"{name_of(handler)} at {at.f_code.co_filename}:{at.f_lineno} in {at.f_code.co_name}"
    stack = traceback.StackSummary.extract((f, f.f_lineno) for f in frames)
    return Place(where, cut_trace("".join(stack.format()).rstrip()))


def _file_of(handler: ITaskHandler) -> str | None:
    function = inspect.unwrap(getattr(handler, "function", None) or type(handler).run)
    code = getattr(function, "__code__", None)
    return None if code is None else code.co_filename
