"""Tasks in child processes: the real fork server, real children, real programs. docs/processes.md describes what must
hold."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import LoopingCall, deferLater
from twisted.trial.unittest import TestCase

from taskd.model.errors import SettingsError
from taskd.worker.forkserver import process_tree
from taskd.worker.forkserver.client import ForkServerClient, Job
from taskd.worker.forkserver.messages import Died, Exited, JobEnd, Program
from taskd.worker.handler_results import Fault, Success

ROOT = Path(__file__).resolve().parents[2]
HANDLERS = "tests.integration.process_handlers"
MARK = "TASKD_TEST_OF_PROCESSES"

reactor: Any = _reactor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are kept in sight on Linux only")


class OutputRecorder:
    """Records the output of a job."""

    def __init__(self) -> None:
        self.progresses: list[tuple[float, str]] = []
        self.text: list[str] = []
        self.batches: list[int] = []
        self.dropped = 0
        self._waiting: list[tuple[str, Deferred[None]]] = []

    def progress(self, fraction: float, note: str) -> None:
        self.progresses.append((fraction, note))

    def lines(self, lines: Sequence[str], dropped: int) -> None:
        self.text += lines
        self.dropped += dropped
        self.batches.append(sum(len(line) + 1 for line in lines))
        for line, waiting in self._waiting:
            if line in lines and not waiting.called:
                waiting.callback(None)

    async def line(self, line: str) -> None:
        """Wait for a line."""
        if line not in self.text:
            waiting: Deferred[None] = Deferred()
            self._waiting.append((line, waiting))
            await waiting.addTimeout(10, reactor)


def marked(mark: str) -> set[int]:
    """The processes whose environment has the mark: all that one fork server started. The fork server and its forks
    hide theirs from everybody but root; they have the mark in their command line. Zombies have neither."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        for file in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                if mark.encode() in Path(f"/proc/{name}/{file}").read_bytes():
                    found.add(int(name))
    return found


class Case(TestCase):
    """Each test has its own fork server. No process of it may be left at the end."""

    timeout = 40
    size = 2
    grace = 0.3
    max_tasks = 1000

    async def setUp(self) -> None:  # type: ignore[override]
        self.mark = str(uuid.uuid4())
        self.patch(os, "environ", os.environ)
        os.environ[MARK] = self.mark
        self.addCleanup(os.environ.pop, MARK)
        # the fork server gets it as an argument
        self.patch(sys, "path", [*sys.path, f"/{self.mark}"])
        self.forkserver = ForkServerClient(reactor, [HANDLERS], self.size, grace=self.grace, max_tasks=self.max_tasks)
        self.addCleanup(self._nothing_is_left)
        await self.forkserver.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.forkserver.stop()))

    def _nothing_is_left(self) -> None:
        self.assertEqual(marked(self.mark), set())

    def call(self, kind: str, payload: Mapping[str, Any] | None = None, output: OutputRecorder | None = None) -> Job:
        """Begin the handler of a kind."""
        context = {
            "id": 7,
            "attempt": 2,
            "max_attempts": 3,
            "user": "ana",
            "task": "text",
            "kind": kind,
            "queue": "q",
            "payload": payload or {},
        }
        return self.forkserver.call(kind, context, output or OutputRecorder())

    async def run_kind(self, kind: str, what: str = "") -> JobEnd:
        """How its job ends."""
        return await self.call(kind, {"what": what}).done

    async def value(self, kind: str, what: str = "") -> Any:
        """What it returns."""
        ending = await self.run_kind(kind, what)
        assert isinstance(ending, Success), ending
        return msgspec.json.decode(ending.result)

    def sh(self, script: str, output: OutputRecorder | None = None, **limits: Any) -> Job:
        """Begin a shell script."""
        return self.program(["/bin/sh", "-c", script], output, **limits)

    def program(self, argv: Sequence[str], output: OutputRecorder | None = None, **fields: Any) -> Job:
        """Begin a program."""
        found = {"cwd": "/", "env": {MARK: self.mark, "PATH": "/usr/bin:/bin"}, "memory": None, "processes": None}
        return self.forkserver.execute(
            Program(argv, **{**found, "max_output": 2**20, **fields}), output or OutputRecorder()
        )

    def reaper(self) -> int:
        """The pid of the reaper."""
        assert self.forkserver.pid is not None
        return psutil.Process(self.forkserver.pid).ppid()

    def children(self) -> set[int]:
        """The pids of the fork server's own children."""
        assert self.forkserver.pid is not None
        return {child.pid for child in psutil.Process(self.forkserver.pid).children()}

    async def until(self, true: Callable[[], object], seconds: float = 10.0) -> None:
        """Wait until the condition is true."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, "not in time"
            await deferLater(reactor, 0.01)

    def assert_gone(self, pids: Iterable[int]) -> None:
        """None of them exists."""
        self.assertEqual([pid for pid in pids if psutil.pid_exists(pid)], [])


class Calls(Case):
    """Handlers in children."""

    async def test_a_child_is_reused(self) -> None:
        pids = {await self.value("pid") for _ in range(20)}
        self.assertEqual(len(pids), 1)
        self.assertEqual(pids, self.children())

    async def test_a_task_that_does_nothing_costs_milliseconds(self) -> None:
        """Printed, not asserted: the machine may be busy."""
        await self.value("pid")
        costs = []
        for _ in range(500):
            begun = time.perf_counter()
            await self.value("pid")
            costs.append(1000 * (time.perf_counter() - begun))
        slow = statistics.quantiles(costs, n=100)[98]
        print(f"\na no-op task in a child: p50 {statistics.median(costs):.2f} ms, p99 {slow:.2f} ms")

    async def test_the_handler_sees_its_task(self) -> None:
        ending = await self.call("echo", {"a": [1, "ñ"]}).done
        assert isinstance(ending, Success)
        self.assertEqual(msgspec.json.decode(ending.result), [7, 2, 3, "ana", "text", "echo", "q", {"a": [1, "ñ"]}])

    async def test_a_payload_larger_than_a_socket_buffer_arrives(self) -> None:
        ending = await self.call("echo", {"a": "x" * 3_000_000}).done
        assert isinstance(ending, Fault)
        self.assertIn("at most 262144 bytes", ending.error)

    async def test_output_arrives_in_order(self) -> None:
        output = OutputRecorder()
        ending = await self.call("talk", output=output).done
        self.assertEqual(ending, Success("false"))
        self.assertEqual(
            output.text,
            ["printed", "logged", "in two lines", "to stderr", "[31mbin\ufffdary\ttab", "100%", "no end"],
        )
        self.assertEqual(output.progresses, [(0.5, "half way"), (1.0, "")])

    async def test_the_newest_progress_counts_however_many_there_are(self) -> None:
        output = OutputRecorder()
        await self.call("flood", output=output).done
        self.assertEqual(output.progresses[-1], (1.0, "over"))
        self.assertLess(len(output.progresses), 200)

    async def test_exceptions_are_reported(self) -> None:
        wrong = await self.run_kind("raise", "ValueError")
        assert isinstance(wrong, Fault)
        self.assertEqual(msgspec.structs.replace(wrong, trace=None), Fault("ValueError: no such thing"))
        self.assertIn("raise {\n", wrong.trace or "")
        self.assertNotIn("forkserver", wrong.trace or "")
        self.assertEqual(await self.run_kind("raise", "Retry"), Fault("later", after=7.0))
        self.assertEqual(await self.run_kind("raise", "Reject"), Fault("never", final=True))
        for what in ("KeyboardInterrupt", "MemoryError", "SystemExit"):
            ending = await self.run_kind("raise", what)
            assert isinstance(ending, Fault)
            self.assertEqual((ending.error.partition(":")[0], ending.after, ending.final), (what, None, False))
        self.assertEqual(len(self.children()), 1)

    async def test_a_result_that_cannot_be_stored_is_an_error(self) -> None:
        for what, why in {
            "object": "cannot be written as JSON",
            "NaN": "NaN",
            "NUL": "the NUL character",
            "large": "at most 262144 bytes",
            "deep": "not be nested more than",
        }.items():
            ending = await self.run_kind("return", what)
            assert isinstance(ending, Fault), (what, ending)
            self.assertIn(why, ending.error)
            self.assertTrue(ending.error.startswith("the result cannot be stored: "), ending.error)
        self.assertEqual(len(await self.value("return", "largest")), 256 * 1024 - 2)

    async def test_an_unknown_kind_is_an_error(self) -> None:
        ending = await self.run_kind("nothing")
        assert isinstance(ending, Fault)
        self.assertIn("'nothing'", ending.error)

    async def test_a_child_that_dies_ends_no_other_task(self) -> None:
        hanging, output = self.call("hang", output=(hanging_output := OutputRecorder())), OutputRecorder()
        await hanging_output.line("hanging")
        self.assertEqual(await self.run_kind("misbehave", "exit"), Died("exited with status 3"))
        self.assertEqual(await self.run_kind("misbehave", "exit 0"), Died("exited with status 0"))
        self.assertEqual(await self.run_kind("misbehave", "kill"), Died("killed by SIGKILL"))
        self.assertEqual(await self.call("misbehave", {"what": "crash"}, output).done, Died("killed by SIGSEGV"))
        self.assertTrue(any("process_handlers.py" in line for line in output.text), output.text)
        self.assertIsInstance(await self.value("pid"), int)
        self.assertFalse(hanging.done.called)

    async def test_a_task_that_damages_its_process_ends_no_other_task(self) -> None:
        hanging = self.call("hang", output=(hanging_output := OutputRecorder()))
        await hanging_output.line("hanging")
        self.assertIsInstance(await self.run_kind("misbehave", "close"), Died)
        self.assertEqual(await self.run_kind("misbehave", "write"), Died("it broke its connection to the worker"))
        for what in ("close output", "thread"):
            spoiled = await self.value("misbehave", what)
            self.assertNotEqual(await self.value("pid"), spoiled)
            self.assert_gone([spoiled])
        self.assertFalse(hanging.done.called)

    async def test_what_a_task_changes_is_restored(self) -> None:
        first = await self.value("misbehave", "alarm")
        await deferLater(reactor, 1.1)
        self.assertEqual(await self.value("pid"), first)
        # TERM has its default effect again
        job = self.call("hang", output=(hanging_output := OutputRecorder()))
        await hanging_output.line("hanging")
        job.stop()
        self.assertEqual(await job.done, Died("killed by SIGTERM"))

    async def test_a_copy_of_the_handler_does_not_answer_twice(self) -> None:
        self.assertIsInstance(await self.value("misbehave", "fork"), int)
        self.assertIsInstance(await self.value("pid"), int)

    async def test_nothing_outlives_its_task(self) -> None:
        left = await self.value("leave")
        self.assert_gone(left)

    async def test_more_calls_than_children_wait(self) -> None:
        jobs = [self.call("spin", {"seconds": 0.05}) for _ in range(6)]
        jobs[4].stop()
        self.assertEqual(await jobs[4].done, Died("stopped before it began"))
        spans = []
        for job in jobs[:4] + jobs[5:]:
            ending = await job.done
            assert isinstance(ending, Success)
            spans.append(msgspec.json.decode(ending.result))
        for at, _ in spans:
            self.assertLessEqual(sum(began <= at < ended for began, ended in spans), self.size)
        self.assertLessEqual(len(self.children()), self.size)

    async def test_computing_uses_both_cores_and_does_not_block_the_reactor(self) -> None:
        ticks: list[float] = []
        ticking = LoopingCall(lambda: ticks.append(time.monotonic()))
        ticking.clock = reactor
        ticking.start(0.02)
        jobs = [self.call("spin", {"seconds": 1.0}) for _ in range(2)]
        spans = [
            msgspec.json.decode(ending.result)
            for ending in [await job.done for job in jobs]
            if isinstance(ending, Success)
        ]
        ticking.stop()
        (began_1, ended_1), (began_2, ended_2) = spans
        self.assertGreater(min(ended_1, ended_2) - max(began_1, began_2), 0.5, "one after the other")
        gaps = [after - before for before, after in itertools.pairwise(ticks)]
        print(f"\nlongest pause of the reactor beside two busy children: {1000 * max(gaps):.0f} ms")
        self.assertLess(max(gaps), 0.5)

    async def test_100_mib_of_output_leave_the_memory_small(self) -> None:
        output = OutputRecorder()
        assert self.forkserver.pid is not None
        both = [psutil.Process(), psutil.Process(self.forkserver.pid)]
        before = [process.memory_info().rss for process in both]
        begun = time.monotonic()
        ending = await self.call("print", output=output).done
        seconds = time.monotonic() - begun
        grown = [(process.memory_info().rss - was) / 2**20 for process, was in zip(both, before, strict=True)]
        print(f"\n100 MiB printed: {seconds:.1f} s, worker +{grown[0]:.1f} MiB, fork server +{grown[1]:.1f} MiB")
        self.assertEqual(ending, Success("null"))
        self.assertEqual(output.text[-1], "the end")
        self.assertEqual(len(output.text) + output.dropped, 100 * 1024 + 1)
        self.assertLessEqual(max(output.batches), 256 * 1024 + 1024)
        self.assertLess(max(grown), 16)
        self.assertLess(seconds, 20)


class FewTasks(Case):
    """Children that are replaced."""

    max_tasks = 3

    async def test_a_child_is_replaced_after_max_tasks(self) -> None:
        pids = [await self.value("pid") for _ in range(7)]
        self.assertEqual([len(list(same)) for _, same in itertools.groupby(pids)], [3, 3, 1])
        self.assert_gone(set(pids[:6]))


class Stopping(Case):
    """Stopping jobs."""

    async def test_term_ends_an_ordinary_handler_at_once(self) -> None:
        job = self.call("hang", output=(output := OutputRecorder()))
        await output.line("hanging")
        begun = time.monotonic()
        job.stop()
        job.stop()
        self.assertEqual(await job.done, Died("killed by SIGTERM"))
        self.assertLess(time.monotonic() - begun, self.grace)

    async def test_a_handler_that_reads_cancelled_may_clean_up(self) -> None:
        job = self.call("cooperate", output=(output := OutputRecorder()))
        await output.line("listening")
        job.stop()
        self.assertEqual(await job.done, Success('"cleaned up"'))

    async def test_kill_ends_the_whole_tree_of_one_that_ignores_term(self) -> None:
        job = self.call("defy", output=(output := OutputRecorder()))
        await output.line("defying")
        [child] = self.children()
        tree = process_tree.descendants(child)
        self.assertGreaterEqual(len(tree), 4)
        begun = time.monotonic()
        job.stop()
        self.assertEqual(await job.done, Died("killed by SIGKILL"))
        self.assertGreaterEqual(time.monotonic() - begun, self.grace)
        self.assertLess(time.monotonic() - begun, self.grace + 2)
        self.assert_gone({child} | tree)

    async def test_a_task_that_has_just_begun_can_be_stopped(self) -> None:
        jobs = [self.call("hang"), self.sh("sleep 600")]
        for job in jobs:
            job.stop()
        begun = time.monotonic()
        await DeferredList([job.done for job in jobs])
        self.assertLess(time.monotonic() - begun, 2)

    async def test_a_program_has_its_grace(self) -> None:
        job = self.sh(
            "trap 'sleep 0.1; echo bye; exit 5' TERM; echo up; while :; do sleep 0.01; done", output := OutputRecorder()
        )
        await output.line("up")
        job.stop()
        ending = await job.done
        assert isinstance(ending, Exited)
        self.assertEqual((ending.status, ending.reason, ending.tail[-1]), (5, None, "bye"))

    async def test_a_program_that_ignores_term_is_killed_with_its_tree(self) -> None:
        job = self.sh(
            "trap '' TERM; (setsid sh -c 'sleep 600 & sleep 600' &); echo up; sleep 600; sleep 600",
            s := OutputRecorder(),
        )
        await s.line("up")
        job.stop()
        ending = await job.done
        assert isinstance(ending, Exited)
        self.assertEqual((ending.status, ending.signal), (None, signal.SIGKILL))
        self.assertEqual(marked(self.mark), {self.reaper(), self.forkserver.pid})

    async def test_stopping_the_fork_server_ends_all_jobs(self) -> None:
        jobs = [
            self.call("defy", output=(output := OutputRecorder())),
            self.call("hang"),
            self.call("hang"),
            self.sh("sleep 600"),
        ]
        await output.line("defying")
        begun = time.monotonic()
        await self.forkserver.stop()
        self.assertLess(time.monotonic() - begun, 3)
        for job in jobs:
            self.assertIsInstance(await job.done, Died)
        self.assertIsInstance(await self.call("pid").done, Died)
        self.assertEqual(marked(self.mark), set())


class Programs(Case):
    """Programs."""

    async def test_status_tail_and_output(self) -> None:
        output = OutputRecorder()
        ending = await self.sh("for i in 1 2 3; do echo line $i; done; echo wrong >&2; exit 3", output).done
        assert isinstance(ending, Exited)
        self.assertEqual(
            msgspec.structs.replace(ending, seconds=0), Exited(3, None, 0, ["line 1", "line 2", "line 3", "wrong"])
        )
        self.assertLess(ending.seconds, 5)
        self.assertEqual(output.text, ending.tail)

    async def test_a_signal_is_reported(self) -> None:
        ending = await self.sh("kill -USR1 $$").done
        assert isinstance(ending, Exited)
        self.assertEqual((ending.status, ending.signal), (None, signal.SIGUSR1))

    async def test_environment_folder_stdin_and_files_are_what_was_asked_for(self) -> None:
        output = OutputRecorder()
        env = {MARK: self.mark, "A": "b c"}
        await self.program(["/usr/bin/env"], output, env=env).done
        self.assertEqual(sorted(output.text), sorted(f"{k}={v}" for k, v in env.items()))
        output = OutputRecorder()
        await self.sh("pwd; cat; echo; ls /proc/self/fd | tr '\\n' ' '; ulimit -c; nice", output, cwd="/tmp").done
        # ls itself has opened the fourth file
        self.assertEqual(output.text, ["/tmp", "", "0 1 2 3 0", str(os.nice(0) + 5)])

    async def test_one_that_cannot_start_says_why(self) -> None:
        self.assertEqual(
            await self.program(["/no/such"]).done, Died("cannot start '/no/such': No such file or directory")
        )
        ending = await self.program(["/bin/true"], cwd="/no/such").done
        self.assertEqual(ending, Died("cannot start '/bin/true' in the folder '/no/such': No such file or directory"))

    async def test_memory_is_limited(self) -> None:
        allocate = "x = bytearray(500 * 2**20); print(len(x))"
        ending = await self.program([sys.executable, "-c", allocate], memory=200 * 2**20).done
        assert isinstance(ending, Exited)
        self.assertEqual(ending.status, 1)
        self.assertIn("MemoryError", ending.tail)

    async def test_output_is_limited(self) -> None:
        output = OutputRecorder()
        ending = await self.sh("yes", output, max_output=1_000_000).done
        assert isinstance(ending, Exited)
        self.assertEqual(ending.reason, "wrote more than 1000000 bytes")
        # even if it ends before the limit is checked
        ending = await self.sh("head -c 5000 /dev/zero", max_output=4999).done
        assert isinstance(ending, Exited)
        self.assertEqual(ending.reason, "wrote more than 4999 bytes")

    async def test_the_number_of_processes_is_limited(self) -> None:
        ending = await self.sh("while :; do sleep 600 & done", processes=20).done
        assert isinstance(ending, Exited)
        self.assertEqual(ending.reason, "had more than 20 processes")
        ending = await self.sh("sleep 0.3 & sleep 0.3; wait", processes=3).done
        assert isinstance(ending, Exited)
        self.assertEqual((ending.status, ending.reason), (0, None))

    async def test_what_it_leaves_behind_is_ended(self) -> None:
        output = OutputRecorder()
        ending = await self.sh(
            "(setsid sh -c 'trap \"\" TERM; sleep 600; sleep 600' &); sleep 600 & exit 0", output
        ).done
        assert isinstance(ending, Exited)
        self.assertEqual(ending.status, 0)
        self.assertEqual(marked(self.mark), {self.reaper(), self.forkserver.pid})

    async def test_programs_do_not_wait_for_children(self) -> None:
        busy = [self.call("hang") for _ in range(self.size + 1)]
        endings = [await job.done for job in [self.sh("exit 0") for _ in range(10)]]
        self.assertEqual([e.status for e in endings if isinstance(e, Exited)], [0] * 10)
        self.assertFalse(any(job.done.called for job in busy))

    async def test_a_program_ends_with_its_killed_supervisor(self) -> None:
        job = self.sh("(setsid sleep 600 &); echo up; sleep 600; sleep 600", output := OutputRecorder())
        await output.line("up")
        [supervisor] = self.children()
        os.kill(supervisor, signal.SIGKILL)
        self.assertEqual(await job.done, Died("killed by SIGKILL"))
        self.assertEqual(marked(self.mark), {self.reaper(), self.forkserver.pid})


class Killed(Case):
    """kill -9 of the processes between the worker and its tasks."""

    async def _busy(self) -> tuple[set[int], list[Job]]:
        output = OutputRecorder(), OutputRecorder()
        jobs = [
            self.call("defy", output=output[0]),
            self.sh("trap '' TERM; (setsid sleep 600 &); echo up; sleep 600; sleep 600", output[1]),
        ]
        await output[0].line("defying")
        await output[1].line("up")
        return marked(self.mark), jobs

    async def _works_again(self, before: set[int], jobs: Sequence[Job]) -> None:
        for job in jobs:
            self.assertEqual(await job.done, Died("the fork server ended"))
        # a fork server whose reaper was killed ends a moment after its last message
        await self.until(lambda: not any(_runs(pid) for pid in before), 0.5)
        self.assertIsInstance(await self.value("pid"), int)

    async def test_the_fork_server(self) -> None:
        before, jobs = await self._busy()
        assert self.forkserver.pid is not None
        os.kill(self.forkserver.pid, signal.SIGKILL)
        await self._works_again(before, jobs)

    async def test_the_reaper(self) -> None:
        before, jobs = await self._busy()
        os.kill(self.reaper(), signal.SIGKILL)
        await self._works_again(before, jobs)

    async def test_a_fork_server_that_hangs_is_ended_by_its_reaper(self) -> None:
        before, jobs = await self._busy()
        assert self.forkserver.pid is not None
        os.kill(self.forkserver.pid, signal.SIGSTOP)
        begun = time.monotonic()
        await self.forkserver.stop()
        self.assertLess(time.monotonic() - begun, 15)
        for job in jobs:
            self.assertEqual(await job.done, Died("the fork server ended"))
        self.assert_gone(before)

    async def test_jobs_that_wait_begin_in_the_next_fork_server(self) -> None:
        hanging = [self.call("hang") for _ in range(self.size)]
        waiting = self.call("pid")
        assert self.forkserver.pid is not None
        os.kill(self.forkserver.pid, signal.SIGKILL)
        self.assertIsInstance(await waiting.done, Success)
        for job in hanging:
            self.assertEqual(await job.done, Died("the fork server ended"))

    async def test_an_idle_child(self) -> None:
        first = await self.value("pid")
        os.kill(first, signal.SIGKILL)
        await self.until(lambda: not _runs(first))
        self.assertNotEqual(await self.value("pid"), first)

    async def test_the_worker(self) -> None:
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.process_worker"], cwd=ROOT, stdout=subprocess.PIPE
        )
        self.addCleanup(worker.wait)
        self.addCleanup(worker.kill)
        assert worker.stdout is not None
        self.addCleanup(worker.stdout.close)
        self.assertEqual(worker.stdout.readline(), b"running\n")
        tree = process_tree.descendants(worker.pid)
        self.assertGreaterEqual(len(tree), 10)
        begun = time.monotonic()
        worker.kill()
        await self.until(lambda: not any(_runs(pid) for pid in tree), 5)
        print(f"\n{len(tree)} processes ended {1000 * (time.monotonic() - begun):.0f} ms after kill -9 of their worker")
        self.assertEqual(marked(self.mark), {self.reaper(), self.forkserver.pid})


def _runs(pid: int) -> bool:
    """Whether a process runs. A zombie does not: init may reap an adopted process late."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Starting(TestCase):
    """Fork servers that cannot start, and systems without lists of children."""

    timeout = 20

    async def _why(self, source: str) -> str:
        name = f"broken_{uuid.uuid4().hex}"
        folder = Path(self.mktemp())
        folder.mkdir()
        (folder / f"{name}.py").write_text(source)
        self.patch(sys, "path", [*sys.path, str(folder.resolve())])
        forkserver = ForkServerClient(reactor, [name], 1)
        self.addCleanup(lambda: Deferred.fromCoroutine(forkserver.stop()))
        with self.assertRaises(SettingsError) as caught:
            await forkserver.start()
        self.assertNotIn("\n", str(caught.exception))
        return str(caught.exception).replace(name, "NAME")

    async def test_a_module_that_cannot_be_imported_is_named(self) -> None:
        why = await self._why("\nimport no_such_module")
        self.assertTrue(why.startswith("handlers 'NAME': ModuleNotFoundError: No module"), why)
        self.assertTrue(why.endswith("NAME.py:2)"), why)
        self.assertIn("'NAME': SyntaxError: ", await self._why("def"))
        self.assertIn("handlers 'NAME': SystemExit: 3", await self._why("exit(3)"))

    async def test_a_module_that_ends_the_process_is_noticed(self) -> None:
        self.assertIn("before it was ready", await self._why("import os; os._exit(3)"))

    def test_without_lists_of_children_the_processes_are_searched(self) -> None:
        child = subprocess.Popen(["sleep", "600"])
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        self.patch(process_tree, "_lists_children", False)
        self.assertIn(child.pid, process_tree.children(os.getpid()))
        self.assertIn(child.pid, process_tree.descendants(os.getppid()))
