"""What the worker tells its watchdog, and how it starts it."""

from __future__ import annotations

from typing import Protocol

from taskd.worker.executors.entries import IEntries, NoEntries


class IBoard(IEntries, Protocol):
    """Memory that the worker shares with its watchdog. All calls take microseconds. Only :meth:`rename` may fail."""

    @property
    def gate(self) -> int:
        """Grows when the watchdog gives back, in the worker's place, what has not begun."""

    def see_gate(self, number: int) -> None:
        """Nothing begins any more that was found before the gate was raised to this number."""

    def begins(self, task_id: int, dispatch: int) -> int:
        """This assignment is about to begin, unless the gate turns out to be raised when it is read after this call.
        Returns its place. The watchdog leaves it alone until :meth:`forget`."""

    def forget(self, at: int) -> None:
        """The assignment at this place is not held any more, or does not begin after all."""

    def beaten(self) -> None:
        """The store has accepted a beat of the reactor."""

    def rename(self, name: str) -> None:
        """The worker is registered under this name from now on."""

    def stopping(self) -> None:
        """The worker has deregistered and ends: nobody has to be told of its death."""


class NoBoard(NoEntries):
    """For a worker without a watchdog."""

    gate = 0

    def see_gate(self, number: int) -> None:
        """It is never raised."""

    def begins(self, task_id: int, dispatch: int) -> int:
        """Tell nobody."""
        return 0

    def forget(self, at: int) -> None:
        """Tell nobody."""

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
