"""How many calls cross from one file of taskd/ into another for one task: ``python -m bench.hops``.

It runs one embedded server in memory (taskd.testing.Lab) with one connection that watches. The count begins when the
connection gets the bytes of a ``new_task`` request, and ends when it has written the last event of the task. A call
counts if the calling frame is in one file of taskd/ and the called function in another. A coroutine that resumes after
an await is no new call. Calls by Twisted (reactor, Deferreds, timers) do not count.

It prints one line of JSON. With ``--list`` it prints the crossings as well, in their order.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import taskd
from taskd.testing import Lab, LabClient

ROOT = str(Path(taskd.__file__).resolve().parent) + "/"
WARM_UP = 3
"""Tasks that run before the count, so that all imports and caches are done."""

Crossing = tuple[str, str, str]
"""The calling file, the called file and the called function."""


class Counter:
    """A profile function that records each call from one file below ROOT into another."""

    def __init__(self) -> None:
        self.crossings: list[Crossing] = []
        self.calls = 0
        self._begun: set[FrameType] = set()

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if event != "call":
            return
        file = frame.f_code.co_filename
        if not file.startswith(ROOT):
            return
        if frame in self._begun:
            return  # a coroutine or generator that resumes
        self._begun.add(frame)
        self.calls += 1
        caller = frame.f_back
        origin = caller.f_code.co_filename if caller is not None else ""
        if origin.startswith(ROOT) and origin != file and not file.endswith("/testing.py"):
            self.crossings.append((origin, file, frame.f_code.co_name))


def measure() -> Counter:
    """Run tasks on a server in memory and count the calls of the last one."""
    with Lab() as lab:
        client = lab.client()
        client.ask("watch")
        for _ in range(WARM_UP):
            run_one(client)
        counter = Counter()
        sys.setprofile(counter)
        try:
            run_one(client)
        finally:
            sys.setprofile(None)
    return counter


def run_one(client: LabClient) -> None:
    """Submit a task that takes no time and see its last event."""
    reply = client.ask("new_task", task="t", payload={"seconds": 0})
    events = client.events()
    last = events[-1]["task"]
    if not reply["ok"] or (last["id"], last["state"]) != (reply["task_id"], "completed"):
        raise SystemExit(f"hops: the task did not complete: {reply}, {events}")


def main() -> None:
    """Count the crossings and print the result."""
    parser = argparse.ArgumentParser(prog="python -m bench.hops", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the crossings in their order")
    options = parser.parse_args()
    counter = measure()
    if options.list:
        for origin, file, name in counter.crossings:
            print(f"{origin.removeprefix(ROOT):32} -> {file.removeprefix(ROOT):32} {name}")
    files = {file for origin, to, _ in counter.crossings for file in (origin, to)}
    print(json.dumps({"hops": len(counter.crossings), "calls": counter.calls, "files": len(files)}))


if __name__ == "__main__":
    main()
