"""The event hub of a server: it passes changes to the watches, waits and listeners that want them.

A watch gets all changes of one user's tasks, and the output of those that run. A wait fires when some tasks have ended.
A listener is called when there is something new about a task. All register *before* they read the store, so that they
miss no change in between; version numbers tell which changes the reader has seen already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from twisted.internet.defer import Deferred

from taskd.events.records import TaskChange, TaskOutput
from taskd.model.states import TERMINAL
from taskd.model.tasks import Task

GAP = b'{"event":"gap"}'
DRAINING = b'{"event":"draining"}'
_BEFORE, _AFTER = b'{"event":"task","task":', b"}"

MAX_SEEN = 4096
"""Versions that a watch remembers; it forgets the oldest first, which matter least."""

MAX_EARLY = 1024 * 1024
"""Bytes of changes that a watch keeps while its snapshot is read; with more it sends a gap after the snapshot."""

PIECE = 64 * 1024
"""A watch sends about so many bytes of events at a time, so that it can stop when the reader does not read."""

E = TypeVar("E", TaskChange, TaskOutput)

Send = Callable[[Sequence[bytes]], None]
"""Sends encoded events, each a JSON text without line end."""


class Watch:
    """One reader's live view of one user's tasks.

    It sends each version of a task at most once and never after a later one, in whatever order the changes arrive.
    """

    def __init__(self, hub: Hub, user_id: int, send: Send) -> None:
        self._hub = hub
        self._send = send
        self._seen: dict[int, int] = {}
        self._early: list[TaskChange] | None = []
        self._early_bytes = 0
        self._missed = False
        self.user_id = user_id
        self.closed = False

    def open(self, snapshot: Iterable[Task]) -> None:
        """The reader has the snapshot: send what changed since it was asked for, then every change as it comes."""
        if self.closed:
            return
        self._seen = {task.id: task.version for task in snapshot}
        early, self._early = self._early, None
        if self._missed:
            self.gap()
        elif early:
            self._emit(early)

    def close(self) -> None:
        """Send nothing more."""
        self.closed = True
        self._hub.forget_watch(self)

    def deliver(self, changes: Sequence[TaskChange]) -> None:
        """Changes of this user's tasks, in the order in which they arrived."""
        if self._early is None:
            self._emit(changes)
        elif not self._missed:
            self._early += changes
            self._early_bytes += sum(len(bytes(change.view)) for change in changes)
            if self._early_bytes > MAX_EARLY:
                self._early, self._missed = [], True

    def deliver_outputs(self, outputs: Sequence[TaskOutput]) -> None:
        """Output of this user's running tasks. Before the snapshot it is dropped, since the snapshot has the latest."""
        if self._early is None:
            self._send_pieces(bytes(output.event) for output in outputs)

    def gap(self) -> None:
        """Changes may have been missed: the reader must watch again."""
        if self._early is not None:
            self._missed = True  # the snapshot comes first, and the gap after it
        elif not self.closed:
            self.close()
            self._send((GAP,))

    def _emit(self, changes: Iterable[TaskChange]) -> None:
        seen = self._seen
        events = []
        for change in changes:
            task_id, version = change.task_id, change.version
            if version > seen.get(task_id, 0):
                seen.pop(task_id, None)  # so that it becomes the youngest
                seen[task_id] = version
                events.append(_BEFORE + bytes(change.view) + _AFTER)
        while len(seen) > MAX_SEEN:
            del seen[next(iter(seen))]
        self._send_pieces(events)

    def _send_pieces(self, events: Iterable[bytes]) -> None:
        size = 0
        piece: list[bytes] = []
        for event in events:
            piece.append(event)
            size += len(event)
            if size >= PIECE:
                if self.closed:
                    return
                self._send(piece)
                piece, size = [], 0
        if piece and not self.closed:
            self._send(piece)


class Wait:
    """Fires ``changed`` when all tasks have ended, or when events may have been missed and the waiter must look into
    the store."""

    def __init__(self, hub: Hub, ids: Iterable[int]) -> None:
        self._hub = hub
        self.remaining: set[int] = set()
        self.changed: Deferred[None] = Deferred()
        self.more(ids)
        self.size = len(self.remaining)

    def more(self, ids: Iterable[int]) -> None:
        """Wait for the end of these, too."""
        for task_id in ids:
            self.remaining.add(task_id)
            self._hub.note_wait(self, task_id)

    def ended(self, ids: Iterable[int]) -> None:
        """These tasks have reached a terminal state."""
        for task_id in ids:
            self.remaining.discard(task_id)
            self._hub.forget_wait(self, task_id)
        if not self.remaining:
            self.wake()

    def wake(self) -> None:
        """Let the waiter look again."""
        if not self.changed.called:
            self.changed.callback(None)

    def rearm(self) -> None:
        """Wait on after a look at the store."""
        self.changed = Deferred()

    def close(self) -> None:
        """Wait no more."""
        for task_id in self.remaining:
            self._hub.forget_wait(self, task_id)


class Hub:
    """The watches, waits and listeners of one server. ``on_changes`` gets all changes, whoever wants them."""

    def __init__(self, on_changes: Callable[[Sequence[TaskChange]], None] | None = None) -> None:
        self._on_changes = on_changes
        self._watches: dict[int, set[Watch]] = {}
        self._waits: dict[int, set[Wait]] = {}
        self._listeners: dict[int, set[Callable[[], None]]] = {}

    def watch(self, user_id: int, send: Send) -> Watch:
        """A new watch; it collects changes from now on and sends them once it is opened."""
        watch = Watch(self, user_id, send)
        self._watches.setdefault(user_id, set()).add(watch)
        return watch

    def wait(self, ids: Iterable[int]) -> Wait:
        """A new wait for the end of these tasks."""
        return Wait(self, ids)

    def listen(self, task_id: int, on_event: Callable[[], None]) -> None:
        """Call ``on_event`` whenever this task has a change or output, or when events may have been missed."""
        self._listeners.setdefault(task_id, set()).add(on_event)

    def deliver(self, changes: Sequence[TaskChange]) -> None:
        """Pass changes to whoever watches, waits or listens."""
        if self._on_changes is not None:
            self._on_changes(changes)
        for user_id, theirs in self._by_watched_user(changes):
            for watch in tuple(self._watches.get(user_id, ())):
                watch.deliver(theirs)  # a watch that was closed meanwhile sends nothing
        if self._waits:
            for change in changes:
                if change.task_id in self._waits and change.state in TERMINAL:
                    for wait in tuple(self._waits[change.task_id]):
                        wait.ended([change.task_id])
        self._call_listeners(change.task_id for change in changes)

    def deliver_outputs(self, outputs: Sequence[TaskOutput]) -> None:
        """Pass the output of running tasks to whoever watches or listens."""
        for user_id, theirs in self._by_watched_user(outputs):
            for watch in tuple(self._watches.get(user_id, ())):
                watch.deliver_outputs(theirs)
        self._call_listeners(output.task_id for output in outputs)

    def gap(self) -> None:
        """Events may have been missed: watchers watch again, all others look into the store."""
        for watches in tuple(self._watches.values()):
            for watch in tuple(watches):
                watch.gap()
        for waits in tuple(self._waits.values()):
            for wait in tuple(waits):
                wait.wake()
        self._call_listeners(tuple(self._listeners))

    def forget_watch(self, watch: Watch) -> None:
        """Drop a watch, if it is there."""
        _drop(self._watches, watch.user_id, watch)

    def note_wait(self, wait: Wait, task_id: int) -> None:
        """A wait is for this task."""
        self._waits.setdefault(task_id, set()).add(wait)

    def forget_wait(self, wait: Wait, task_id: int) -> None:
        """Drop a wait for one task, if it is there."""
        _drop(self._waits, task_id, wait)

    def forget_listener(self, task_id: int, on_event: Callable[[], None]) -> None:
        """Drop a listener, if it is there."""
        _drop(self._listeners, task_id, on_event)

    def _by_watched_user(self, events: Iterable[E]) -> Iterable[tuple[int, list[E]]]:
        found: dict[int, list[E]] = {}
        if self._watches:
            for event in events:
                if event.user_id in self._watches:
                    found.setdefault(event.user_id, []).append(event)
        return found.items()

    def _call_listeners(self, task_ids: Iterable[int]) -> None:
        if self._listeners:
            for task_id in task_ids:
                for on_event in tuple(self._listeners.get(task_id, ())):
                    on_event()


def _drop(registry: dict[int, set], key: int, value: object) -> None:  # type: ignore[type-arg]
    found = registry.get(key)
    if found is not None:
        found.discard(value)
        if not found:
            del registry[key]
