"""One command under the reactor, until it ends or is interrupted."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from taskd.cli.context import explain
from taskd.cli.std_streams import flush, note
from taskd.cli.texts.catalogue import Texts
from taskd.client.errors import BROKEN_PIPE, ERROR, INTERRUPTED, TERMINATED, ClientError, OutputClosed

Perform = Callable[[], Coroutine[Any, Any, int]]


class Runner:
    """Runs one coroutine. What interrupts it cancels it, so that it can give the terminal back as it was."""

    def __init__(self, reactor: Any, texts: Texts) -> None:
        self._reactor = reactor
        self._texts = texts
        self._status = ERROR
        self._interrupted: int | None = None
        self._task: Deferred[int] | None = None

    def run(self, perform: Perform, pipe: int | None = None) -> int:
        """The exit status; on a signal 128 and its number. When the reader of ``pipe`` goes, nothing is left to do."""
        for number, status in ((signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)):
            self._handle(number, status)
        self._reactor.callWhenRunning(self._start, perform, pipe)
        self._reactor.run(installSignalHandlers=False)
        return self._status

    def _handle(self, number: int, status: int) -> None:
        # A signal handler may interrupt anything; the reactor calls back at a moment when nothing else goes on
        signal.signal(number, lambda number, frame: self._reactor.callFromThread(self._interrupt, status))

    def _start(self, perform: Perform, pipe: int | None) -> None:
        self._task = Deferred.fromCoroutine(perform())
        if pipe is not None and not self._task.called:
            self._reactor.addReader(_Reader(self._reactor, pipe, lambda: self._interrupt(BROKEN_PIPE)))
        self._task.addCallbacks(self._done, self._failed)
        self._task.addBoth(self._stop)

    def _interrupt(self, status: int) -> None:
        self._interrupted = status
        if self._task is not None:
            self._task.cancel()

    def _done(self, status: int) -> None:
        self._status = status

    def _failed(self, failure: Failure) -> None:
        if self._interrupted is not None:
            self._status = self._interrupted
            if self._status == INTERRUPTED:
                note("\n" + self._texts("interrupted"))
        elif failure.check(OutputClosed):
            self._status = BROKEN_PIPE
        elif isinstance(failure.value, ClientError):  # the error could not be reported where it should be
            note(f"taskclient: {explain(failure.value, self._texts)}")
            self._status = failure.value.exit
        else:
            why = f"{type(failure.value).__name__}: {failure.value}"
            note(f"taskclient: {self._texts('unexpected', why=' '.join(why.split()))}")

    def _stop(self, _: Any) -> None:
        if self._reactor.threadpool is not None:
            # A look-up of a name that hangs cannot be interrupted, and stop() would wait for its thread
            flush()
            os._exit(self._status)
        self._reactor.stop()


@implementer(IReadDescriptor)
class _Reader:
    """Hears when the reader of a pipe that we write has gone: epoll and poll tell so even where nothing is written."""

    def __init__(self, reactor: Any, pipe: int, gone: Callable[[], None]) -> None:
        self._reactor = reactor
        self._pipe = pipe
        self._gone = gone

    def fileno(self) -> int:
        return self._pipe

    def doRead(self) -> None:
        """There is nothing to read; a reactor that thinks so does not know this trick and is not asked again."""
        self._reactor.removeReader(self)

    def connectionLost(self, reason: Failure) -> None:
        self._gone()

    def logPrefix(self) -> str:
        return "reader"
