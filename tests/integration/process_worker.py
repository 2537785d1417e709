"""A worker for a test that kills it.

``python -m tests.integration.process_worker`` starts three jobs that do not end, and prints "running" when they run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from twisted.internet import reactor
from twisted.internet.defer import Deferred

from taskd.worker.forkserver.client import ForkServerClient
from taskd.worker.forkserver.messages import Program


class Count:
    """Prints "running" when so many jobs have printed something."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs

    def progress(self, fraction: float, note: str) -> None:
        """No job reports progress."""

    def lines(self, lines: Sequence[str], dropped: int) -> None:
        """One more of them runs."""
        self._jobs -= 1
        if not self._jobs:
            print("running", flush=True)


async def main() -> None:
    """Start the jobs."""
    forkserver = ForkServerClient(reactor, ["tests.integration.process_handlers"], 2)
    await forkserver.start()
    listener = Count(3)
    for kind in ("defy", "hang"):
        forkserver.call(kind, {"id": 1, "payload": {}}, listener)
    script = "trap '' TERM; (setsid sleep 600 &); echo up; sleep 600; sleep 600"
    forkserver.execute(Program(["/bin/sh", "-c", script], "/", dict(os.environ), None, None, 1000), listener)


if __name__ == "__main__":
    Deferred.fromCoroutine(main())
    reactor.run()
