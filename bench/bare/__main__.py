"""The command ``python -m bench.bare``."""

from __future__ import annotations

import logging
import sys

from bench.bare.create import Creator
from bench.bare.job import Job, reactor, run
from bench.bare.work import Worker


def main() -> None:
    """Run the process that the first argument names."""
    logging.disable()
    job = Job(sys.argv[2])
    role = Creator(job) if sys.argv[1] == "create" else Worker(job)
    reactor.callWhenRunning(lambda: run(role.start()))
    reactor.run()


if __name__ == "__main__":
    main()
