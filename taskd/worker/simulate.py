"""The handler that is part of taskd."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from taskd.model.errors import BadRequest
from taskd.model.tasks import DEFAULT_KIND
from taskd.ports.handler import ITaskContext
from taskd.worker.handler import Handler, handler

DEFAULT_SECONDS = 2.0
MAX_SECONDS = 7 * 86400.0


def simulate(clock: IReactorTime) -> Handler:
    """Simulates processing by waiting on ``clock``. It needs no thread."""

    @handler(DEFAULT_KIND)
    async def simulate(task: ITaskContext) -> Any:
        """Waits for so many seconds, 2 unless the payload says otherwise.

        Raises BadRequest if ``seconds`` is not a number from 0 to MAX_SECONDS."""
        seconds = task.payload.get("seconds", DEFAULT_SECONDS)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MAX_SECONDS:
            raise BadRequest(f"seconds must be a number from 0 to {MAX_SECONDS:.0f}", field="seconds")
        if seconds:
            await deferLater(clock, seconds)
        return {"seconds": seconds}

    return simulate
