"""What the user sees while a request waits until the server lets it in."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

from taskd.cli.texts.catalogue import Texts
from taskd.cli.ui.terminal import Output
from taskd.cli.ui.text import cut
from taskd.client.errors import ClientError


class Countdown:
    """An AdmissionListener: says once on standard error how long the wait is, and counts down on a terminal.
    ``measure`` is that of the Context."""

    def __init__(self, out: Output, texts: Texts, measure: Callable[[], os.terminal_size] | None) -> None:
        self._out = out
        self._texts = texts
        self._measure = measure
        self._said = False
        self._said_slow = False

    def put_off(self, error: ClientError, seconds: float) -> None:
        """Show the seconds that are left."""
        left = math.ceil(seconds)
        if not self._said:
            self._said = True
            self._out.note(self._texts("put_off", seconds=left))
        if self._measure is not None:
            self._out.foot([cut(self._texts("put_off_left", seconds=left), self._measure().columns - 1)])

    def slow(self) -> None:
        """Say once that the server takes its time."""
        if not self._said_slow:
            self._said_slow = True
            self._out.note(self._texts("slow"))

    def resumed(self) -> None:
        """Remove the line that counts down."""
        self._out.foot([])
