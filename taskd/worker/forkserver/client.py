"""Jobs in child processes, as the worker sees them. The client of the fork server starts it again when it dies.

docs/processes.md describes the processes."""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IProcessTransport
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.model.backoff import Backoff
from taskd.model.errors import SettingsError
from taskd.worker.context import OutputListener
from taskd.worker.forkserver.messages import (
    Call,
    Died,
    Event,
    Execute,
    ImportFailed,
    JobEnd,
    LineBuffer,
    Lines,
    Order,
    Program,
    Progress,
    Ready,
    Setup,
    Stop,
    decode_event,
    encode,
)
from taskd.worker.forkserver.output_buffer import OutputBuffer

MAX_EVENT_BYTES = 8 * 1024 * 1024

RESTART = Backoff(first=0.1, factor=2, longest=10, jitter=0)
HEALTHY_SECONDS = 30.0
"""A fork server that lived so long had not failed to start: the next one starts after the first backoff."""

PATIENCE = 15.0
"""Seconds beyond the grace that a fork server may take to stop a job. Then it hangs, and is replaced. The reaper needs
less time to end a fork server that hangs and everything below it."""

PIPE_CLOSE_SECONDS = 10.0
"""Seconds between the end of the reaper and closing pipes that some process still holds open."""

FORK_SERVER_ENDED = "the fork server ended"
WORKER_STOPS = "the worker stops"


class Job:
    """One task in a process. ``done`` fires when nothing of it runs any more, after :meth:`stop` as well."""

    def __init__(self, forkserver: ForkServerClient, order: Call | Execute, listener: OutputListener) -> None:
        self.done: Deferred[JobEnd] = Deferred()
        self.order = order
        self.listener = listener
        self.stopping: IDelayedCall | None = None
        self._forkserver = forkserver

    def stop(self) -> None:
        """Send TERM to all of its processes, and KILL after the grace. No effect if it has ended or was stopped
        already."""
        self._forkserver.stop_job(self)

    def finish(self, end: JobEnd) -> None:
        """It has ended. Called by its ForkServerClient."""
        if self.stopping is not None and self.stopping.active():
            self.stopping.cancel()
        self.done.callback(end)


class ForkServerClient:
    """Runs process handlers and programs in processes of their own.

    The fork server imports ``modules``. ``size`` children run handlers at a time; each is replaced after ``max_tasks``
    tasks. ``grace`` is the time between TERM and KILL in seconds. Call it in the reactor's thread only.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, modules: Sequence[str], size: int, *, grace: float = 5.0, max_tasks: int = 1000
    ) -> None:
        self._reactor = reactor
        self._setup = Setup(modules, [str(path) for path in sys.path], grace, max_tasks)
        self._size = size
        self._process: _ForkServerProcess | None = None
        self._started: Deferred[None] = Deferred()
        self._stopped = False
        self._restart: IDelayedCall | None = None
        self._failures = 0
        self._ready_at = 0.0
        self._ids = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._queue: list[Job] = []
        self.pid: int | None = None
        """Of the fork server while it is ready."""

    async def start(self) -> None:
        """Start the fork server and wait until it has imported the handlers. Raises SettingsError with one line if it
        cannot."""
        self._launch()
        await self._started

    async def stop(self) -> None:
        """Kill all jobs at once, and the fork server. Takes milliseconds, or at most PATIENCE and PIPE_CLOSE_SECONDS if
        the fork server hangs."""
        self._stopped = True
        if self._restart is not None and self._restart.active():
            self._restart.cancel()
        while self._queue:
            self._queue.pop().finish(Died(WORKER_STOPS))
        if self._process is not None:
            self._process.hang_up()
            await self._process.ended

    def call(self, kind: str, context: Mapping[str, Any], listener: OutputListener) -> Job:
        """Run the handler of a kind when one of the children is free. ``context`` has the attributes of ITaskContext
        as JSON values, except ``cancelled``."""
        return self._add(Call(next(self._ids), kind, msgspec.Raw(msgspec.json.encode(context))), listener)

    def execute(self, program: Program, listener: OutputListener) -> Job:
        """Run a program at once, however many jobs run."""
        return self._add(Execute(next(self._ids), program), listener)

    def stop_job(self, job: Job) -> None:
        """See :meth:`Job.stop`."""
        if job in self._queue:
            self._queue.remove(job)
            job.finish(Died("stopped before it began"))
        elif self._process is not None and job.stopping is None and not job.done.called:
            job.stopping = self._reactor.callLater(self._setup.grace + PATIENCE, self._replace, job, self._process)
            self._process.send(Stop(job.order.job))

    # -- jobs

    def _add(self, order: Call | Execute, listener: OutputListener) -> Job:
        job = Job(self, order, listener)
        if self._stopped:
            job.finish(Died(WORKER_STOPS))
        else:
            self._queue.append(job)
            self._pump()
        return job

    def _pump(self) -> None:
        """Begin the queued jobs for which there is room."""
        if self._process is None or self.pid is None:
            return
        free = self._size - sum(isinstance(job.order, Call) for job in self._jobs.values())
        for job in self._queue.copy():
            if isinstance(job.order, Call):
                free -= 1
                if free < 0:
                    continue
            self._queue.remove(job)
            self._jobs[job.order.job] = job
            self._process.send(job.order)

    def _replace(self, job: Job, process: _ForkServerProcess) -> None:
        self._log.error("job {id} does not stop: the fork server hangs and is replaced", id=job.order.job)
        process.hang_up()

    def _finish(self, job: Job, end: JobEnd) -> None:
        del self._jobs[job.order.job]
        self._pump()
        job.finish(end)

    # -- the fork server's process

    def _launch(self) -> None:
        process = self._process = _ForkServerProcess(self._reactor, self._received)
        process.ended.addCallback(self._process_ended)
        argument = msgspec.json.encode(self._setup).decode()
        command = [sys.executable, "-m", "taskd.worker.forkserver.reaper", argument]
        try:
            self._reactor.spawnProcess(process, sys.executable, command, env=None)
        except OSError as e:
            process.ended.callback(f"cannot be started: {e.strerror}")

    def _received(self, event: Event) -> None:
        if isinstance(event, Ready):
            self.pid = event.pid
            self._ready_at = self._reactor.seconds()
            self._log.info("the fork server is ready, pid {pid}", pid=event.pid)
            if not self._started.called:
                self._started.callback(None)
            self._pump()
        elif isinstance(event, ImportFailed):
            self._cannot_start(event.why)
        elif (job := self._jobs.get(event.job)) is None:
            return
        elif isinstance(event, Lines):
            job.listener.lines(event.lines, event.dropped)
        elif isinstance(event, Progress):
            job.listener.progress(event.fraction, event.note)
        else:
            self._finish(job, event.end)

    def _cannot_start(self, trouble: str) -> None:
        if self._started.called:
            self._log.error("the fork server cannot start: {trouble}", trouble=trouble)
        else:
            # the caller of start() decides what to do: there is no retry
            self._stopped = True
            self._started.errback(SettingsError(trouble))

    def _process_ended(self, how: str) -> None:
        """The reaper has ended, and everything below it."""
        if self.pid is not None and self._reactor.seconds() - self._ready_at >= HEALTHY_SECONDS:
            self._failures = 0
        self._process = self.pid = None
        if not self._started.called:
            self._cannot_start(f"the fork server {how} before it was ready; the log has its last lines")
        if not self._stopped:
            self._failures += 1
            seconds = RESTART.delay(self._failures, 0)
            self._restart = self._reactor.callLater(seconds, self._launch)
            self._log.error(
                "the fork server {how}; its {jobs} jobs are lost, a new one starts in {seconds} s",
                how=how,
                jobs=len(self._jobs),
                seconds=round(seconds, 1),
            )
        for job in list(self._jobs.values()):
            self._finish(job, Died(FORK_SERVER_ENDED))


class _ForkServerProcess(ProcessProtocol):
    """One fork server with its reaper, from start to end. Its stderr goes to the worker's log."""

    _log = Logger()
    transport: IProcessTransport

    def __init__(self, reactor: Any, received: Callable[[Event], None]) -> None:
        self.ended: Deferred[str] = Deferred()
        """Fires with words that say how."""
        self._reactor = reactor
        self._received = received
        self._lines = LineBuffer(MAX_EVENT_BYTES)
        self._stderr = OutputBuffer()
        self._timers: list[IDelayedCall] = []

    def send(self, order: Order) -> None:
        """Send an order. It is lost if the fork server has just ended."""
        self.transport.write(encode(order))

    def hang_up(self) -> None:
        """Have it kill everything below it and end. Kill the reaper if that takes longer than PATIENCE."""
        self.transport.closeStdin()
        if not self._timers:
            self._timers.append(self._reactor.callLater(PATIENCE, self._signal, signal.SIGKILL))
            # if the fork server hangs, the end of the pipe waits behind unread orders: signal the reaper as well
            self._signal(signal.SIGUSR1)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessExitedAlready):
            self.transport.signalProcess(number)

    def outReceived(self, data: bytes) -> None:
        try:
            for line in self._lines.feed(data):
                self._received(decode_event(line))
        except (ValueError, msgspec.DecodeError) as e:
            self._log.error("the fork server sent an unreadable message and is replaced: {error}", error=str(e))
            self.hang_up()

    def errReceived(self, data: bytes) -> None:
        self._stderr.feed(data)
        self._log_stderr(last=False)

    def _log_stderr(self, *, last: bool) -> None:
        for line in self._stderr.take(last=last)[0]:
            self._log.warn("fork server: {line}", line=line)

    def processExited(self, reason: Failure) -> None:
        # the pipes close now, unless some process that is left holds them open
        self._timers.append(self._reactor.callLater(PIPE_CLOSE_SECONDS, self.transport.loseConnection))

    def processEnded(self, reason: Failure) -> None:
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        self._log_stderr(last=True)
        self.ended.callback("ended" if reason.check(ProcessDone) else f"was ended: {reason.getErrorMessage()}")
