"""``python -m tests.faults [--full] [--only NAME]``: a line of JSON per scenario; status 1 if a promise was broken."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests import programs
from tests.faults.scenarios import SCENARIOS, play
from tests.faults.stage import Broken, own_services


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen scenarios. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("--full", action="store_true", help="the full counts, which take some minutes")
    parser.add_argument("--only", action="append", choices=list(SCENARIOS), help="this scenario; repeatable")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the output of the daemons there")
    options = parser.parse_args(arguments)
    if absent := [name for name in programs.missing() if name in ("postgres", "rabbitmq")]:
        print(f"not installed: {', '.join(absent)}; {programs.how_to_get(absent)}", file=sys.stderr)
        return 1
    own = own_services()
    broken = False
    try:
        for name in options.only or [n for n, s in SCENARIOS.items() if options.full or s.quick is not None]:
            try:
                line = play(name, own, options.full, options.keep and options.keep.resolve())
            except Broken as e:
                line, broken = e.line, True
            print(json.dumps(line), flush=True)
    finally:
        own.stop()
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
