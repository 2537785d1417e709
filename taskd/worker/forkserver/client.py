"""Jobs in child processes, as the worker sees them. The client of the fork server starts it again when it dies.

docs/processes.md describes the processes."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IProcessTransport
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

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
FIRST_BACKOFF = 0.1
LONGEST_BACKOFF = 10.0
HEALTHY_SECONDS = 30.0
"""A fork server that lived so long had not failed to start: the next one starts after FIRST_BACKOFF."""

PATIENCE = 15.0
"""Seconds beyond the grace that a fork server may take to stop a job. Then it hangs, and is replaced. The reaper needs
less time to end a fork server that hangs and everything below it."""

PIPE_CLOSE_SECONDS = 10.0
"""Seconds between the end of the reaper and closing pipes that some process still holds open."""

FORK_SERVER_ENDED = "the fork server ended"
WORKER_STOPS = "the worker stops"


class Job:
    """One task in a process. ``done`` fires when nothing of it runs any more, after :meth:`stop` as well."""

    def __init__(self, forkserver: ForkServerClient, id: int, order: Call | Execute, listener: OutputListener) -> None:
        self.done: Deferred[JobEnd] = Deferred()
        self.id = id
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
        self._modules = list(modules)
        self._size = size
        self._grace = grace
        self._max_tasks = max_tasks
        self._process: _ForkServerProcess | None = None
        self._ready = False
        self._stopped = False
        self._starting: Deferred[None] | None = None
        self._ended: Deferred[None] | None = None
        self._restart: IDelayedCall | None = None
        self._backoff = 0.0
        self._ready_at = 0.0
        self._last_id = 0
        self._jobs: dict[int, Job] = {}
        self._calls = 0
        self._queue: deque[Job] = deque()
        self.pid: int | None = None
        """Of the fork server while it is ready."""

    async def start(self) -> None:
        """Start the fork server and wait until it has imported the handlers. Raises SettingsError with one line if it
        cannot."""
        self._starting = Deferred()
        self._launch()
        await self._starting

    async def stop(self) -> None:
        """Kill all jobs at once, and the fork server. Takes milliseconds, or at most PATIENCE and PIPE_CLOSE_SECONDS if
        the fork server hangs."""
        self._stopped = True
        if self._restart is not None and self._restart.active():
            self._restart.cancel()
        while self._queue:
            self._queue.popleft().finish(Died(WORKER_STOPS))
        if self._process is not None:
            self._ended = Deferred()
            self._process.hang_up()
            await self._ended

    def call(self, kind: str, context: Mapping[str, Any], listener: OutputListener) -> Job:
        """Run the handler of a kind when one of the children is free. ``context`` has the attributes of ITaskContext
        as JSON values, except ``cancelled``."""
        self._last_id += 1
        return self._add(Call(self._last_id, kind, msgspec.Raw(msgspec.json.encode(context))), listener)

    def execute(self, program: Program, listener: OutputListener) -> Job:
        """Run a program at once, however many jobs run."""
        self._last_id += 1
        return self._add(Execute(self._last_id, program), listener)

    def stop_job(self, job: Job) -> None:
        """See :meth:`Job.stop`."""
        if job.id in self._jobs and self._process is not None:
            if job.stopping is None:
                job.stopping = self._reactor.callLater(self._grace + PATIENCE, self._replace, job.id)
                self._process.send(Stop(job.id))
        elif job in self._queue:
            self._queue.remove(job)
            job.finish(Died("stopped before it began"))

    # -- jobs

    def _add(self, order: Call | Execute, listener: OutputListener) -> Job:
        job = Job(self, order.job, order, listener)
        if self._stopped:
            job.finish(Died(WORKER_STOPS))
        else:
            self._queue.append(job)
            self._pump()
        return job

    def _pump(self) -> None:
        """Begin the queued jobs for which there is room."""
        if not self._ready or self._process is None:
            return
        waiting: deque[Job] = deque()
        while self._queue:
            job = self._queue.popleft()
            is_call = isinstance(job.order, Call)
            if is_call and self._calls >= self._size:
                waiting.append(job)
            else:
                self._calls += is_call
                self._jobs[job.id] = job
                self._process.send(job.order)
        self._queue = waiting

    def _replace(self, id: int) -> None:
        self._log.error("job {id} does not stop: the fork server hangs and is replaced", id=id)
        if self._process is not None:
            self._process.hang_up()

    def _finish(self, id: int, end: JobEnd) -> None:
        job = self._jobs.pop(id, None)
        if job is None:
            return
        self._calls -= isinstance(job.order, Call)
        self._pump()
        job.finish(end)

    # -- the fork server's process

    def _launch(self) -> None:
        self._restart = None
        setup = Setup([str(path) for path in sys.path], self._grace, self._max_tasks)
        process = self._process = _ForkServerProcess(self._reactor, self._received, self._process_ended)
        command = [sys.executable, "-m", "taskd.worker.forkserver", *self._modules]
        try:
            self._reactor.spawnProcess(process, sys.executable, command, env=None)
        except OSError as e:
            self._process_ended(f"cannot be started: {e.strerror}")
        else:
            process.send(setup)

    def _received(self, event: Event) -> None:
        if isinstance(event, Lines):
            if (job := self._jobs.get(event.job)) is not None:
                self._notify(job.listener.lines, event.lines, event.dropped)
        elif isinstance(event, Progress):
            if (job := self._jobs.get(event.job)) is not None:
                self._notify(job.listener.progress, event.fraction, event.note)
        elif isinstance(event, Ready):
            self.pid = event.pid
            self._ready = True
            self._ready_at = self._reactor.seconds()
            self._log.info("the fork server is ready, pid {pid}", pid=event.pid)
            self._started(None)
            self._pump()
        elif isinstance(event, ImportFailed):
            self._started(event.why)
        else:
            self._finish(event.job, event.end)

    def _notify(self, method: Callable[..., None], *arguments: Any) -> None:
        try:
            method(*arguments)
        except Exception:
            self._log.failure("the listener of a task's output failed")

    def _started(self, trouble: str | None) -> None:
        starting, self._starting = self._starting, None
        if starting is None:
            if trouble is not None:
                self._log.error("the fork server cannot start: {trouble}", trouble=trouble)
        elif trouble is None:
            starting.callback(None)
        else:
            # the caller of start() decides what to do: there is no retry
            self._stopped = True
            starting.errback(Failure(SettingsError(trouble)))

    def _process_ended(self, how: str) -> None:
        """The reaper has ended, and everything below it."""
        was_ready, self._ready = self._ready, False
        self._process = self.pid = None
        if self._starting is not None:
            self._started(f"the fork server {how} before it was ready; the log has its last lines")
        if self._stopped:
            while self._queue:
                self._queue.popleft().finish(Died(WORKER_STOPS))
        else:
            healthy = was_ready and self._reactor.seconds() - self._ready_at >= HEALTHY_SECONDS
            self._backoff = FIRST_BACKOFF if healthy else min(max(FIRST_BACKOFF, 2 * self._backoff), LONGEST_BACKOFF)
            self._restart = self._reactor.callLater(self._backoff, self._launch)
            self._log.error(
                "the fork server {how}; its {jobs} jobs are lost, a new one starts in {seconds} s",
                how=how,
                jobs=len(self._jobs),
                seconds=round(self._backoff, 1),
            )
        for id in list(self._jobs):
            self._finish(id, Died(FORK_SERVER_ENDED))
        if self._ended is not None:
            self._ended.callback(None)


class _ForkServerProcess(ProcessProtocol):
    """One fork server with its reaper, from start to end. Its stderr goes to the worker's log."""

    _log = Logger()
    transport: IProcessTransport

    def __init__(self, reactor: Any, received: Callable[[Event], None], ended: Callable[[str], None]) -> None:
        self._reactor = reactor
        self._received = received
        self._ended = ended
        self._lines = LineBuffer(MAX_EVENT_BYTES)
        self._stderr = OutputBuffer()
        self._kill_timer: IDelayedCall | None = None
        self._pipe_timer: IDelayedCall | None = None

    def send(self, order: Order) -> None:
        """Send an order. It is lost if the fork server has just ended."""
        self.transport.write(encode(order))

    def hang_up(self) -> None:
        """Have it kill everything below it and end. Kill the reaper if that takes longer than PATIENCE."""
        self.transport.closeStdin()
        if self._kill_timer is None:
            self._kill_timer = self._reactor.callLater(PATIENCE, self._signal, signal.SIGKILL)
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
        self._pipe_timer = self._reactor.callLater(PIPE_CLOSE_SECONDS, self.transport.loseConnection)

    def processEnded(self, reason: Failure) -> None:
        for call in (self._kill_timer, self._pipe_timer):
            if call is not None and call.active():
                call.cancel()
        self._log_stderr(last=True)
        self._ended("ended" if reason.check(ProcessDone) else f"was ended: {reason.getErrorMessage()}")
