"""A system clock that a test sets for one process while it runs, by libfaketime."""

from __future__ import annotations

import os
from pathlib import Path

from tests import programs, services


class SystemClock:
    """The clock of the processes that get :meth:`env` in their environment. ``folder`` is for its file.

    Their monotonic clocks stay as they are. One thing fails under libfaketime 0.9.10: ``time.sleep``, which Python 3.11
    and newer base on an absolute monotonic time. Handlers must wait on an event instead.
    """

    def __init__(self, folder: Path, name: str = "clock") -> None:
        services.require("faketime")
        self._file = folder / name
        self.set(0)

    def env(self) -> dict[str, str]:
        """The variables of a process that shall have this clock."""
        return {
            "LD_PRELOAD": str(programs.faketime()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            # the name until 0.9.9, and since then
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # otherwise waits on condition variables end at once, and Python's threads fight for the interpreter
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }

    def set(self, seconds: float) -> None:
        """Set the clock so far ahead of the true time; negative: behind it."""
        # renamed into place: a process that reads a file that is half written would have no time at all
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+f}\n")
        os.replace(fresh, self._file)
