"""``progress`` events, and which of them are still current."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from msgspec import Struct

from taskd.cli.ui.rendering import ShownTask
from taskd.client.connection import read
from taskd.client.messages import Received
from taskd.model.states import State

REMEMBERED = 10_000
"""The most tasks whose last printed version or progress is remembered."""


class ProgressEvent(Struct):
    """A ``progress`` event. ``progress`` is from 0 to 1."""

    task_id: int
    attempt: int
    progress: float
    note: str | None = None


class ProgressView(Protocol):
    """Shows progress. It is called for every task that is watched, also for one without progress."""

    def changed(self, task: ShownTask) -> None:
        """The task has changed, and its change has been printed."""

    def advanced(self, event: ProgressEvent) -> None:
        """A task has reported its progress."""

    def reset(self) -> None:
        """Events may have been missed: the running tasks may have ended."""

    def close(self) -> None:
        """No event follows."""


_decode = msgspec.json.Decoder(ProgressEvent).decode


def read_progress(received: Received, server: str) -> ProgressEvent:
    """Decode a ``progress`` event. Raises ConnectionFailed."""
    return read(received.line, _decode, server)


class RunningTasks:
    """The newest known attempt of each task: with the task's text if it is running, or as ended."""

    def __init__(self) -> None:
        self._running: dict[int, tuple[int, str]] = {}
        self._ended: dict[int, int] = {}

    def update(self, task: ShownTask) -> bool:
        """Remember the task's state; returns whether it is running."""
        running = task.state == State.RUNNING.value
        if running:
            self._ended.pop(task.id, None)
            self._running[task.id] = task.attempt, task.task
            drop_oldest(self._running)
        elif task.attempt:
            self._running.pop(task.id, None)
            self._ended[task.id] = task.attempt
            drop_oldest(self._ended)
        return running

    def text(self, event: ProgressEvent) -> str | None:
        """The text of the event's task, empty if it is not known; None if the event's attempt has ended."""
        if event.attempt <= self._ended.get(event.task_id, 0):
            return None
        attempt, text = self._running.get(event.task_id, (0, ""))
        return None if event.attempt < attempt else text


def drop_oldest(known: dict[int, Any]) -> None:
    """Forget the oldest entry when there are more than REMEMBERED."""
    if len(known) > REMEMBERED:
        del known[next(iter(known))]
