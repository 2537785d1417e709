"""Notes of which handler runs in which thread of the worker, so that a handler that blocks can be named."""

from __future__ import annotations

from typing import Protocol


class IEntries(Protocol):
    """Notes for the watchdog. All calls take microseconds and never fail.

    Between ``enter`` and ``leave`` the calling thread runs code of that handler. An async handler enters and leaves
    with each step. Calls do not nest in one thread.
    """

    def enter(self, task_id: int, dispatch: int, kind: str) -> None:
        """The calling thread enters a handler."""

    def leave(self) -> None:
        """The calling thread has left it."""


class NoEntries:
    """For a worker without a watchdog."""

    def enter(self, task_id: int, dispatch: int, kind: str) -> None:
        """Note nothing."""

    def leave(self) -> None:
        """Note nothing."""


NO_ENTRIES = NoEntries()
