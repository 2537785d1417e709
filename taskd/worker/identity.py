"""The name under which the worker holds its tasks."""

from __future__ import annotations

from collections.abc import Callable


class Identity:
    """The worker's present name. ``new_name`` makes names that nobody has or had: a name that was fenced never counts
    again, so the worker goes on under another one."""

    def __init__(self, new_name: Callable[[], str]) -> None:
        self._new_name = new_name
        self.name = new_name()

    def rename(self) -> None:
        """Take a new name."""
        self.name = self._new_name()
