"""Stores progress and log lines of running tasks, at most four times a second, and publishes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from taskd.events.records import TaskOutput, log_event, progress_event
from taskd.model.errors import Unavailable
from taskd.model.tasks import Task
from taskd.ports.logs import Report
from taskd.ports.store import IStore
from taskd.usage_log import UsageLog
from taskd.worker.identity import Identity

INTERVAL = 0.25
"""Seconds between two reports of a task."""

AGAIN_AFTER = 1.0
"""Seconds until reports are stored again if the store was away."""

PIECES = 64
"""A log that gets too long is cut in about so many pieces."""

MAX_PENDING_BYTES = 256 * 1024
"""Bytes of lines that one task may have waiting here. The oldest are left out, and the log says how many."""


class ReportBuffer:
    """Progress and lines of one attempt that are not stored yet. ``limit`` is how many bytes of the task's log are
    kept; ``on_output`` is called when there is something to store."""

    def __init__(self, task: Task, limit: int, on_output: Callable[[ReportBuffer], None]) -> None:
        self.task = task
        self.closed = False
        self.silent = True
        """No output has come yet."""
        self.grown = 0
        """By how many bytes the log has grown with the last report; below 0 if more was cut."""
        self._limit = limit
        self._on_output = on_output
        self._progress: float | None = None
        self._note: str | None = None
        self._pending: deque[str] = deque()
        self._pending_bytes = 0
        self._left_out = 0
        self._next_line = 1
        self._stored: deque[tuple[int, int]] = deque()
        """(first line, bytes) of the stored pieces of the log, oldest first."""
        self._stored_bytes = 0
        # the size of what earlier attempts have left is only read when there is something to add
        self.earlier_known = task.attempt == 1 and task.dispatch == 1

    @property
    def has_lines(self) -> bool:
        """Whether there are lines to report."""
        return bool(self._pending) or self._left_out > 0

    def progress(self, fraction: float, note: str) -> None:
        """How far the task is, from 0 to 1, and what it does."""
        if not self.closed:
            self.silent = False
            self._progress, self._note = fraction, note
            self._on_output(self)

    def lines(self, lines: Sequence[str], dropped: int = 0) -> None:
        """New lines of the log; ``dropped`` other lines before them are lost."""
        if self.closed:
            return
        self.silent = False
        if dropped and self._pending:
            self._add(_left_out(dropped))
        else:
            self._left_out += dropped
        for line in lines:
            self._add(line)
        self._on_output(self)

    def add_earlier(self, size: int) -> None:
        """Earlier attempts have left so many bytes in the log."""
        self.earlier_known = True
        if size:
            self._stored.appendleft((1, size))
            self._stored_bytes += size

    def take(self) -> Report:
        """The report to store now. It counts as stored from here on."""
        if self._left_out:
            self._pending.appendleft(_left_out(self._left_out))
            self._left_out = 0
        lines, first = list(self._pending), self._next_line
        keep_from = 1
        before = self._stored_bytes
        if lines:
            # line feeds separate the lines
            size = sum(len(line.encode("utf-8", "replace")) + 1 for line in lines) - 1
            self._pending.clear()
            self._pending_bytes = 0
            self._next_line += len(lines)
            self._note_stored(first, size)
            keep_from = self._cut()
        self.grown = self._stored_bytes - before
        progress, note = self._progress, self._note
        self._progress = self._note = None
        task = self.task
        return Report(task.id, task.dispatch, task.attempt, progress, note, first, lines, keep_from)

    def _note_stored(self, first: int, size: int) -> None:
        self._stored_bytes += size
        # few pieces, each large enough to be cut on its own
        if self._stored and self._stored[-1][0] > 1 and self._stored[-1][1] < self._limit // PIECES:
            before, so_far = self._stored.pop()
            self._stored.append((before, so_far + size))
        else:
            self._stored.append((first, size))

    def _cut(self) -> int:
        """The line from which on the log is kept."""
        keep_from = 1
        while self._stored_bytes > self._limit:
            # the lines of earlier attempts go together with the first lines of this one
            count = 2 if len(self._stored) > 1 and self._stored[1][0] == 1 else 1
            if len(self._stored) <= count:
                break
            for _ in range(count):
                self._stored_bytes -= self._stored.popleft()[1]
            keep_from = self._stored[0][0]
        return keep_from

    def _add(self, line: str) -> None:
        self._pending.append(line)
        self._pending_bytes += len(line) + 1
        # at most a quarter of the log, so that one report cannot push out all the others
        while self._pending_bytes > min(MAX_PENDING_BYTES, self._limit // 4) and len(self._pending) > 1:
            self._pending_bytes -= len(self._pending.popleft()) + 1
            self._left_out += 1


class Reports:
    """Stores the output of the attempts of one worker.

    ``mark`` is awaited before output is stored, so that who watches hears that a task runs before it hears what it
    says; ``on_stored`` gets the output that is stored; ``on_fenced`` is called with the task of an attempt that is not
    the worker's any more. ``limit`` is how many bytes of a task's log are kept; ``usage`` gets what is stored and cut.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        identity: Identity,
        limit: int,
        mark: Callable[[Collection[ReportBuffer]], Awaitable[None]],
        on_stored: Callable[[Sequence[TaskOutput]], None],
        on_fenced: Callable[[Task], None],
        usage: UsageLog,
    ) -> None:
        self._clock = clock
        self._store = store
        self._identity = identity
        self._limit = limit
        self._mark = mark
        self._on_stored = on_stored
        self._on_fenced = on_fenced
        self._usage = usage
        self._dirty: dict[ReportBuffer, None] = {}
        self._storing: dict[ReportBuffer, None] = {}
        self._last = float("-inf")
        self._timer: IDelayedCall | None = None
        self._busy = False
        self._closing: dict[ReportBuffer, Deferred[None]] = {}

    def buffer(self, task: Task) -> ReportBuffer:
        """A buffer for an attempt that begins."""
        return ReportBuffer(task, self._limit, self._has_output)

    def _close(self, buffer: ReportBuffer) -> Deferred[None] | None:
        buffer.closed = True
        if buffer in self._dirty:
            self._schedule(0)
        elif buffer not in self._storing:
            return None
        done = self._closing[buffer] = Deferred()
        return done

    def end(self, buffer: ReportBuffer | None) -> Deferred[None] | None:
        """Close the buffer of an attempt, if it has one that is open. None if all its output is stored, else fires once
        it is."""
        if buffer is None or buffer.closed:
            return None
        if buffer.silent:
            buffer.closed = True
            return None
        return self._close(buffer)

    def _has_output(self, buffer: ReportBuffer) -> None:
        if buffer not in self._dirty:
            self._dirty[buffer] = None
            self._schedule(max(0.0, self._last + INTERVAL - self._clock.seconds()))

    def _schedule(self, seconds: float) -> None:
        if self._busy:
            return
        if self._timer is not None:
            if self._timer.getTime() <= self._clock.seconds() + seconds:
                return
            self._timer.cancel()
        self._timer = self._clock.callLater(seconds, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._busy = True
        Deferred.fromCoroutine(self._flush()).addBoth(self._flushed)

    def _flushed(self, result: object) -> None:
        self._busy = False
        if self._dirty:
            soon = any(buffer in self._dirty for buffer in self._closing)
            self._schedule(0 if soon else max(0.0, self._last + INTERVAL - self._clock.seconds()))

    async def _flush(self) -> None:
        self._last = self._clock.seconds()
        buffers, self._dirty = self._dirty, {}
        self._storing = buffers
        reports: list[Report] = []
        while True:
            try:
                await self._mark(buffers.keys())
                for buffer in buffers:
                    if buffer.has_lines and not buffer.earlier_known:
                        buffer.add_earlier(await self._store.log_bytes(buffer.task.id))
                # output that comes while a report is being stored is for the next time
                reports = reports or [buffer.take() for buffer in buffers]
                held = await self._store.report(self._identity.name, reports)
                break
            except Unavailable as e:
                self._log.debug("reports wait: {why}", why=str(e))
            except Exception:
                self._log.failure("{count} reports could not be stored", count=len(buffers))
                held = frozenset(buffer.task.id for buffer in buffers)
                reports = []
                break
            await self._pause()
        self._storing = {}
        try:
            self._stored(buffers, reports, held)
        except Exception:
            self._log.failure("{count} reports could not be published", count=len(buffers))
        for buffer in buffers:
            # output that came meanwhile, before the end, is still to be stored
            if buffer not in self._dirty and (done := self._closing.pop(buffer, None)) is not None:
                done.callback(None)

    def _stored(self, buffers: Iterable[ReportBuffer], reports: Sequence[Report], held: frozenset[int]) -> None:
        now = self._store.now()
        by_attempt = {(r.task_id, r.dispatch, r.attempt): r for r in reports}
        outputs: list[TaskOutput] = []
        for buffer in buffers:
            task = buffer.task
            report = by_attempt.get((task.id, task.dispatch, task.attempt))
            if report is not None and task.id in held:
                if buffer.grown:
                    self._usage.add(task.user_id, 0, buffer.grown)
                if report.progress is not None:
                    task.progress, task.note = report.progress, report.note
                    outputs.append(progress_event(task, report.progress, report.note))
                if report.lines:
                    outputs.append(log_event(task, report.first_line, report.lines, now))
            elif task.id not in held and not buffer.closed:
                self._on_fenced(task)
        if outputs:
            self._on_stored(outputs)

    def _pause(self) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self._clock.callLater(AGAIN_AFTER, done.callback, None)
        return done


def _left_out(count: int) -> str:
    return f"[{count} lines left out: they came too fast]"
