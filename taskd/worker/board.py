"""What the worker tells its watchdog, and how it starts it."""

from __future__ import annotations

from typing import Protocol

from taskd.worker.executors.entries import IEntries, NoEntries


class IBoard(IEntries, Protocol):
    """Memory that the worker shares with its watchdog. All calls take microseconds. Only :meth:`rename` may fail."""

    def beaten(self) -> None:
        """The store has accepted a beat of the reactor."""

    def rename(self, name: str) -> None:
        """The worker is registered under this name from now on."""

    def stopping(self) -> None:
        """The worker has deregistered and ends: nobody has to be told of its death."""


class NoBoard(NoEntries):
    """For a worker without a watchdog."""

    def beaten(self) -> None:
        """Tell nobody."""

    def rename(self, name: str) -> None:
        """Tell nobody."""

    def stopping(self) -> None:
        """Tell nobody."""


class IWatchdog(Protocol):
    """See :class:`taskd.watchdog.starter.Watchdog`."""

    def start(self) -> None:
        """Start it, when the reactor runs. Does not fail."""

    def stop(self) -> None:
        """The worker is about to end. A watchdog that was not told so by the board lives on until the worker is dead,
        and tells the store."""


class NoWatchdog:
    """For tests."""

    def start(self) -> None:
        """Start nothing."""

    def stop(self) -> None:
        """Stop nothing."""
