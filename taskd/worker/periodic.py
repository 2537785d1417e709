"""Work that a worker repeats for as long as it lives."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure


class Periodic:
    """Runs ``work`` at the start, then every ``interval`` seconds, and when it is asked to. It never runs twice at a
    time. Whatever ``work`` raises is logged, and the next run comes all the same. A function as the interval is asked
    after each run."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        interval: float | Callable[[], float],
        work: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._clock = clock
        self._interval = interval
        self._work = work
        self._timer: IDelayedCall | None = None
        self._busy = False
        self._again = False
        self.running = False

    def start(self) -> None:
        """Run for the first time, now."""
        self.running = True
        self._run()

    def stop(self) -> None:
        """Run no more. A run that is under way goes on to its end."""
        self.running = False
        self._set_timer(None)

    def at_once(self) -> None:
        """Run now; if it is running, once more after that."""
        if self._busy:
            self._again = True
        elif self.running:
            self._run()

    def soon(self) -> None:
        """Run in the next turn of the reactor; if it is running now, once more after that."""
        if self._busy:
            self._again = True
        elif self.running:
            self._set_timer(0)

    def _run(self) -> None:
        self._set_timer(None)
        self._busy, self._again = True, False
        began = self._clock.seconds()
        Deferred.fromCoroutine(self._work()).addErrback(self._failed).addBoth(self._ended, began)

    def _failed(self, failure: Failure) -> None:
        self._log.failure("{what} failed, and goes on", failure, what=self._work.__qualname__)

    def _ended(self, _: object, began: float) -> None:
        self._busy = False
        if self.running:
            interval = self._interval() if callable(self._interval) else self._interval
            wait = 0.0 if self._again else began + interval - self._clock.seconds()
            self._set_timer(max(0.0, wait))

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None if seconds is None else self._clock.callLater(seconds, self._run)
