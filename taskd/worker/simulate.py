"""The handler that is part of taskd."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from zope.interface import implementer

from taskd.model.backoff import Backoff
from taskd.model.errors import BadRequest
from taskd.model.limits import DEFAULT_ATTEMPTS
from taskd.model.tasks import DEFAULT_KIND
from taskd.ports.handler import ITaskContext, ITaskHandler

DEFAULT_SECONDS = 2.0
MAX_SECONDS = 7 * 86400.0


@implementer(ITaskHandler)
class Simulate:
    """Simulates processing: waits ``{"seconds": n}``, 2 by default. It needs no thread."""

    kind = DEFAULT_KIND
    isolation = "async"
    timeout: float | None = None
    max_attempts = DEFAULT_ATTEMPTS
    backoff = Backoff()
    summary = f"Waits for so many seconds, {DEFAULT_SECONDS:g} unless the payload says otherwise."

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock

    async def run(self, task: ITaskContext) -> Any:
        """Wait. Raises BadRequest if ``seconds`` is not a number from 0 to MAX_SECONDS."""
        seconds = task.payload.get("seconds", DEFAULT_SECONDS)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MAX_SECONDS:
            raise BadRequest(f"seconds must be a number from 0 to {MAX_SECONDS:.0f}", field="seconds")
        if seconds:
            await deferLater(self._clock, seconds)
        return {"seconds": seconds}
