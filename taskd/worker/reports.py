"""What running tasks say: progress and log lines, gathered and stored at most four times a second."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from taskd.events.records import TaskOutput, log_event, progress_event
from taskd.model.errors import Unavailable
from taskd.model.tasks import Task
from taskd.ports.logs import Report
from taskd.ports.store import IStore

INTERVAL = 0.25
"""Seconds between two reports of a task."""

AGAIN_AFTER = 1.0
"""Seconds until a store that is away is tried again."""

PIECES = 64
"""In so many pieces, more or less, a log is cut when it gets too long."""

MAX_PENDING_BYTES = 256 * 1024
"""Lines that one task may have waiting here; the oldest are left out, and the log says how many."""


class ReportBuffer:
    """One attempt's way to be heard. ``limit`` is how much of the task's log is kept, in bytes."""

    def __init__(self, task: Task, limit: int, said: Callable[[ReportBuffer], None]) -> None:
        self.task = task
        self.closed = False
        self._limit = limit
        self._said = said
        self._progress: float | None = None
        self._note: str | None = None
        self._pending: deque[str] = deque()
        self._pending_bytes = 0
        self._left_out = 0
        self._next_line = 1
        self._stored: deque[tuple[int, int]] = deque()
        self._stored_bytes = 0
        # what attempts before this one have left is only asked for when there is something to add to it
        self.older_known = task.attempt == 1 and task.dispatch == 1

    @property
    def dirty(self) -> bool:
        """Whether there is something to report."""
        return bool(self._pending) or self._left_out > 0 or self._progress is not None

    @property
    def speaks(self) -> bool:
        """Whether there are lines to report."""
        return bool(self._pending) or self._left_out > 0

    def progress(self, fraction: float, note: str) -> None:
        """How far the task is, from 0 to 1, and at what."""
        if not self.closed:
            self._progress, self._note = fraction, note
            self._said(self)

    def lines(self, lines: Sequence[str], dropped: int = 0) -> None:
        """New lines of its log, before which ``dropped`` others have been lost."""
        if self.closed:
            return
        if dropped and self._pending:
            self._add(f"[{dropped} lines left out: they came too fast]")
        else:
            self._left_out += dropped
        for line in lines:
            self._add(line)
        self._said(self)

    def older(self, size: int) -> None:
        """So many bytes are in the log from before this attempt."""
        self.older_known = True
        if size:
            self._stored.appendleft((1, size))
            self._stored_bytes += size

    def take(self) -> Report:
        """What is to be reported now; it counts as reported."""
        if self._left_out:
            self._pending.appendleft(f"[{self._left_out} lines left out: they came too fast]")
            self._left_out = 0
        lines, first = list(self._pending), self._next_line
        keep_from = 1
        if lines:
            size = sum(len(line.encode("utf-8", "replace")) + 1 for line in lines)
            self._pending.clear()
            self._pending_bytes = 0
            self._next_line += len(lines)
            self._remember(first, size)
            keep_from = self._cut()
        progress, note = self._progress, self._note
        self._progress = self._note = None
        task = self.task
        return Report(task.id, task.dispatch, task.attempt, progress, note, first, lines, keep_from)

    def _remember(self, first: int, size: int) -> None:
        self._stored_bytes += size
        # pieces that are large enough to be cut one by one, and few
        if self._stored and self._stored[-1][0] > 1 and self._stored[-1][1] < self._limit // PIECES:
            before, so_far = self._stored.pop()
            self._stored.append((before, so_far + size))
        else:
            self._stored.append((first, size))

    def _cut(self) -> int:
        """The line from which on the log is kept."""
        keep_from = 1
        while self._stored_bytes > self._limit:
            # what is older than this attempt goes together with its first lines
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
        # a quarter of the log at most, lest one report push out all the others
        while self._pending_bytes > min(MAX_PENDING_BYTES, self._limit // 4) and len(self._pending) > 1:
            self._pending_bytes -= len(self._pending.popleft()) + 1
            self._left_out += 1


class Reports:
    """Stores what the attempts of one worker say, and tells the servers of it.

    ``announce`` gets what is stored; ``fenced`` is called with an attempt's task that is not the worker's any more.
    ``limit`` is what of a task's log is kept, in bytes.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        worker: str,
        limit: int,
        announce: Callable[[Sequence[TaskOutput]], None],
        fenced: Callable[[Task], None],
    ) -> None:
        self._clock = clock
        self._store = store
        self._worker = worker
        self._limit = limit
        self._announce = announce
        self._fenced = fenced
        self._dirty: dict[ReportBuffer, None] = {}
        self._flying: dict[ReportBuffer, None] = {}
        self._last = float("-inf")
        self._timer: IDelayedCall | None = None
        self._busy = False
        self._closing: dict[ReportBuffer, Deferred[None]] = {}

    def buffer(self, task: Task) -> ReportBuffer:
        """A way to be heard for an attempt that begins."""
        return ReportBuffer(task, self._limit, self._heard)

    def close(self, buffer: ReportBuffer) -> Deferred[None] | None:
        """The attempt has ended: None when all it said is stored, else fires once it is. Nothing counts from now on."""
        buffer.closed = True
        if buffer in self._dirty:
            self._arm(0)
        elif buffer not in self._flying:
            return None
        done = self._closing[buffer] = Deferred()
        return done

    def _heard(self, buffer: ReportBuffer) -> None:
        if buffer not in self._dirty:
            self._dirty[buffer] = None
            self._arm(max(0.0, self._last + INTERVAL - self._clock.seconds()))

    def _arm(self, seconds: float) -> None:
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
        Deferred.fromCoroutine(self._flush()).addBoth(self._ended)

    def _ended(self, result: object) -> None:
        self._busy = False
        if self._dirty:
            soon = any(buffer in self._dirty for buffer in self._closing)
            self._arm(0 if soon else max(0.0, self._last + INTERVAL - self._clock.seconds()))

    async def _flush(self) -> None:
        self._last = self._clock.seconds()
        buffers, self._dirty = self._dirty, {}
        self._flying = buffers
        reports: list[Report] = []
        while True:
            try:
                for buffer in buffers:
                    if buffer.speaks and not buffer.older_known:
                        buffer.older(await self._store.log_bytes(buffer.task.id))
                # a buffer may be heard again while its report is stored: that is for the next time
                reports = reports or [buffer.take() for buffer in buffers]
                mine = await self._store.report(self._worker, reports)
                break
            except Unavailable as e:
                self._log.debug("reports wait: {why}", why=e.message)
            except Exception:
                self._log.failure("{count} reports could not be stored", count=len(buffers))
                mine = frozenset(buffer.task.id for buffer in buffers)
                reports = []
                break
            await self._pause()
        self._flying = {}
        self._tell(buffers, reports, mine)

    def _tell(self, buffers: Iterable[ReportBuffer], reports: Sequence[Report], mine: frozenset[int]) -> None:
        now = datetime.fromtimestamp(self._clock.seconds(), timezone.utc)
        by_turn = {(r.task_id, r.dispatch, r.attempt): r for r in reports}
        said: list[TaskOutput] = []
        for buffer in buffers:
            task = buffer.task
            report = by_turn.get((task.id, task.dispatch, task.attempt))
            if report is not None and task.id in mine:
                if report.progress is not None:
                    task.progress, task.note = report.progress, report.note
                    said.append(progress_event(task, report.progress, report.note))
                if report.lines:
                    said.append(log_event(task, report.first_line, report.lines, now))
            elif task.id not in mine and not buffer.closed:
                self._fenced(task)
            # what it said meanwhile, before it ended, is still to come
            if buffer not in self._dirty and (done := self._closing.pop(buffer, None)) is not None:
                done.callback(None)
        if said:
            self._announce(said)

    def _pause(self) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self._clock.callLater(AGAIN_AFTER, done.callback, None)
        return done
