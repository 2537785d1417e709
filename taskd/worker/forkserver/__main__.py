"""``python -m taskd.worker.forkserver MODULE...``: a worker starts it."""

from __future__ import annotations

import sys

from taskd.worker.forkserver.reaper import main

if __name__ == "__main__":
    main(sys.argv[1:])
