"""A small worker whose handlers fork: run as a program by test_forking.py. It has a reactor, a Runner, a port that
echoes lines, and a locked file. It prints one JSON object a line, and ends when its standard input does.

Arguments: a folder, and the kinds to run one after the other.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.protocol import Factory, ProcessProtocol, connectionDone
from twisted.internet.stdio import StandardIO
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure

from taskd.worker import handler
from taskd.worker.executors import forks
from taskd.worker.executors.thread_pool import Threads
from taskd.worker.runner import Runner
from taskd.worker.simulate import Simulate
from tests.unit.running import RecordingListener, make_task

reactor: Any = installed
HANDLERS: list[Any] = [Simulate(reactor)]


def serve(isolation: str, name: str = "") -> Callable[[Callable[[Any], Any]], Any]:
    """Make a function a handler of its name."""

    def decorate(function: Callable[[Any], Any]) -> Any:
        HANDLERS.append(handler(name or function.__name__, isolation=isolation)(function))
        return function

    return decorate


def end_of(pid: int) -> int:
    """The exit status of a child. It has no copies of the worker below it: its standard output has no other holder."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def endings() -> dict[str, Callable[[], Any]]:
    """How a child may end."""

    def fails() -> None:
        raise ValueError("in the child")

    return {"returns": lambda: None, "exits": lambda: sys.exit(3), "ends": lambda: os._exit(4), "raises": fails}


def fork_and(task: Any, end: Callable[[], Any]) -> Any:
    """Fork. The child says something to the task and ends."""
    if pid := os.fork():
        return end_of(pid)
    task.log("from the child")
    return end()


for _name, _end in endings().items():

    @serve("thread", f"thread-{_name}")
    def in_thread(task: Any, end: Callable[[], Any] = _end) -> Any:
        """Fork in a thread."""
        return fork_and(task, end)

    @serve("async", f"async-{_name}")
    async def first_step(task: Any, end: Callable[[], Any] = _end) -> Any:
        """Fork before the first await."""
        return fork_and(task, end)

    @serve("async", f"later-{_name}")
    async def later_step(task: Any, end: Callable[[], Any] = _end) -> Any:
        """Fork after an await."""
        await deferLater(reactor, 0.01)
        return fork_and(task, end)


@serve("async")
async def awaits(task: Any) -> Any:
    """The child awaits something."""
    if pid := os.fork():
        return end_of(pid)
    await deferLater(reactor, 0.01)
    os._exit(9)


@serve("async", "callback")
async def in_callback(task: Any) -> Any:
    """Fork in a callback; the child goes on here and returns."""
    pid = await deferLater(reactor, 0.01, os.fork)
    return end_of(pid) if pid else None


@serve("async", "helper")
async def in_thread_of_reactor(task: Any) -> Any:
    """Fork in a thread of the reactor's pool; the child returns to the pool."""
    pid = await deferToThread(os.fork)
    return end_of(pid)


@serve("async", "reactor")
async def in_reactor(task: Any) -> Any:
    """Fork in a function that the reactor calls; the child returns to the reactor."""
    forked: Deferred[int] = Deferred()

    def fork() -> None:
        if pid := os.fork():
            forked.callback(pid)

    reactor.callLater(0.01, fork)
    reactor.callLater(0.01, print, json.dumps({"event": "beside"}), flush=True)
    return end_of(await forked)


def live_on() -> Any:
    """Fork a daemon that lives on. Its files are its own."""
    source, sink = os.pipe()
    if pid := os.fork():
        os.close(sink)
        end_of(pid)
        with os.fdopen(source) as text:
            return json.loads(text.readline())
    os.setsid()
    if os.fork():
        os._exit(0)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(1, 2)
    mine = os.open("/etc/hostname", os.O_RDONLY)
    open_files = {fd: _target(fd) for fd in os.listdir("/proc/self/fd")}
    os.write(sink, json.dumps({"pid": os.getpid(), "mine": mine, "files": open_files}).encode() + b"\n")
    time.sleep(60)
    os._exit(0)


def _target(fd: str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{fd}")
    return ""


@serve("thread", "thread-daemon")
def daemon_of_thread(task: Any) -> Any:
    """Fork a daemon in a thread."""
    return live_on()


@serve("async", "async-daemon")
async def daemon_of_reactor(task: Any) -> Any:
    """Fork a daemon on the reactor."""
    return live_on()


@serve("thread")
def runs_program(task: Any) -> Any:
    """subprocess works as always."""
    done = subprocess.run(["/bin/cat"], input=b"text", capture_output=True, check=True, preexec_fn=os.setsid)
    return done.stdout.decode() + subprocess.check_output(["/bin/echo", "more"]).decode()


def _put(queue: Any, pipe: Any) -> None:
    queue.put(os.getpid())
    pipe.send("sent")


def _process() -> Any:
    context = multiprocessing.get_context("fork")
    queue, (ours, theirs) = context.SimpleQueue(), context.Pipe()
    process = context.Process(target=_put, args=(queue, theirs))
    process.start()
    same = queue.get() == process.pid
    received = ours.recv()
    process.join()
    sleeper = context.Process(target=time.sleep, args=(60,))
    sleeper.start()
    sleeper.terminate()
    sleeper.join()
    return [same, received, process.exitcode, sleeper.exitcode]


@serve("thread", "thread-process")
def process_of_thread(task: Any) -> Any:
    """A Process in a thread."""
    return _process()


@serve("async", "async-process")
async def process_of_reactor(task: Any) -> Any:
    """A Process on the reactor."""
    return _process()


@serve("thread")
def pool(task: Any) -> Any:
    """A Pool, which forks in a thread of its own, too."""
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as processes:
        return processes.map(abs, [-1, -2, -3, -4], chunksize=1)


@serve("thread")
def executor(task: Any) -> Any:
    """A ProcessPoolExecutor."""
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as processes:
        return list(processes.map(abs, [-1, -2]))


class Echo(LineReceiver):
    """Sends lines back. After the line ``pause`` it reads no more."""

    delimiter = b"\n"

    def lineReceived(self, line: bytes) -> None:
        self.sendLine(line)
        if line == b"pause":
            self.pauseProducing()


class UntilEnd(LineReceiver):
    """Stops the reactor at the end of standard input."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if reactor.running:
            reactor.stop()


async def run(kinds: list[str], go: Deferred[None], runner: Runner) -> None:
    """Run the kinds and say how each has ended."""
    await runner.start()
    await go
    for kind in kinds:
        listener = RecordingListener()
        outcome = await runner.run(
            make_task(kind, '{"seconds":0.01}' if kind == "simulate" else "{}"), "a", listener
        ).done
        say(kind=kind, state=outcome.state.value, result=outcome.result, error=outcome.error, log=listener.received)


def say(**fields: Any) -> None:
    """One line for the test."""
    print(json.dumps(fields), flush=True)


def main() -> None:
    """See above."""
    folder, kinds = Path(sys.argv[1]), sys.argv[2:]
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    forks.own_files(folder / "lock")
    # as the daemons do: TERM does not end this process, but must end its children
    reactor.callWhenRunning(signal.signal, signal.SIGTERM, lambda *_: None)
    port = reactor.listenTCP(0, Factory.forProtocol(Echo), interface="127.0.0.1")
    # as the fork server is: it ends when nobody holds its standard input any more
    child = reactor.spawnProcess(ProcessProtocol(), "/bin/cat", ["cat"])
    say(port=port.getHost().port, child=child.pid)
    go: Deferred[None] = Deferred()
    go_on = UntilEnd()
    go_on.lineReceived = functools.partial(lambda line: go.callback(None))  # type: ignore[method-assign]
    go_on.delimiter = b"\n"
    StandardIO(go_on)
    runner = Runner(reactor, HANDLERS, threads=Threads(reactor, 2))
    reactor.callWhenRunning(lambda: ensureDeferred(run(kinds, go, runner)).addErrback(lambda f: f.printTraceback()))
    reactor.run()


if __name__ == "__main__":
    main()
