"""The fork server: it takes orders from the worker, runs jobs in children and supervisors, and reports their output and
their end.

One thread, one selector, nothing blocks. Ten times a second a tick collects output and checks limits.
"""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping

import msgspec

from taskd.ports.handler import ITaskHandler
from taskd.worker.forkserver import process_tree
from taskd.worker.forkserver.child import Child
from taskd.worker.forkserver.jobs import JobState, Process
from taskd.worker.forkserver.killing import TreeKiller
from taskd.worker.forkserver.messages import (
    Call,
    Died,
    Execute,
    Exited,
    JobEnd,
    JobEnded,
    Lines,
    Progress,
    Ready,
    Setup,
    Stop,
    decode_job_ended,
)
from taskd.worker.forkserver.program_supervisor import supervise
from taskd.worker.forkserver.progress_memory import ProgressMemory
from taskd.worker.forkserver.spawning import fork
from taskd.worker.forkserver.worker_pipe import WorkerPipe
from taskd.worker.handler_results import Fault, Success

TICK = 0.1
"""Seconds between two collections of output and checks of limits."""

KILL_INTERVAL = 0.01
"""Seconds between two looks at a tree that is being killed."""

MAX_UNSENT_BYTES = 256 * 1024
"""Output and progress wait while the worker has this much to read."""

_CHUNK = 64 * 1024


class ForkServer:
    """Runs jobs until the worker hangs up. ``orders`` and ``events`` are the pipes from and to the worker."""

    def __init__(self, orders: int, events: int, handlers: Mapping[str, ITaskHandler], setup: Setup) -> None:
        self._handlers = handlers
        self._setup = setup
        self._over = False
        self._to_reap = False
        self._processes: dict[int, Process] = {}
        self._idle: list[Process] = []
        self._jobs: dict[int, JobState] = {}
        self._selector = selectors.DefaultSelector()
        self._killer = TreeKiller(self._processes)
        self._worker = WorkerPipe(orders, events, self._selector, self._take_orders)
        self._signals = process_tree.pipe_of_signals()
        self._selector.register(self._signals[0], selectors.EVENT_READ, self._signalled)

    # -- the loop

    def run(self) -> None:
        """Run until the worker hangs up. Then kill everything below this process."""
        self._worker.send(Ready(os.getpid()))
        next_tick = 0.0
        while not self._over and not self._worker.closed:
            for key, _ in self._selector.select(self._timeout()):
                key.data()
            # only now: it closes files that other callbacks of this round may use
            if self._to_reap:
                self._to_reap = False
                self._reap()
            now = time.monotonic()
            if self._killer.is_killing:
                self._kill(now)
            if now >= next_tick:
                next_tick = now + TICK
                self._tick(now)
        process_tree.end_all_below_me()

    def _timeout(self) -> float | None:
        if self._killer.is_killing:
            return KILL_INTERVAL
        return TICK if self._jobs else None

    def _signalled(self) -> None:
        # the kernel sends SIGUSR1 when the reaper ends
        self._over = signal.SIGUSR1 in os.read(self._signals[0], 4096)
        self._to_reap = True

    # -- orders of the worker

    def _take_orders(self) -> None:
        for order, line in self._worker.read():
            if isinstance(order, Call):
                self._call(order, line)
            elif isinstance(order, Execute):
                self._execute(order)
            elif isinstance(order, Stop):
                self._stop(order.job)

    def _call(self, call: Call, line: bytes) -> None:
        job = JobState(call.job, None)
        process = self._take_idle() or self._fork_child(job)
        if process is not None:
            self._assign(process, job)
            process.tasks += 1
            process.unsent = line + b"\n"
            self._send_order(process)

    def _execute(self, order: Execute) -> None:
        job = JobState(order.job, order.program)

        def main(channel: socket.socket, output: int) -> None:
            supervise(channel, output, job.id, order.program)

        process = self._fork(job, None, main)
        if process is not None:
            self._assign(process, job)

    def _assign(self, process: Process, job: JobState) -> None:
        process.job, job.process = job, process
        self._jobs[job.id] = job

    def _stop(self, id: int) -> None:
        job = self._jobs.get(id)
        if job is not None and job.stop_by is None and job.process.ending_since is None:
            job.stop_by = time.monotonic() + self._setup.grace
            job.members = process_tree.terminate(job.process.pid)

    # -- children and supervisors

    def _take_idle(self) -> Process | None:
        while self._idle:
            process = self._idle.pop()
            if process.is_connected():
                return process
        return None

    def _fork_child(self, job: JobState) -> Process | None:
        page = ProgressMemory()

        def main(channel: socket.socket, output: int) -> None:
            Child(channel, output, page, self._handlers).run()

        return self._fork(job, page, main)

    def _fork(
        self, job: JobState, page: ProgressMemory | None, main: Callable[[socket.socket, int], None]
    ) -> Process | None:
        """A new process. None if the system has no room for it: then the job has ended."""
        try:
            process = fork(page, main, self._close_files)
        except OSError as e:
            self._worker.send(JobEnded(job.id, Died(f"no process could be started: {e.strerror}")))
            return None
        self._processes[process.pid] = process
        self._selector.register(process.channel, selectors.EVENT_READ, functools.partial(self._serve, process))
        self._selector.register(process.output, selectors.EVENT_READ, functools.partial(self._take_output, process))
        return process

    def _close_files(self) -> None:
        """Close everything that a new process must not keep open."""
        self._selector.close()
        fds = [*self._worker.fds, *self._signals]
        for process in self._processes.values():
            # a socket object must not close a file that gets its number later
            fds += [process.channel.detach(), process.output]
        for fd in fds:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _serve(self, process: Process) -> None:
        if process.unsent:
            self._send_order(process)
        self._receive(process)

    def _send_order(self, process: Process) -> None:
        """Send a child its task, as fast as it reads."""
        process.send()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if process.unsent else 0)
        with contextlib.suppress(KeyError):
            self._selector.modify(process.channel, events, functools.partial(self._serve, process))

    def _receive(self, process: Process) -> bool:
        """A child or a supervisor reports how its job ended. Returns whether it sent anything."""
        try:
            data = process.channel.recv(_CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            with contextlib.suppress(KeyError):
                self._selector.unregister(process.channel)
            return False
        job = process.job
        try:
            for line in process.lines.feed(data):
                message = decode_job_ended(line)
                if job is None or job.end is not None or message.job != job.id:
                    raise ValueError("no such job")
                self._job_ended(job, message)
        except (ValueError, msgspec.DecodeError):
            # the task wrote into our channel
            if job is not None and job.end is None:
                job.end = Died("it broke its connection to the worker")
            self._begin_kill(process)
        return True

    def _job_ended(self, job: JobState, message: JobEnded) -> None:
        process, job.end = job.process, message.end
        if job.program is not None:
            # kill what it left running, which keeps its time if it is in its grace
            if job.stop_by is None:
                self._begin_kill(process)
        elif (
            isinstance(message.end, Success | Fault)
            and message.fit
            and job.stop_by is None
            and process.ending_since is None
            and process.tasks < self._setup.max_tasks
            and process_tree.childless(process.pid)
        ):
            self._finish(job)
            self._idle.append(process)
        elif job.stop_by is None or process_tree.childless(process.pid):
            self._begin_kill(process)

    def _take_output(self, process: Process) -> None:
        if not process.read_output():
            self._selector.unregister(process.output)
        elif (job := process.job) is not None and (reason := job.exceeded_output()) is not None:
            self._limit(job, reason)

    # -- the end of processes

    def _limit(self, job: JobState, reason: str) -> None:
        if job.reason is None and job.end is None:
            job.reason = reason
            self._begin_kill(job.process)

    def _begin_kill(self, process: Process) -> None:
        if process in self._idle:
            self._idle.remove(process)
        self._killer.begin(process)

    def _reap(self) -> None:
        for process, status in self._killer.reap():
            while self._receive(process):
                pass
            process.status = status
            if process.ending_since is None:
                process.ending_since = time.monotonic()
            if process in self._idle:
                self._idle.remove(process)
        # a process that has ended may leave orphans
        self._kill(time.monotonic())

    def _kill(self, now: float) -> None:
        for process in self._killer.kill(now):
            self._let_go(process)

    def _let_go(self, process: Process) -> None:
        job = process.job
        if job is not None:
            if job.end is None:
                job.end = self._end_without_message(job)
            self._finish(job)
        for file in (process.channel, process.output):
            with contextlib.suppress(KeyError):
                self._selector.unregister(file)
        process.close()
        del self._processes[process.pid]

    def _end_without_message(self, job: JobState) -> JobEnd:
        assert job.process.status is not None
        if job.program is not None and (job.reason is not None or job.members):
            # killed by this process, together with its supervisor
            return Exited(None, signal.SIGKILL, time.monotonic() - job.begun)
        return Died(process_tree.how_it_ended(job.process.status))

    def _finish(self, job: JobState) -> None:
        """Report the last output and the end of a job of which nothing runs any more."""
        job.drain_output()
        if job.reason is None:
            job.reason = job.exceeded_output()
        self._report_output(job, last=True)
        end = job.end
        assert end is not None
        if isinstance(end, Exited):
            end = msgspec.structs.replace(end, tail=job.output.tail(), reason=job.reason)
        self._worker.send(JobEnded(job.id, end))
        job.process.job = None
        del self._jobs[job.id]

    # -- every tick

    def _tick(self, now: float) -> None:
        for job in list(self._jobs.values()):
            process, program = job.process, job.program
            if len(self._worker.unsent) < MAX_UNSENT_BYTES:
                self._report_output(job)
            if job.stop_by is not None and (
                now >= job.stop_by or (job.end is not None and process_tree.childless(process.pid))
            ):
                self._begin_kill(process)
            elif (
                program is not None
                and program.processes is not None
                and process.ending_since is None
                and len(process_tree.descendants(process.pid)) > program.processes
            ):
                self._limit(job, f"had more than {program.processes} processes")

    def _report_output(self, job: JobState, *, last: bool = False) -> None:
        lines, dropped = job.output.take(last=last)
        if lines or dropped:
            self._worker.send(Lines(job.id, lines, dropped))
        if job.process.page is not None:
            progress = job.process.page.read(job.id)
            if progress is not None and progress != job.progress:
                job.progress = progress
                self._worker.send(Progress(job.id, *progress))
