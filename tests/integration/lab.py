"""Handlers for the daemons of the tests: async, thread and process handlers, good ones and bad ones."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from taskd.ports.handler import ITaskContext
from taskd.worker import Backoff, Reject, Retry, handler

QUICK = Backoff(first=0.3, factor=1)
GARBAGE: dict[str, Any] = {"object": object(), "nan": float("nan"), "nul": "a\0b", "large": "x" * 300_000}


async def pause(seconds: float) -> None:
    """Wait without blocking the reactor."""
    from twisted.internet import reactor

    await deferLater(reactor, seconds)


def work(task: ITaskContext) -> Any:
    """Log, report progress, and end as the payload says. Handlers of all kinds can do this."""
    task.log(f"hello {task.user}, this is attempt {task.attempt}")
    task.progress(0.25, "a quarter")
    end, first = task.payload.get("end", "well"), task.attempt == 1
    if end == "raise" or (end == "flaky" and first):
        raise ValueError("no such colour")
    if end == "retry" and first:
        raise Retry("out of paper", after=0.3)
    if end == "reject":
        raise Reject("there is no such folder")
    if end in GARBAGE:
        return GARBAGE[end]
    return {"task": task.task, "pid": os.getpid()}


@handler("async.work", backoff=QUICK, max_attempts=2)
async def async_work(task: ITaskContext) -> Any:
    """Do the work on the reactor."""
    await pause(task.payload.get("seconds", 0))
    return work(task)


@handler("thread.work", backoff=QUICK, max_attempts=2)
def thread_work(task: ITaskContext) -> Any:
    """Do the work in a thread."""
    time.sleep(task.payload.get("seconds", 0))
    return work(task)


@handler("process.work", isolation="process", backoff=QUICK, max_attempts=2)
def process_work(task: ITaskContext) -> Any:
    """Do the work in a child process."""
    time.sleep(task.payload.get("seconds", 0))
    return work(task)


@handler("async.hang", max_attempts=1)
async def async_hang(task: ITaskContext) -> None:
    """Never end without cancellation."""
    task.log("hanging")
    await Deferred()


@handler("async.stubborn", max_attempts=1)
async def async_stubborn(task: ITaskContext) -> None:
    """Continue for some seconds after the cancellation."""
    try:
        await Deferred()
    except CancelledError:
        await pause(8)


@handler("thread.hang", max_attempts=1)
def thread_hang(task: ITaskContext) -> str:
    """End when cancelled."""
    task.log("hanging")
    while not task.cancelled:
        time.sleep(0.02)
    return "told to"


@handler("thread.deaf", max_attempts=1)
def thread_deaf(task: ITaskContext) -> None:
    """Ignore the cancellation for some seconds."""
    time.sleep(task.payload.get("seconds", 3))


@handler("process.hang", isolation="process", max_attempts=1)
def process_hang(task: ITaskContext) -> None:
    """Never end, ignore SIGTERM, and start child processes that do the same."""
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(2):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(600)
            os._exit(0)
    task.log("hanging")
    time.sleep(600)


@handler("process.leave", isolation="process", max_attempts=1)
def process_leave(task: ITaskContext) -> str:
    """Succeed, and leave a child process behind."""
    if os.fork() == 0:
        os.setsid()
        os.execv("/bin/sleep", ["taskd-left-behind", "600"])
    return "done"


@handler("process.die", isolation="process", max_attempts=1)
def process_die(task: ITaskContext) -> None:
    """End the process by a signal, as a crash does."""
    os.kill(os.getpid(), task.payload["signal"])


@handler("process.print", isolation="process", max_attempts=1)
def process_print(task: ITaskContext) -> int:
    """Print 100 MiB, or as many as the payload says."""
    line = b"x" * 1023 + b"\n"
    for _ in range(task.payload.get("mib", 100) * 1024):
        sys.stdout.buffer.write(line)
    return 1


@handler("process.spin", isolation="process", max_attempts=1)
def process_spin(task: ITaskContext) -> float:
    """Keep a core busy until the process has used this number of CPU seconds."""
    end = time.process_time() + task.payload["seconds"]
    while time.process_time() < end:
        pass
    return time.process_time()
