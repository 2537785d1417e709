"""The handler of ``python -m bench.connections``."""

from __future__ import annotations

from taskd.ports.handler import ITaskContext
from taskd.worker import handler


@handler("bench.large")
async def large(task: ITaskContext) -> str:
    """Return so many characters."""
    return "x" * int(task.payload["bytes"])
