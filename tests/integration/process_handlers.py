"""Handlers for the children of a fork server. Some of them misbehave."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from taskd.ports.handler import ITaskContext
from taskd.worker import Reject, Retry, handler


@handler("pid", isolation="process")
def pid(task: ITaskContext) -> int:
    return os.getpid()


@handler("echo", isolation="process")
def echo(task: ITaskContext) -> Any:
    """Everything the context has."""
    return [task.id, task.attempt, task.max_attempts, task.user, task.task, task.kind, task.queue, task.payload]


@handler("talk", isolation="process")
def talk(task: ITaskContext) -> bool:
    print("printed")
    task.log("logged\nin two lines")
    print("to stderr", file=sys.stderr)
    sys.stdout.buffer.write(b"\x00\x1b[31mbin\xffary\ttab\r\n50%\r100%\nno end")
    task.progress(0.5, "half\x07way")
    time.sleep(0.25)
    task.progress(2)
    return task.cancelled


@handler("flood", isolation="process")
def flood(task: ITaskContext) -> None:
    for i in range(200_000):
        task.progress(i / 200_000, "on and on")
    task.progress(1, "over")


@handler("raise", isolation="process")
def raise_(task: ITaskContext) -> None:
    raise {
        "ValueError": ValueError("no\nsuch thing"),
        "Retry": Retry("later", after=7),
        "Reject": Reject("never"),
        "KeyboardInterrupt": KeyboardInterrupt(),
        "SystemExit": SystemExit(3),
        "MemoryError": MemoryError(),
    }[task.payload["what"]]


@handler("return", isolation="process")
def return_(task: ITaskContext) -> Any:
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    return {
        "object": object(),
        "NaN": [float("nan")],
        "NUL": {"a": "b\0c"},
        "large": "x" * (256 * 1024),
        "deep": deep,
        "largest": "x" * (256 * 1024 - 2),
    }[task.payload["what"]]


@handler("misbehave", isolation="process")
def misbehave(task: ITaskContext) -> Any:
    what = task.payload["what"]
    if what == "exit":
        os._exit(3)
    elif what == "exit 0":
        os._exit(0)
    elif what == "crash":
        ctypes.string_at(0)
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "close":
        os.closerange(0, 1000)
    elif what == "close output":
        os.closerange(0, 3)
    elif what == "write":
        for fd in range(3, 20):
            try:
                os.write(fd, b"rubbish\n" * 10)
            except OSError:
                continue
    elif what == "thread":
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    elif what == "fork":
        os.fork()
    elif what == "alarm":
        signal.alarm(1)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.chdir("/")
    return os.getpid()


def daemonize() -> int:
    """Start a process in another session, whose parent has ended and which ignores TERM. Returns its pid."""
    source, sink = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(sink, str(os.getpid()).encode())
            time.sleep(600)
        os._exit(0)
    os.wait()
    return int(os.read(source, 20))


@handler("leave", isolation="process")
def leave(task: ITaskContext) -> list[int]:
    """Leaves a daemon and a plain child behind."""
    return [daemonize(), subprocess.Popen(["sleep", "600"]).pid]


@handler("hang", isolation="process")
def hang(task: ITaskContext) -> None:
    print("hanging", flush=True)
    time.sleep(600)


@handler("defy", isolation="process")
def defy(task: ITaskContext) -> None:
    """Ignores TERM and starts a daemon and a shell that ignore it too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    daemonize()
    subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 600 & sleep 600"])
    print("defying")
    time.sleep(600)


@handler("cooperate", isolation="process")
def cooperate(task: ITaskContext) -> str:
    print("listening" if not task.cancelled else "")
    while not task.cancelled:
        time.sleep(0.01)
    return "cleaned up"


@handler("spin", isolation="process")
def spin(task: ITaskContext) -> tuple[float, float]:
    """Computes for so many seconds of CPU time. Returns when it began and ended."""
    began = time.monotonic()
    until = time.process_time() + task.payload["seconds"]
    while time.process_time() < until:
        pass
    return began, time.monotonic()


@handler("print", isolation="process")
def print_(task: ITaskContext) -> None:
    """Prints 100 MiB."""
    line = b"x" * 1023 + b"\n"
    for _ in range(100):
        sys.stdout.buffer.write(line * 1024)
    print("the end")
