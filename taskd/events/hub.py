"""The event hub: who wants to hear of which changes.

Watches hear of all changes of one user's tasks, and of what those that run say. Waits hear of the end of some tasks.
Listeners hear that there is something new about a task. All register *before* they read the store, so that what changes
meanwhile is not missed; versions tell what the reader has seen already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from twisted.internet.defer import Deferred

from taskd.events.records import TaskChange, TaskOutput
from taskd.model.states import TERMINAL
from taskd.model.tasks import Task

GAP = b'{"event":"gap"}\n'
DRAINING = b'{"event":"draining"}\n'
_BEFORE, _AFTER = b'{"event":"task","task":', b"}\n"

MAX_SEEN = 4096
"""Versions a watch remembers; the oldest are forgotten first, and matter least."""

MAX_EARLY = 1024 * 1024
"""Bytes of changes a watch keeps while its snapshot is being read; with more it is told of a gap behind it."""

PIECE = 64 * 1024
"""Bytes of events sent at a time, more or less, so that a reader that stops reading stops the sending."""


class _Event(NamedTuple):
    task_id: int
    version: int
    view: bytes


class Watch:
    """One reader's live view of one user's tasks. ``send`` gets encoded event lines, several at once.

    Each version of a task is sent once at most and never after a later one, in whatever order the news come.
    """

    def __init__(self, hub: Hub, user_id: int, send: Callable[[bytes], None]) -> None:
        self._hub = hub
        self._send = send
        self._seen: dict[int, int] = {}
        self._early: list[_Event] | None = []
        self._early_bytes = 0
        self._missed = False
        self.user_id = user_id
        self.closed = False

    def open(self, snapshot: Iterable[Task]) -> None:
        """The snapshot has been sent: send what came since it was asked for, then everything as it comes."""
        if self.closed:
            return
        self._seen = {task.id: task.version for task in snapshot}
        early, self._early = self._early, None
        if self._missed:
            self.gap()
        elif early:
            self._emit(early)

    def close(self) -> None:
        """Hear no more."""
        self.closed = True
        self._hub.forget_watch(self)

    def deliver(self, changes: Sequence[TaskChange]) -> None:
        """Changes of this user's tasks, in the order in which they arrived."""
        events = [_Event(change.task_id, change.version, bytes(change.view)) for change in changes]
        if self._early is None:
            self._emit(events)
        elif not self._missed:
            self._early += events
            self._early_bytes += sum(len(event.view) for event in events)
            if self._early_bytes > MAX_EARLY:
                self._early, self._missed = [], True

    def hear(self, said: Sequence[TaskOutput]) -> None:
        """What running tasks of this user say. The snapshot has the last of it: what comes before is dropped."""
        if self._early is not None:
            return
        size = 0
        lines: list[bytes] = []
        for each in said:
            lines += (bytes(each.event), b"\n")
            size += len(lines[-2])
            if size >= PIECE and not self.closed:
                self._send(b"".join(lines))
                lines, size = [], 0
        if lines and not self.closed:
            self._send(b"".join(lines))

    def _emit(self, events: Iterable[_Event]) -> None:
        seen, size = self._seen, 0
        lines: list[bytes] = []
        for task_id, version, view in events:
            if self.closed:
                return
            if version <= seen.get(task_id, 0):
                continue
            seen.pop(task_id, None)  # so that it becomes the youngest
            seen[task_id] = version
            line = _BEFORE + view + _AFTER
            lines.append(line)
            size += len(line)
            if size >= PIECE:
                self._send(b"".join(lines))
                lines, size = [], 0
        while len(seen) > MAX_SEEN:
            del seen[next(iter(seen))]
        if lines and not self.closed:
            self._send(b"".join(lines))

    def gap(self) -> None:
        """Changes may have been missed: the reader must watch again."""
        if self._early is not None:
            self._missed = True  # the snapshot is still to come, and the gap goes behind it
        elif not self.closed:
            self.close()
            self._send(GAP)


class Wait:
    """Fires ``changed`` when none of the ids remains, or when news may have been missed and the store must be asked."""

    def __init__(self, hub: Hub, ids: Iterable[int]) -> None:
        self._hub = hub
        self.remaining = set(ids)
        self.size = len(self.remaining)
        self.changed: Deferred[None] = Deferred()

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
    """Passes changes, and what running tasks say, on to the watches, waits and listeners of this server."""

    def __init__(self) -> None:
        self._watches: dict[int, set[Watch]] = {}
        self._waits: dict[int, set[Wait]] = {}
        self._listeners: dict[int, set[Callable[[], None]]] = {}

    def watch(self, user_id: int, send: Callable[[bytes], None]) -> Watch:
        """A new watch; it gathers changes from now on and sends them once it is opened."""
        watch = Watch(self, user_id, send)
        self._watches.setdefault(user_id, set()).add(watch)
        return watch

    def wait(self, ids: Iterable[int]) -> Wait:
        """A new wait for the end of these tasks."""
        wait = Wait(self, ids)
        for task_id in wait.remaining:
            self._waits.setdefault(task_id, set()).add(wait)
        return wait

    def listen(self, task_id: int, on_news: Callable[[], None]) -> None:
        """Call ``on_news`` whenever this task has changed or said something, or news may have been missed."""
        self._listeners.setdefault(task_id, set()).add(on_news)

    def pass_on(self, said: Sequence[TaskOutput]) -> None:
        """Tell whom it may concern what running tasks say."""
        if self._watches:
            mine: dict[int, list[TaskOutput]] = {}
            for each in said:
                if each.user_id in self._watches:
                    mine.setdefault(each.user_id, []).append(each)
            for user_id, theirs in mine.items():
                for watch in tuple(self._watches.get(user_id, ())):
                    watch.hear(theirs)
        self._wake(each.task_id for each in said)

    def publish(self, changes: Sequence[TaskChange]) -> None:
        """Tell whom it may concern."""
        if self._watches:
            mine: dict[int, list[TaskChange]] = {}
            for change in changes:
                if change.user_id in self._watches:
                    mine.setdefault(change.user_id, []).append(change)
            for user_id, theirs in mine.items():
                for watch in tuple(self._watches.get(user_id, ())):
                    watch.deliver(theirs)  # nothing is sent to one that is closed meanwhile
        if self._waits:
            for change in changes:
                if change.task_id in self._waits and change.state in TERMINAL:
                    for wait in tuple(self._waits[change.task_id]):
                        wait.ended([change.task_id])
        self._wake(change.task_id for change in changes)

    def gap(self) -> None:
        """News may have been missed: watchers watch again, all others look into the store."""
        for watches in tuple(self._watches.values()):
            for watch in tuple(watches):
                watch.gap()
        for waits in tuple(self._waits.values()):
            for wait in tuple(waits):
                wait.wake()
        self._wake(tuple(self._listeners))

    def _wake(self, task_ids: Iterable[int]) -> None:
        if self._listeners:
            for task_id in task_ids:
                for on_news in tuple(self._listeners.get(task_id, ())):
                    on_news()

    def forget_watch(self, watch: Watch) -> None:
        """Drop a watch, if it is there."""
        _drop(self._watches, watch.user_id, watch)

    def forget_wait(self, wait: Wait, task_id: int) -> None:
        """Drop a wait for one task, if it is there."""
        _drop(self._waits, task_id, wait)

    def forget_listener(self, task_id: int, on_news: Callable[[], None]) -> None:
        """Drop a listener, if it is there."""
        _drop(self._listeners, task_id, on_news)


def _drop(registry: dict[int, set], key: int, value: object) -> None:  # type: ignore[type-arg]
    found = registry.get(key)
    if found is not None:
        found.discard(value)
        if not found:
            del registry[key]
