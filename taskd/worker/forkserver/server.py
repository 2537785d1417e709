"""The fork server's loop: it forks children and supervisors, carries what they say, and ends their trees.

One thread, one selector, nothing that blocks. ``tick`` looks ten times a second at what runs: that bounds how often a
task is heard, and how long a limit can be overrun.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence

import msgspec

from taskd.ports.handler import ITaskHandler
from taskd.worker.forkserver import process_tree
from taskd.worker.forkserver.child import PAGE_BYTES, Child, read_progress
from taskd.worker.forkserver.jobs import Job, Process
from taskd.worker.forkserver.messages import (
    Call,
    Died,
    Ending,
    Execute,
    Exited,
    LineBuffer,
    Lines,
    News,
    Program,
    Progress,
    Raised,
    Ready,
    Returned,
    Setup,
    Stop,
    decode_cancel_order,
    decode_ending,
    encode,
)
from taskd.worker.forkserver.supervisor import supervise

TICK = 0.1
"""Seconds between two looks at what runs."""

KILL_INTERVAL = 0.01
"""Seconds between two looks at a tree that is being ended."""

UNKILLABLE_SECONDS = 5.0
"""A process that SIGKILL has not ended by then (it hangs in a device, or is root's) is reported and left alone."""

SWEEP_SECONDS = 5.0
MAX_ORDER_BYTES = 8 * 1024 * 1024
MAX_UNSENT_BYTES = 256 * 1024
"""Output and progress wait while the worker has this much to read."""

_CHUNK = 64 * 1024


class ForkServer:
    """The fork server. ``orders`` and ``news`` are the pipes from and to the worker."""

    def __init__(self, orders: int, news: int, handlers: Mapping[str, ITaskHandler], setup: Setup) -> None:
        self._orders = orders
        self._news = news
        self._handlers = handlers
        self._setup = setup
        self._pid = os.getpid()
        self._order_lines = LineBuffer(MAX_ORDER_BYTES)
        self._unsent = bytearray()
        self._over = False
        self._to_reap = False
        self._processes: dict[int, Process] = {}
        self._idle: list[Process] = []
        self._jobs: dict[int, Process] = {}
        # what the handler modules have started while they were imported is theirs
        self._kept = frozenset(process_tree.children(self._pid))
        self._orphans: dict[int, float] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = os.pipe()
        for fd in (orders, news, self._wake, self._waker):
            os.set_blocking(fd, False)
        self._selector.register(orders, selectors.EVENT_READ, self._read_orders)
        self._selector.register(self._wake, selectors.EVENT_READ, self._woken)

    # -- the loop

    def run(self) -> None:
        """Until the worker hangs up. Then nothing of it is left."""
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        # the reaper has ended: its last word
        signal.signal(signal.SIGUSR1, self._guard_ended)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        self._send(Ready(self._pid))
        next_tick = 0.0
        while not self._over:
            for key, _ in self._selector.select(self._timeout()):
                key.data()
            # not before: it closes files that others of these calls may be about
            if self._to_reap:
                self._to_reap = False
                self._reap()
            now = time.monotonic()
            if self._is_killing():
                self._kill_tree(now)
            if now >= next_tick:
                next_tick = now + TICK
                self._tick(now)
        if not process_tree.end_all_below_me(SWEEP_SECONDS):
            report("some processes of tasks cannot be killed")

    def _timeout(self) -> float | None:
        if self._is_killing():
            return KILL_INTERVAL
        return TICK if self._jobs else None

    def _guard_ended(self, number: int, frame: object) -> None:
        self._over = True

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        self._to_reap = True

    # -- the worker

    def _read_orders(self) -> None:
        try:
            data = os.read(self._orders, _CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._over = True
        for line in self._order_lines.feed(data):
            order = decode_cancel_order(line)
            if isinstance(order, Call):
                self._call(order, line)
            elif isinstance(order, Execute):
                self._execute(order)
            elif isinstance(order, Stop):
                self._stop(order.job)

    def _send(self, message: News) -> None:
        empty = not self._unsent
        self._unsent += encode(message)
        if empty:
            self._write()
            if self._unsent:
                self._selector.register(self._news, selectors.EVENT_WRITE, self._write)

    def _write(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: os.write(self._news, self._unsent[:_CHUNK])]
        except BlockingIOError:
            return
        except OSError:
            # the worker has ended
            self._unsent.clear()
            self._over = True
        with contextlib.suppress(KeyError):
            self._selector.unregister(self._news)

    # -- beginning

    def _call(self, call: Call, line: bytes) -> None:
        job = Job(call.job, None)
        process = self._take_idle() or self._fork_child(job)
        if process is not None:
            process.job = job
            process.tasks += 1
            self._jobs[job.id] = process
            process.unsent = line + b"\n"
            self._give(process)

    def _take_idle(self) -> Process | None:
        while self._idle:
            process = self._idle.pop()
            try:
                # one that somebody has killed has hung up; it may not have been reaped yet
                process.channel.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return process
            except OSError:
                continue
        return None

    def _give(self, process: Process) -> None:
        """Hand a child its task, as fast as it takes it."""
        try:
            process.unsent = process.unsent[process.channel.send(process.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            # it has ended, which its parent is told
            process.unsent = b""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if process.unsent else 0)
        with contextlib.suppress(KeyError):
            self._selector.modify(process.channel, events, lambda: self._serve(process))

    def _serve(self, process: Process) -> None:
        if process.unsent:
            self._give(process)
        self._hear(process)

    def _execute(self, order: Execute) -> None:
        job = Job(order.job, order.program)
        process = self._fork(
            job, None, lambda channel, output: supervise(self._pid, channel, output, job.id, order.program)
        )
        if process is not None:
            process.job = job
            self._jobs[job.id] = process

    def _fork_child(self, job: Job) -> Process | None:
        page = mmap.mmap(-1, PAGE_BYTES)
        return self._fork(
            job, page, lambda channel, output: Child(self._pid, channel, output, page, self._handlers).run()
        )

    def _fork(self, job: Job, page: mmap.mmap | None, main: Callable[[socket.socket, int], None]) -> Process | None:
        """A new process that runs ``main`` and exits. None when the system has no room; then the job has ended."""
        opened: list[int] = []
        try:
            ours, theirs = (each.detach() for each in socket.socketpair())
            opened += [ours, theirs]
            source, sink = os.pipe()
            opened += [source, sink]
            pid = os.fork()
        except OSError as e:
            for fd in opened:
                os.close(fd)
            self._send(Died(job.id, f"no process could be started: {e.strerror}"))
            return None
        if not pid:
            self._become(main, socket.socket(fileno=theirs), sink, (ours, source))
        os.close(theirs)
        os.close(sink)
        os.set_blocking(source, False)
        channel = socket.socket(fileno=ours)
        channel.setblocking(False)
        process = self._processes[pid] = Process(pid, channel, source, page)
        self._selector.register(channel, selectors.EVENT_READ, lambda: self._serve(process))
        self._selector.register(source, selectors.EVENT_READ, lambda: self._listen(process))
        return process

    def _become(
        self, main: Callable[[socket.socket, int], None], channel: socket.socket, sink: int, others: Sequence[int]
    ) -> None:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
            self._selector.close()
            mine = [self._orders, self._news, self._wake, self._waker, *others]
            for process in self._processes.values():
                mine += [process.channel.detach(), process.output]
            for fd in mine:
                with contextlib.suppress(OSError):
                    os.close(fd)
            main(channel, sink)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    # -- hearing

    def _hear(self, process: Process) -> bool:
        """A child or a supervisor says how its job ended. Returns whether it said anything."""
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
                message = decode_ending(line)
                if job is None or job.ending is not None or message.job != job.id:
                    raise ValueError("an ending of no job")
                self._ended(process, job, message)
        except (ValueError, msgspec.DecodeError):
            # the task has written into our channel
            if job is not None and job.ending is None:
                job.ending = Died(job.id, "it broke its connection to the worker")
            self._end(process)
        return True

    def _ended(self, process: Process, job: Job, ending: Ending) -> None:
        job.ending = ending
        if job.program is not None:
            # what it left running is ended; in a grace it may take its time
            if job.stop_by is None:
                self._end(process)
        elif (
            isinstance(ending, Returned | Raised)
            and ending.fit
            and job.stop_by is None
            and process.ended_at is None
            and process.tasks < self._setup.max_tasks
            and process_tree.childless(process.pid)
        ):
            self._finish(process, job)
            self._idle.append(process)
        elif job.stop_by is None or process_tree.childless(process.pid):
            self._end(process)

    def _listen(self, process: Process) -> None:
        """Take what a task has printed."""
        try:
            data = os.read(process.output, _CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._selector.unregister(process.output)
            return
        job = process.job
        if job is None:
            return
        job.output.feed(data)
        if job.program is not None and job.output.total > job.program.max_output:
            self._limit(process, job, _too_much(job.program))

    def _drain(self, process: Process, job: Job) -> None:
        """What is left in the pipe, which no process of the job holds any more or can fill."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(process.output, _CHUNK):
                job.output.feed(data)

    # -- ending

    def _stop(self, id: int) -> None:
        process = self._jobs.get(id)
        job = process.job if process is not None else None
        if process is None or job is None or job.stop_by is not None or process.ended_at is not None:
            return
        job.stop_by = time.monotonic() + self._setup.grace
        job.members = process_tree.terminate(process.pid)

    def _limit(self, process: Process, job: Job, reason: str) -> None:
        if job.reason is None and job.ending is None:
            job.reason = reason
            self._end(process)

    def _end(self, process: Process) -> None:
        """Kill its tree, now and until it is gone."""
        if process in self._idle:
            self._idle.remove(process)
        if process.ended_at is None:
            process.ended_at = time.monotonic()
            if process.job is not None:
                process.job.stop_by = None
        if process.gone is None:
            process_tree.kill(process.pid)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            self._kept -= {pid}
            process = self._processes.get(pid)
            if process is not None:
                while self._hear(process):
                    pass
                process.gone = status
                if process.ended_at is None:
                    process.ended_at = time.monotonic()
                if process in self._idle:
                    self._idle.remove(process)
        # somebody may have left somebody behind
        self._kill_tree(time.monotonic())

    def _is_killing(self) -> bool:
        return bool(self._orphans) or any(p.ended_at is not None for p in self._processes.values())

    def _kill_tree(self, now: float) -> None:
        """End what is to be ended, and let go of what has ended."""
        ending = [p for p in self._processes.values() if p.ended_at is not None]
        for process in ending:
            assert process.ended_at is not None
            if process.gone is None and now > process.ended_at + UNKILLABLE_SECONDS:
                report(f"process {process.pid} of a task cannot be killed")
                self._kept |= {process.pid} | process_tree.descendants(process.pid)
                process.gone = signal.SIGKILL
            elif process.gone is None:
                process_tree.kill(process.pid)
        in_grace = self._in_grace(now)
        # the kernel's list may miss some while others end, so only the second look counts
        orphans = self._find_orphans() | self._find_orphans()
        for pid in orphans - in_grace:
            if now > self._orphans.setdefault(pid, now) + UNKILLABLE_SECONDS:
                report(f"process {pid}, left behind by a task, cannot be killed")
                self._kept |= {pid}
            process_tree.kill(pid)
        for pid in set(self._orphans) - orphans:
            del self._orphans[pid]
        left = orphans - self._kept
        for process in ending:
            job = process.job
            if process.gone is not None and not (left - in_grace) and not (job is not None and left & job.members):
                self._let_go(process)

    def _in_grace(self, now: float) -> set[int]:
        """Those that got a TERM and still have time, though the root of their tree has ended."""
        in_grace: set[int] = set()
        for process in self._processes.values():
            if process.job is not None and process.job.stop_by is not None and process.job.stop_by > now:
                in_grace |= process.job.members
        return in_grace

    def _find_orphans(self) -> set[int]:
        """Children of the fork server that it has not forked: what tasks left behind whose own process has ended."""
        return set(process_tree.children(self._pid)) - set(self._processes) - self._kept

    def _let_go(self, process: Process) -> None:
        job = process.job
        if job is not None:
            if job.ending is None:
                job.ending = self._unsaid(process, job)
            self._finish(process, job)
        for file in (process.channel, process.output):
            with contextlib.suppress(KeyError):
                self._selector.unregister(file)
        process.channel.close()
        os.close(process.output)
        if process.page is not None:
            process.page.close()
        del self._processes[process.pid]

    def _unsaid(self, process: Process, job: Job) -> Ending:
        """The ending of a job that did not say how it ended."""
        assert process.gone is not None
        if job.program is not None and (job.reason is not None or job.members):
            # ended from here, and its supervisor with it
            return Exited(job.id, None, signal.SIGKILL, time.monotonic() - job.begun)
        return Died(job.id, process_tree.how_it_ended(process.gone))

    def _finish(self, process: Process, job: Job) -> None:
        """Say the last words of a job, of which nothing runs any more."""
        self._drain(process, job)
        if job.program is not None and job.output.total > job.program.max_output and job.reason is None:
            job.reason = _too_much(job.program)
        self._say(process, job, last=True)
        ending = job.ending
        assert ending is not None
        if isinstance(ending, Exited):
            ending = msgspec.structs.replace(ending, tail=job.output.tail(), reason=job.reason)
        self._send(ending)
        process.job = None
        del self._jobs[job.id]

    # -- now and then

    def _tick(self, now: float) -> None:
        for process in list(self._jobs.values()):
            job = process.job
            if job is None:
                continue
            if len(self._unsent) < MAX_UNSENT_BYTES:
                self._say(process, job)
            if job.stop_by is not None and (
                now >= job.stop_by or (job.ending is not None and process_tree.childless(process.pid))
            ):
                self._end(process)
            elif job.program is not None and process.ended_at is None:
                self._count(process, job, job.program.processes)

    def _count(self, process: Process, job: Job, allowed: int | None) -> None:
        if allowed is not None and len(process_tree.descendants(process.pid)) > allowed:
            self._limit(process, job, f"had more than {allowed} processes")

    def _say(self, process: Process, job: Job, *, last: bool = False) -> None:
        lines, dropped = job.output.take(last=last)
        if lines or dropped:
            self._send(Lines(job.id, lines, dropped))
        if process.page is not None:
            progress = read_progress(process.page, job.id)
            if progress is not None and progress != job.progress:
                job.progress = progress
                self._send(Progress(job.id, *progress))


def _too_much(program: Program) -> str:
    return f"wrote more than {program.max_output} bytes"


def report(line: str) -> None:
    """A line for the worker's log."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
