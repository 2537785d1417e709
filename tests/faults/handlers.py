"""Handlers that block the worker, hold its interpreter lock, or fork it. The worker of the scenarios serves them."""

from __future__ import annotations

import inspect
import math
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any

from taskd.worker import handler


@handler("block")
async def block(task: Any) -> None:
    """Block the reactor for ``seconds``."""
    time.sleep(task.payload["seconds"])


@handler("hold")
def hold(task: Any) -> float:
    """Hold the interpreter lock by a regular expression, for ``seconds`` at least and twice as long at most."""
    length, took = 20, 0.0
    while took < 0.1:
        length += 1
        took = _backtrack(length)
    length += math.ceil(math.log2(task.payload["seconds"] / took))
    return _backtrack(length)


def _backtrack(length: int) -> float:
    """Seconds that a match took, which double with each more of ``length``."""
    began = time.monotonic()
    re.match("(a+)+$", "a" * length + "b")
    return time.monotonic() - began


LINES: dict[str, list[Callable[..., Any]]] = {
    "block": [block.function],
    # the dump shows the function that holds the lock
    "hold": [hold.function, _backtrack],
}


def lines_of(kind: str) -> set[int]:
    """The lines of this file at which the log may say that a handler of the kind blocks."""
    found: set[int] = set()
    for function in LINES[kind]:
        lines, first = inspect.getsourcelines(function)
        found |= set(range(first, first + len(lines)))
    return found


def _leave(how: str, parent: int) -> Any:
    """What the child does at once: it never comes back from here in another way than ``how`` says."""
    assert os.getpid() != parent
    if how == "linger":
        time.sleep(3)
    elif how == "raise":
        raise RuntimeError("the child raises")
    elif how == "exit":
        sys.exit(3)
    elif how == "quit":
        os._exit(0)
    return "the child returns"


@handler("fork_thread")
def fork_thread(task: Any) -> Any:
    """Fork in a thread. The child does what ``how`` says, the parent returns the child's process id."""
    parent = os.getpid()
    child = os.fork()
    return child or _leave(task.payload["how"], parent)


@handler("fork_async")
async def fork_async(task: Any) -> Any:
    """The same on the reactor."""
    parent = os.getpid()
    child = os.fork()
    return child or _leave(task.payload["how"], parent)


FORKS = ("return", "raise", "exit", "quit", "linger")
"""What the child of a fork may do."""
