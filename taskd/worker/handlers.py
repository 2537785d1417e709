"""The handlers that come with taskd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from zope.interface import implementer

from taskd.errors import BadRequest
from taskd.model import DEFAULT_KIND, Task
from taskd.ports import ITaskHandler

DEFAULT_SECONDS = 2.0
MAX_SECONDS = 7 * 86400.0


@implementer(ITaskHandler)
class Simulate:
    """The original's simulated processing: waits ``{"seconds": n}``, 2 by default, and holds no thread meanwhile."""

    kind = DEFAULT_KIND

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock

    async def run(self, task: Task, payload: Mapping[str, Any]) -> Any:
        seconds = payload.get("seconds", DEFAULT_SECONDS)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MAX_SECONDS:
            raise BadRequest(f"seconds must be a number from 0 to {MAX_SECONDS:.0f}", field="seconds")
        if seconds:
            await deferLater(self._clock, seconds)
        return {"seconds": seconds}
