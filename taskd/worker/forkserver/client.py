"""Tasks in child processes, as the worker sees them: jobs of a fork server that is started again when it dies.

The fork server itself is :mod:`taskd.worker.forkserver`; docs/processes.md says how the two keep every process in
sight."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, Union

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IProcessTransport
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.model.errors import SettingsError
from taskd.worker.forkserver import messages
from taskd.worker.forkserver.messages import Program
from taskd.worker.forkserver.output import Output

MAX_NEWS_BYTES = 8 * 1024 * 1024
FIRST_BACKOFF = 0.1
LONGEST_BACKOFF = 10.0
HEALTHY_SECONDS = 30.0
"""A fork server that lived that long was no failed start: the next one comes without delay."""

PATIENCE = 15.0
"""Seconds that a fork server may take to do what it was told, beyond the grace: then it hangs, and is replaced. Its
reaper takes less to end a fork server that hangs, and what is below it."""

PIPE_CLOSE_SECONDS = 10.0
"""Seconds between the end of the reaper and giving up on the pipes that it has left open."""


class OutputListener(Protocol):
    """What a running task says. Called in the reactor's thread."""

    def progress(self, fraction: float, note: str) -> None:
        """How far it is, from 0 to 1, and at what."""

    def lines(self, lines: Sequence[str], dropped: int) -> None:
        """Lines for the task's log; ``dropped`` were lost before these."""


class Returned(NamedTuple):
    """The handler returned. ``value`` is the JSON text of its result, at most 256 KiB."""

    value: bytes


class Raised(NamedTuple):
    """The handler raised, or its result cannot be stored: then ``type`` is empty. ``retry`` and ``rejected`` tell Retry
    and Reject."""

    type: str
    message: str
    trace: str
    retry_after: float | None
    rejected: bool
    retry: bool


class Exited(NamedTuple):
    """A program ended, with a ``status`` or by a ``signal``. ``tail`` has its last lines, ``reason`` the limit that
    ended it, if one did."""

    status: int | None
    signal: int | None
    tail: Sequence[str]
    seconds: float
    reason: str | None


class Died(NamedTuple):
    """The process ended under its task, or could not be started: ``reason`` says how, "killed by SIGSEGV"."""

    reason: str


Ending: TypeAlias = Union[Returned, Raised, Exited, Died]  # noqa: UP007 (evaluated at run time on 3.10)

FORK_SERVER_ENDED = "the fork server ended"


class Job:
    """One task in a process. ``done`` fires with its Ending when nothing of it is left running, after :meth:`stop` as
    well."""

    def __init__(
        self, forkserver: ForkServerClient, id: int, order: messages.Call | messages.Execute, said: OutputListener
    ) -> None:
        self.done: Deferred[Ending] = Deferred()
        self.id = id
        self.order = order
        self.said = said
        self.stopping: IDelayedCall | None = None
        self._forkserver = forkserver

    def stop(self) -> None:
        """TERM to all of its processes, then KILL after the grace. Nothing happens when it has ended or was stopped
        already."""
        self._forkserver._stop_job(self)

    def finish(self, ending: Ending) -> None:
        """For the fork server: it has ended."""
        if self.stopping is not None and self.stopping.active():
            self.stopping.cancel()
        self.done.callback(ending)


class ForkServerClient:
    """Runs process handlers and programs in processes of their own.

    ``modules`` are imported there, ``size`` children run handlers at a time, each of them ``max_tasks`` tasks before it
    is replaced. ``grace`` is in seconds, between TERM and KILL. All calls are made in the reactor's thread.
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
        self._link: _Link | None = None
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
        """Of the process that forks, while it is ready."""

    async def start(self) -> None:
        """Start it and wait until the handlers are imported. Raises SettingsError with one line when they cannot be."""
        self._starting = Deferred()
        self._launch()
        await self._starting

    async def stop(self) -> None:
        """End everything that runs, at once, and the fork server with it. Takes milliseconds; when the fork server
        hangs, no
        more than PATIENCE and PIPE_CLOSE_SECONDS."""
        self._stopped = True
        if self._restart is not None and self._restart.active():
            self._restart.cancel()
        while self._queue:
            self._queue.popleft().finish(Died("the worker stops"))
        if self._link is not None:
            self._ended = Deferred()
            self._link.hang_up()
            await self._ended

    def call(self, kind: str, context: Mapping[str, Any], said: OutputListener) -> Job:
        """Run the process handler of a kind. ``context`` has the attributes of ITaskContext but ``cancelled``, as JSON
        values. Waits for one of the children to be free."""
        return self._add(lambda id: messages.Call(id, kind, msgspec.Raw(msgspec.json.encode(context))), said)

    def execute(self, program: Program, said: OutputListener) -> Job:
        """Run a program, beside whatever else runs."""
        return self._add(lambda id: messages.Execute(id, program), said)

    # -- jobs

    def _add(self, order: Callable[[int], messages.Call | messages.Execute], said: OutputListener) -> Job:
        self._last_id += 1
        job = Job(self, self._last_id, order(self._last_id), said)
        if self._stopped:
            job.finish(Died("the worker stops"))
        else:
            self._queue.append(job)
            self._pump()
        return job

    def _pump(self) -> None:
        """Begin whatever of the queue has room."""
        if not self._ready or self._link is None:
            return
        waiting: deque[Job] = deque()
        while self._queue:
            job = self._queue.popleft()
            is_call = isinstance(job.order, messages.Call)
            if is_call and self._calls >= self._size:
                waiting.append(job)
            else:
                self._calls += is_call
                self._jobs[job.id] = job
                self._link.send(job.order)
        self._queue = waiting

    def _stop_job(self, job: Job) -> None:
        if job.id in self._jobs and self._link is not None:
            if job.stopping is None:
                job.stopping = self._reactor.callLater(self._grace + PATIENCE, self._replace, job.id)
                self._link.send(messages.Stop(job.id))
        elif job in self._queue:
            self._queue.remove(job)
            job.finish(Died("stopped before it began"))

    def _replace(self, id: int) -> None:
        self._log.error("job {id} was to be stopped and is not: the fork server hangs, and is replaced", id=id)
        if self._link is not None:
            self._link.hang_up()

    def _finish(self, id: int, ending: Ending) -> None:
        job = self._jobs.pop(id, None)
        if job is None:
            return
        self._calls -= isinstance(job.order, messages.Call)
        self._pump()
        job.finish(ending)

    # -- the fork server's process

    def _launch(self) -> None:
        self._restart = None
        setup = messages.Setup([str(path) for path in sys.path], self._grace, self._max_tasks)
        link = self._link = _Link(self._reactor, self._heard, self._link_ended)
        command = [sys.executable, "-m", "taskd.worker.forkserver", *self._modules]
        try:
            self._reactor.spawnProcess(link, sys.executable, command, env=None)
        except OSError as e:
            self._link_ended(f"cannot be started: {e.strerror}")
        else:
            link.send(setup)

    def _heard(self, news: messages.News) -> None:
        if isinstance(news, messages.Lines):
            if (job := self._jobs.get(news.job)) is not None:
                self._tell(job.said.lines, news.lines, news.dropped)
        elif isinstance(news, messages.Progress):
            if (job := self._jobs.get(news.job)) is not None:
                self._tell(job.said.progress, news.fraction, news.note)
        elif isinstance(news, messages.Ready):
            self.pid = news.pid
            self._ready = True
            self._ready_at = self._reactor.seconds()
            self._log.info("the fork server is ready, pid {pid}", pid=news.pid)
            self._started(None)
            self._pump()
        elif isinstance(news, messages.Broken):
            self._started(news.why)
        else:
            self._finish(news.job, _ending(news))

    def _tell(self, say: Callable[..., None], *arguments: Any) -> None:
        try:
            say(*arguments)
        except Exception:
            self._log.failure("what a task said was not taken")

    def _started(self, trouble: str | None) -> None:
        starting, self._starting = self._starting, None
        if starting is None:
            if trouble is not None:
                self._log.error("the fork server cannot start: {trouble}", trouble=trouble)
        elif trouble is None:
            starting.callback(None)
        else:
            # whoever waits is told and decides: it is not tried again
            self._stopped = True
            starting.errback(Failure(SettingsError(trouble)))

    def _link_ended(self, how: str) -> None:
        """The reaper has ended, and with it all that was below."""
        was_ready, self._ready = self._ready, False
        self._link = self.pid = None
        if self._starting is not None:
            self._started(f"the process of the handlers {how} before it was ready; its last words are in the log")
        if self._stopped:
            while self._queue:
                self._queue.popleft().finish(Died("the worker stops"))
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


def _ending(news: messages.Ending) -> Ending:
    if isinstance(news, messages.Returned):
        return Returned(bytes(news.value))
    if isinstance(news, messages.Raised):
        return Raised(news.name, news.message, news.trace, news.retry_after, news.rejected, news.retry)
    if isinstance(news, messages.Exited):
        return Exited(news.status, news.signal, news.tail, news.seconds, news.reason)
    return Died(news.reason)


class _Link(ProcessProtocol):
    """The pipes to one forkserver, from its start to its end. Its stderr becomes lines of the worker's log."""

    _log = Logger()
    transport: IProcessTransport

    def __init__(self, reactor: Any, heard: Callable[[messages.News], None], ended: Callable[[str], None]) -> None:
        self._reactor = reactor
        self._heard = heard
        self._ended = ended
        self._lines = messages.LineBuffer(MAX_NEWS_BYTES)
        self._words = Output()
        self._killing: IDelayedCall | None = None
        self._leaving: IDelayedCall | None = None

    def send(self, order: messages.Order) -> None:
        """An order for the fork server; lost when it has just ended."""
        self.transport.write(messages.encode(order))

    def hang_up(self) -> None:
        """Have it end everything and itself; a reaper that does not is killed."""
        self.transport.closeStdin()
        if self._killing is None:
            self._killing = self._reactor.callLater(PATIENCE, self._signal, signal.SIGKILL)
            # the reaper's sign, in case the end of the pipe is stuck behind what a fork server that hangs has not read
            self._signal(signal.SIGUSR1)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessExitedAlready):
            self.transport.signalProcess(number)

    def outReceived(self, data: bytes) -> None:
        try:
            for line in self._lines.feed(data):
                self._heard(messages.decode_news(line))
        except (ValueError, msgspec.DecodeError) as e:
            self._log.error("the fork server says what nobody understands, and is replaced: {error}", error=str(e))
            self.hang_up()

    def errReceived(self, data: bytes) -> None:
        self._words.feed(data)
        self._log_words(last=False)

    def _log_words(self, *, last: bool) -> None:
        for line in self._words.take(last=last)[0]:
            self._log.warn("forkserver: {line}", line=line)

    def processExited(self, reason: Failure) -> None:
        # the pipes end with it, unless something it has left behind holds them
        self._leaving = self._reactor.callLater(PIPE_CLOSE_SECONDS, self.transport.loseConnection)

    def processEnded(self, reason: Failure) -> None:
        for call in (self._killing, self._leaving):
            if call is not None and call.active():
                call.cancel()
        self._log_words(last=True)
        self._ended("ended" if reason.check(ProcessDone) else f"was ended: {reason.getErrorMessage()}")
