"""The handlers of ``python -m bench.fairness``: 41 kinds that only wait, all of them on the reactor."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.task import deferLater

from taskd.ports.handler import ITaskContext
from taskd.worker import handler

KINDS = [f"nap{n}" for n in range(41)]


async def nap(task: ITaskContext) -> None:
    """Hold a slot for so many seconds."""
    await deferLater(reactor, float(task.payload["seconds"]))


for _kind in KINDS:
    globals()[_kind] = handler(_kind)(nap)
