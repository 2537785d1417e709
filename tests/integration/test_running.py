"""Running attempts with real threads, real children and real programs, under the real reactor."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from taskd.model.states import State
from taskd.ports.attempts import Outcome
from taskd.ports.handler import ITaskContext
from taskd.worker import handler
from taskd.worker.attempt import Attempt
from taskd.worker.executors.thread_pool import Threads
from taskd.worker.forkserver.client import ForkServerClient
from taskd.worker.forkserver.output_buffer import QUEUE_BYTES
from taskd.worker.loading import load
from taskd.worker.programs import read_programs
from taskd.worker.runner import Runner
from tests.unit.running import RecordingListener, make_task

ROOT = Path(__file__).resolve().parents[2]


class Running(TestCase):
    """Tests with a real reactor."""

    timeout = 30

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.listener = RecordingListener()
        self.release = threading.Event()
        self.addCleanup(self.release.set)

    async def runner(self, *handlers: Any, size: int = 4) -> Runner:
        runner = Runner(self.reactor, handlers, threads=Threads(self.reactor, size))
        await runner.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(runner.stop()))
        # cleanups run in reverse order: release hanging handlers before the runner waits for the threads
        self.addCleanup(self.release.set)
        return runner

    def begin(self, runner: Runner, kind: str, payload: str = "{}", **more: Any) -> Attempt:
        return runner.run(make_task(kind, payload, **more), "ana", self.listener)

    async def pause(self, seconds: float) -> None:
        done: Deferred[None] = Deferred()
        self.reactor.callLater(seconds, done.callback, None)
        await done


class ThreadTests(Running):
    """Handlers that block."""

    async def test_it_runs_beside_the_reactor(self) -> None:
        @handler("k")
        def work(task: ITaskContext) -> Any:
            task.log("one")
            self.release.wait()
            task.progress(1.0, "done")
            return threading.current_thread() is threading.main_thread()

        attempt = self.begin(await self.runner(work), "k")
        while not self.listener.received:
            await self.pause(0.01)
        self.assertFalse(attempt.done.called)
        self.release.set()
        self.assertEqual((await attempt.done).result, "false")
        self.assertEqual((self.listener.received, self.listener.progresses), (["one"], [(1.0, "done")]))

    async def test_a_million_lines_do_not_block_the_reactor(self) -> None:
        @handler("k")
        def work(task: ITaskContext) -> None:
            for n in range(1_000_000):
                task.log(f"line {n}")

        ticks = []
        attempt = self.begin(await self.runner(work), "k")
        while not attempt.done.called:
            before = time.monotonic()
            await self.pause(0.01)
            ticks.append(time.monotonic() - before)
        self.assertIs((await attempt.done).state, State.COMPLETED)
        self.assertEqual(len(self.listener.received) + self.listener.dropped, 1_000_000)
        self.assertEqual(self.listener.received[-1], "line 999999")
        self.assertLess(max(ticks), 1.0)
        self.assertGreater(self.listener.times, 1)
        self.assertLess(len(self.listener.received) * 8, self.listener.times * 2 * QUEUE_BYTES)

    async def test_a_thread_that_hangs_is_shown_and_keeps_its_slot(self) -> None:
        def deeper(task: ITaskContext) -> None:
            self.release.wait()

        @handler("k", timeout=0.2)
        def hanging(task: ITaskContext) -> str:
            deeper(task)
            return "too late"

        attempt = self.begin(await self.runner(hanging), "k")
        outcome = await attempt.done
        self.assertEqual((outcome.state, outcome.error), (State.WAITING, "took longer than 0.2 s"))
        [line] = self.listener.received
        self.assertRegex(line, r"hanging\(\) at .*test_running\.py:\d+ in deeper does not return")
        self.assertIn("self.release.wait()", outcome.trace or "")
        self.assertNotIn("threadpool", outcome.trace or "")
        self.assertFalse(attempt.freed.called)
        self.release.set()
        await attempt.freed

    async def test_a_handler_that_reads_cancelled_ends(self) -> None:
        @handler("k")
        def polite(task: ITaskContext) -> None:
            while not task.cancelled:
                time.sleep(0.01)

        attempt = self.begin(await self.runner(polite), "k")
        attempt.done.addErrback(lambda _: None)
        attempt.stop()
        await attempt.freed

    async def test_a_thread_that_hangs_does_not_delay_the_stop(self) -> None:
        from taskd.worker.executors import thread_pool

        self.patch(thread_pool, "STOP_SECONDS", 0.2)

        @handler("k")
        def hanging(task: ITaskContext) -> None:
            self.release.wait()

        runner = await self.runner(hanging)
        attempt = self.begin(runner, "k")
        attempt.done.addErrback(lambda _: None)
        await self.pause(0.1)
        before = time.monotonic()
        await runner.stop()
        self.assertLess(time.monotonic() - before, 2)
        self.release.set()
        await attempt.freed

    def test_a_thread_that_hangs_does_not_delay_the_end_of_the_process(self) -> None:
        script = """
import time
from twisted.internet import reactor, defer
from taskd.worker.executors.thread_pool import Threads
import taskd.worker.executors.thread_pool
taskd.worker.executors.thread_pool.STOP_SECONDS = 0.2
threads = Threads(reactor, 1)
threads.start()
threads.call(lambda: time.sleep(60))
reactor.callLater(0.1, lambda: defer.Deferred.fromCoroutine(threads.stop()).addCallback(lambda _: reactor.stop()))
reactor.run()
"""
        before = time.monotonic()
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=20, check=True)
        self.assertLess(time.monotonic() - before, 10)

    def test_showing_where_a_thread_hangs_does_not_block_the_process(self) -> None:
        """CPython before 3.11.9 can deadlock when it lists the frames of threads and collects garbage meanwhile."""
        script = """
import gc, os, threading, time
from taskd.worker import handler
from taskd.worker.context import TaskContext
from taskd.worker.executors.entries import NO_ENTRIES
from taskd.worker.executors.thread import ThreadExecution

@handler("k")
def hanging(task):
    time.sleep(60)

def start_threads():
    while True:
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()

execution = ThreadExecution(hanging, TaskContext({"id": 1, "kind": "k"}, None), 1, NO_ENTRIES)
for target in execution.work, start_threads:
    threading.Thread(target=target, daemon=True).start()
gc.callbacks.append(lambda phase, info: time.sleep(0.001))
gc.set_threshold(1)
for _ in range(20):
    execution.place()
print(execution.place().line, gc.isenabled(), flush=True)
os._exit(0)
"""
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60, check=True, stdout=subprocess.PIPE)
        self.assertRegex(done.stdout.decode(), r"hanging\(\) at .* in hanging True")


class ChildTests(Running):
    """Handlers and programs in child processes."""

    MODULE = """
import os, time
from taskd.worker import Reject, handler

@handler("pid", isolation="process")
def pid(task):
    task.log("in " + task.kind)
    task.progress(0.5, "half")
    return {"pid": os.getpid(), "n": task.payload["n"]}

@handler("fails", isolation="process")
def fails(task):
    raise ValueError("no luck")

@handler("rejects", isolation="process")
def rejects(task):
    raise Reject("no such picture")

@handler("nan", isolation="process")
def nan(task):
    return float("nan")

@handler("hangs", isolation="process", timeout=0.3)
def hangs(task):
    time.sleep(60)
"""

    async def children(self, programs: str = "") -> Runner:
        name = f"running_handlers_{os.getpid()}"
        Path(f"{name}.py").write_text(self.MODULE)
        path = list(sys.path)
        self.addCleanup(sys.path.__setitem__, slice(None), path)
        handlers = load([name], ())
        self.addCleanup(sys.modules.pop, name)
        Path("programs.toml").write_text(programs or "[true]\npath = '/bin/true'\n")
        runner = Runner(
            self.reactor,
            handlers,
            threads=Threads(self.reactor, 2),
            forkserver=ForkServerClient(self.reactor, [name], 2),
            programs=read_programs("programs.toml"),
        )
        self.addCleanup(lambda: Deferred.fromCoroutine(runner.stop()))
        await runner.start()
        return runner

    async def outcome(self, runner: Runner, kind: str, payload: str = "{}") -> Outcome:
        attempt = self.begin(runner, kind, payload)
        outcome = await attempt.done
        await attempt.freed
        return outcome

    async def test_handlers(self) -> None:
        runner = await self.children()
        outcome = await self.outcome(runner, "pid", '{"n":5}')
        self.assertRegex(outcome.result or "", r'^\{"pid":\d+,"n":5\}$')
        self.assertNotIn(f'"pid":{os.getpid()},', outcome.result or "")
        self.assertEqual((self.listener.received, self.listener.progresses), (["in pid"], [(0.5, "half")]))
        outcome = await self.outcome(runner, "fails")
        self.assertEqual((outcome.state, outcome.error), (State.WAITING, "ValueError: no luck"))
        self.assertIn("in fails", outcome.trace or "")
        outcome = await self.outcome(runner, "rejects")
        self.assertEqual((outcome.state, outcome.error), (State.FAILED, "no such picture"))
        self.assertIn("the result cannot be stored: ", (await self.outcome(runner, "nan")).error or "")
        before = time.monotonic()
        self.assertEqual((await self.outcome(runner, "hangs")).error, "took longer than 0.3 s")
        self.assertLess(time.monotonic() - before, 5)

    async def test_programs(self) -> None:
        runner = await self.children(
            """
[echo]
path = "/bin/echo"
args = ["--", "{text}"]
[sh]
path = "/bin/sh"
args = ["-c", "echo some words; echo $HOME-$LANG; pwd; touch made; exit $1", "sh", "{status:int}"]
env = { LANG = "C" }
[sleep]
path = "/bin/sleep"
args = ["60"]
timeout = 0.3
"""
        )
        outcome = await self.outcome(runner, "command:echo", '{"text":"$(id) `id` ; id"}')
        self.assertIn('"output":"-- $(id) `id` ; id"', outcome.result or "")
        outcome = await self.outcome(runner, "command:sh", '{"status":0}')
        self.assertIs(outcome.state, State.COMPLETED)
        self.assertIn("some words", self.listener.received)
        self.assertIn("-C", self.listener.received)
        folder = self.listener.received[-1]
        for _ in range(100):
            if not os.path.exists(folder):
                break
            await self.pause(0.02)
        self.assertIn("taskd-", folder)
        self.assertFalse(os.path.exists(folder))
        outcome = await self.outcome(runner, "command:sh", '{"status":3}')
        self.assertIs(outcome.state, State.WAITING)
        self.assertIn("exited with status 3: /", outcome.error or "")
        self.assertTrue((outcome.trace or "").startswith("some words\n"))
        self.assertEqual((await self.outcome(runner, "command:sleep")).error, "took longer than 0.3 s")
