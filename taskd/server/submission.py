"""Creating tasks: callers are gathered into transactions, answered after the commit, and published without waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from taskd.batching import Batcher
from taskd.model import NewTask, State, Task
from taskd.ports import IBroker, ITaskStore, NewRow
from taskd.server.announcer import Announcer
from taskd.server.outbox import Outbox
from taskd.server.window import Windows
from taskd.wire.limits import MAX_BATCH


class Submission(NamedTuple):
    """Tasks of one request: all or none."""

    user_id: int
    specs: Sequence[NewTask]


class Submitter:
    """The way in for new tasks. A place in the window sends one straight to the broker, else it waits its turn."""

    def __init__(
        self,
        clock: IReactorTime,
        store: ITaskStore,
        broker: IBroker,
        outbox: Outbox,
        windows: Windows,
        announcer: Announcer,
        new_id: Callable[[], str],
        backlogged: Callable[[str], None],
    ) -> None:
        self._store = store
        self._broker = broker
        self._outbox = outbox
        self._windows = windows.by_queue
        self._announcer = announcer
        self._new_id = new_id
        self._backlogged = backlogged
        self._batcher: Batcher[Submission, Sequence[Task]] = Batcher(
            clock, self._create, max_weight=MAX_BATCH, weigh=lambda s: len(s.specs)
        )

    def submit(self, user_id: int, specs: Sequence[NewTask]) -> Deferred[Sequence[Task]]:
        """Store tasks; fires with them, in order, once they are committed. Fails with Unavailable."""
        return self._batcher.submit(Submission(user_id, specs))

    def drained(self) -> Deferred[None]:
        """Fires when nothing is under way."""
        return self._batcher.drained()

    async def _create(self, submissions: list[Submission]) -> Sequence[Sequence[Task]]:
        batch, settled = self._new_id(), self._outbox.take_settled()
        rows = [
            NewRow(user_id, spec, self._first_state(user_id, spec)) for user_id, specs in submissions for spec in specs
        ]
        try:
            tasks = await self._store.create_tasks(batch, rows, settled)
        except BaseException:
            self._outbox.give_back(settled)
            for row in rows:
                if row.state is State.QUEUED:
                    self._windows[row.spec.queue].take(-1)
            raise
        self._announcer.announce(tasks)
        self._outbox.publish(batch, tasks)
        for queue in {row.spec.queue for row in rows if row.state is State.WAITING}:
            self._backlogged(queue)
        answers, start = [], 0
        for submission in submissions:
            end = start + len(submission.specs)
            answers.append(tasks[start:end])
            start = end
        return answers

    def _first_state(self, user_id: int, spec: NewTask) -> State:
        window = self._windows[spec.queue]
        # With the broker away nothing goes to it: the dispatcher hands over what has waited, when it is back.
        if self._broker.ready and window.admit(user_id):
            return State.QUEUED
        window.suspect(user_id)
        return State.WAITING
