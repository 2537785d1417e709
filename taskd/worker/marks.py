"""Marks tasks as running in the store once they have run for a while, or have something to report."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.events.publisher import Publisher
from taskd.model.errors import Unavailable
from taskd.model.states import State
from taskd.ports.attempts import Begun, Started
from taskd.ports.store import IStore
from taskd.worker.held import HeldState, HeldTask
from taskd.worker.identity import Identity
from taskd.worker.reports import ReportBuffer

MARKED_AFTER = 0.25
"""Seconds that a task runs before it is marked. What ends sooner never is: that saves a write for each short task."""

TOGETHER = 0.1
"""Seconds between two marks at least, so that one statement marks many."""

AGAIN_AFTER = 1.0
"""Seconds until the next try if the store was away."""


class Marks:
    """There is one timer for all tasks."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, store: IStore, publisher: Publisher, identity: Identity) -> None:
        self._clock = clock
        self._store = store
        self._publisher = publisher
        self._identity = identity
        self._unmarked: dict[HeldTask, None] = {}
        """In the order in which they have begun."""
        self._timer: IDelayedCall | None = None

    def add(self, held: HeldTask) -> None:
        """Its handler has been called, and has not ended."""
        self._unmarked[held] = None
        if self._timer is None:
            self._timer = self._clock.callLater(MARKED_AFTER, self._begin)

    def remove(self, held: HeldTask) -> None:
        """It has ended."""
        self._unmarked.pop(held, None)

    def again(self, running: Iterable[HeldTask]) -> None:
        """The database may have crashed, and lost marks, which do not wait for its disk: mark all these again."""
        for held in running:
            self.add(held)

    def _begin(self) -> None:
        Deferred.fromCoroutine(self._mark()).addErrback(self._failed).addCallback(self._marked)

    def _failed(self, failure: Failure) -> float:
        self._log.failure("running tasks could not be marked", failure)
        return AGAIN_AFTER

    def _marked(self, wait: float) -> None:
        self._timer = None
        if self._unmarked:
            oldest = next(iter(self._unmarked))
            seconds = max(wait, oldest.began + MARKED_AFTER - self._clock.seconds())
            self._timer = self._clock.callLater(seconds, self._begin)

    async def mark(self, buffers: Collection[ReportBuffer]) -> None:
        """Mark the tasks that these belong to now. Raises Unavailable."""
        if due := [held for held in self._unmarked if held.buffer in buffers]:
            await self._store_marks(due)

    async def _mark(self) -> float:
        now = self._clock.seconds()
        due: list[HeldTask] = []
        for held in self._unmarked:
            if held.began + MARKED_AFTER > now:
                break
            due.append(held)
        if not due:
            return 0.0
        try:
            await self._store_marks(due)
        except Unavailable as e:
            self._log.debug("{count} running tasks are not marked yet: {why}", count=len(due), why=str(e))
            return AGAIN_AFTER
        return TOGETHER

    async def _store_marks(self, due: Sequence[HeldTask]) -> None:
        now = self._clock.seconds()
        begun = [Begun(held.task.id, held.task.dispatch, now - held.began) for held in due]
        found = await self._store.begin(self._identity.name, begun, False)
        for held in due:
            self._unmarked.pop(held, None)
        self._publish(due, found)

    def _publish(self, due: Iterable[HeldTask], found: Mapping[int, Started]) -> None:
        changed = []
        for held in due:
            task = held.task
            started = found.get(task.id)
            # an end whose answer came first is newer; what is missing is found by the next comparison
            if started is not None and held.state is HeldState.RUNNING and task.version < started.version:
                note_started(held, started)
                changed.append(task)
        self._publisher.publish(changed)


def note_started(held: HeldTask, started: Started) -> None:
    """The store has it as running."""
    task = held.task
    task.state, task.version, task.started_at = State.RUNNING, started.version, started.started_at
