"""The handlers of ``python -m bench.kinds``: they do nothing, use a core, or run until they are cancelled.

The last ones write the time at which they notice their cancellation to a file.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any, NoReturn

from twisted.internet.defer import CancelledError, Deferred

from taskd.ports.handler import ITaskContext
from taskd.worker import handler

ENDED = "BENCH_ENDED"
"""The environment variable with the path of that file."""

PROGRAM = f"""
import os, signal, sys, time
def ended(*_):
    with open(os.environ["{ENDED}"], "a") as file:
        file.write(f"{{time.time()}}\\n")
    sys.exit()
signal.signal(signal.SIGTERM, ended)
time.sleep(600)
"""


def note() -> None:
    """Append the present time to the file."""
    with open(os.environ[ENDED], "a") as file:
        file.write(f"{time.time()}\n")


@handler("async.nothing")
async def async_nothing(task: ITaskContext) -> None:
    """Do nothing, on the reactor."""


@handler("thread.nothing")
def thread_nothing(task: ITaskContext) -> None:
    """Do nothing, in a thread."""


@handler("process.nothing", isolation="process")
def process_nothing(task: ITaskContext) -> None:
    """Do nothing, in a child process."""


@handler("process.spin", isolation="process")
def process_spin(task: ITaskContext) -> None:
    """Use this many seconds of CPU time."""
    end = time.process_time() + task.payload["seconds"]
    while time.process_time() < end:
        pass


@handler("async.endless")
async def async_endless(task: ITaskContext) -> None:
    """Run until it is cancelled, on the reactor."""
    try:
        await Deferred()
    except CancelledError:
        note()
        raise


@handler("thread.endless")
def thread_endless(task: ITaskContext) -> None:
    """Run until it is cancelled, in a thread that checks it a thousand times a second."""
    while not task.cancelled:
        time.sleep(0.001)
    note()


@handler("process.endless", isolation="process")
def process_endless(task: ITaskContext) -> None:
    """Run until it is cancelled, in a child process."""

    def ended(*_: Any) -> NoReturn:
        note()
        os._exit(0)

    signal.signal(signal.SIGTERM, ended)
    time.sleep(600)
