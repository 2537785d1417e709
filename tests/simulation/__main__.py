"""``python -m tests.simulation``: play many games, or print the log of one."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulation.world import Failed, play

Outcome = tuple[int, str, str]
"""A seed, the invariant that was violated in its game (empty if none was), and the report of the violation."""


def outcome_of(seed: int, verbose: bool = False) -> Outcome:
    """Play the game of a seed."""
    try:
        play(seed, print if verbose else None)
    except Failed as e:
        return seed, e.invariant, str(e)
    return seed, "", ""


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _play_all(seeds: range, jobs: int, verbose: bool) -> Iterable[Outcome]:
    if jobs == 1 or len(seeds) == 1:
        yield from map(partial(outcome_of, verbose=verbose), seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(outcome_of, seeds, chunksize=10)


def main() -> int:
    """Play the games that the options name. Returns the exit status: 1 if an invariant was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, metavar="N", help="number of games (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="seed of the first game")
    parser.add_argument("--jobs", type=int, default=_cores(), help="number of processes (default: one for each core)")
    parser.add_argument("--verbose", action="store_true", help="print the log of each game, one game after another")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    began = time.monotonic()
    failed: Counter[str] = Counter()
    for seed, invariant, text in _play_all(seeds, 1 if options.verbose else options.jobs, options.verbose):
        if invariant:
            failed[invariant] += 1
            print(text if failed[invariant] == 1 else f"seed {seed}: {invariant}", flush=True)
    seconds = time.monotonic() - began
    print(f"{len(seeds)} games in {seconds:.0f} s, {sum(failed.values())} failed")
    for invariant, times in failed.most_common():
        print(f"{times:6} {invariant}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
