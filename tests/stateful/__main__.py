"""Plays long games from ever new seeds for some minutes, and prints each that fails."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import traceback

from tests.stateful.machine import GAMES, MACHINES, STEPS, play


def main() -> int:
    """The exit status is 1 if a game has failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.stateful", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for how long (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--plays", type=int, help="how many plays at most")
    parser.add_argument("--only", choices=sorted(MACHINES), help="only the machine with this registration")
    parser.add_argument("--games", type=int, default=GAMES, help="games a play (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps a game (default: %(default)s)")
    parser.add_argument("--fast", action="store_true", help="do not shorten what fails")
    options = parser.parse_args()
    until = time.monotonic() + options.minutes * 60
    failed = plays = 0
    machines = [options.only] if options.only else list(MACHINES)
    for seed, registration in ((seed, each) for seed in itertools.count(options.first) for each in machines):
        if time.monotonic() >= until or plays == options.plays:
            break
        plays += 1
        try:
            play(registration, seed, options.games, options.steps, shorten=not options.fast)
        except Exception:
            failed += 1
            traceback.print_exc()
            print(f"failed: seed {seed}, registration {registration}", flush=True)
    print(f"{plays} plays with {options.games} games of {options.steps} steps each, {failed} of them failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
