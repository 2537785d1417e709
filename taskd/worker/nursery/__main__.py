"""``python -m taskd.worker.nursery MODULE...``: started by a worker, never by hand."""

from __future__ import annotations

import sys

from taskd.worker.nursery.guard import main

if __name__ == "__main__":
    main(sys.argv[1:])
