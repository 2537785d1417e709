"""What all executors share: their interface, and where a handler is."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, Protocol

from taskd.model.text import cut_trace
from taskd.ports.handler import ITaskHandler
from taskd.worker.attempt import Attempt, Place


class IExecutor(Protocol):
    """Runs the handlers of one isolation."""

    def run(self, attempt: Attempt, handler: Any, attributes: Mapping[str, Any]) -> None:
        """Set ``attempt.execution``, then call the handler, an ITaskHandler or a Command. ``attributes`` are those of
        its TaskContext. Raises Reject if the payload does not fit."""


def name_of(handler: ITaskHandler) -> str:
    """The name of the handler's code in texts for people."""
    function = getattr(handler, "function", None)
    return f"{getattr(function, '__qualname__', None) or type(handler).__name__}()"


def place_of(handler: ITaskHandler, frames: Sequence[FrameType]) -> Place:
    """The innermost of the frames that is in the handler's own file, or else the innermost of all."""
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
