"""Keeps the worker from beginning what its watchdog has given back in its place."""

from __future__ import annotations

from collections.abc import Callable

from taskd.worker.board import IBoard


class Gate:
    """While the reactor stands still, the watchdog raises the gate and gives back what has not begun.

    A worker that sees this begins nothing that it has found before, and gives it back itself: the watchdog may not have
    reached the store. It also may reach it late. So the worker looks for nothing until a beat that it has sent since is
    accepted: the watchdog's statement has no effect after that beat, and what it did before shows in the next look.

    ``on_raised`` is called when the worker sees that the gate was raised, ``on_open`` when it may look again.
    """

    def __init__(self, board: IBoard, on_raised: Callable[[], None], on_open: Callable[[], None]) -> None:
        self._board = board
        self._on_raised = on_raised
        self._on_open = on_open
        self.number = board.gate
        """The number of the gate, as the worker has seen it."""
        self.is_open = True
        """Whether the worker may look."""

    @property
    def is_raised(self) -> bool:
        """Whether the gate was raised and :meth:`check` has not been called since."""
        return self._board.gate != self.number

    def check(self) -> None:
        """See whether the gate was raised, and let nothing begin if it was."""
        number = self._board.gate
        if number != self.number:
            self.number = number
            self.is_open = False
            # only now: from here on, the watchdog takes the reactor for one that runs
            self._board.see_gate(number)
            self._on_raised()

    def beaten(self, number: int) -> None:
        """A beat was accepted that was sent when the gate had this number."""
        if not self.is_open and number == self.number:
            self.is_open = True
            self._on_open()
