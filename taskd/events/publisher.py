"""Publishes what this process has changed: to the servers through the broker, and to the hub of its own server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from typing import TypeVar

from msgspec import Raw
from twisted.internet.interfaces import IReactorTime

from taskd.events.records import EventBatch, TaskChange, TaskOutput, returned_event
from taskd.events.watch_hub import Hub
from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore
from taskd.protocol.messages import encode
from taskd.protocol.views import view

MAX_BATCH_BYTES = 256 * 1024
"""About the most that goes into one message: brokers refuse messages of several megabytes."""

RETURNS_TOLD = 3
"""From so many give-backs on, the owner gets an event of each: workers stop more often than the task can end."""

E = TypeVar("E", TaskChange, TaskOutput)

LONG_AGO = datetime.min.replace(tzinfo=timezone.utc)


class Publisher:
    """``origin`` is the name of this process, which no other process has. ``hub`` is the hub of this server; a worker
    has none."""

    def __init__(
        self, clock: IReactorTime, store: IStore, broker: IBroker, origin: str, hub: Hub | None = None
    ) -> None:
        self._clock = clock
        self._store = store
        self._broker = broker
        self._origin = origin
        self._hub = hub
        self._for_hub: list[TaskChange] = []

    def publish(self, tasks: Sequence[Task]) -> None:
        """Publish the present states of tasks that this process has changed.

        Call it before the workers that hold the tasks get their hints, so that no server learns of an end before the
        creation.
        The hub of this server gets the changes in the reactor's next turn: the client that asked for a change gets its
        reply first.
        """
        if not tasks:
            return
        # the time matters for waiting tasks only, and every other change is on the path of each task
        now = LONG_AGO
        for task in tasks:
            if task.state is State.WAITING:
                now = self._store.now()
                break
        changes = changes_of(tasks, now)
        if self._hub is not None:
            if not self._for_hub:
                self._clock.callLater(0, self._deliver, self._hub)
            self._for_hub += changes
        for piece in _pieces(changes, lambda change: change.view):
            self._broker.announce(encode(EventBatch(self._store.installation, self._origin, piece)))

    def flush(self) -> None:
        """Send at once what was published: somebody waits for it, and this process does more before its next turn."""
        self._broker.flush()

    def publish_returned(self, tasks: Sequence[Task]) -> None:
        """Publish the present states of tasks that this worker has given back because it stops, and tell the owners of
        those that have been given back several times."""
        self.publish(tasks)
        if outputs := [returned_event(task) for task in tasks if task.returns >= RETURNS_TOLD]:
            self.publish_outputs(outputs)

    def publish_outputs(self, outputs: Sequence[TaskOutput]) -> None:
        """Publish progress and log lines of running tasks."""
        for piece in _pieces(outputs, lambda output: output.event):
            self._broker.announce(encode(EventBatch(self._store.installation, self._origin, outputs=piece)))

    def publish_worker_change(self) -> None:
        """Publish that this worker has started, stopped, or serves other kinds than before."""
        self._broker.announce(encode(EventBatch(self._store.installation, self._origin, workers=True)))

    def publish_routes(self, routes: Iterable[tuple[str, str]]) -> None:
        """Publish that in these routes due tasks wait or slots are free, which no change tells of."""
        self._broker.announce(encode(EventBatch(self._store.installation, self._origin, routes=sorted(set(routes)))))

    def publish_rights(self, user_ids: Iterable[int]) -> None:
        """Publish that the rights of these users have changed, or that some of their sessions have ended."""
        self._broker.announce(encode(EventBatch(self._store.installation, self._origin, rights=sorted(set(user_ids)))))

    def _deliver(self, hub: Hub) -> None:
        changes, self._for_hub = self._for_hub, []
        hub.deliver(changes)


def changes_of(tasks: Iterable[Task], now: datetime) -> list[TaskChange]:
    """The changes that led to the present states of these tasks. ``now`` decides which waiting tasks are due."""
    changes = []
    for t in tasks:
        due = t.state is not State.WAITING or t.run_at <= now
        changes.append(TaskChange(t.user_id, t.id, t.version, t.state, t.queue, t.kind, Raw(encode(view(t, now))), due))
    return changes


def _pieces(events: Sequence[E], text: Callable[[E], Raw]) -> Iterator[Sequence[E]]:
    """``text`` is the largest part of an event."""
    start = size = 0
    for n, event in enumerate(events):
        size += len(bytes(text(event)))
        if size >= MAX_BATCH_BYTES:
            yield events[start : n + 1]
            start, size = n + 1, 0
    if start < len(events):
        yield events[start:]
