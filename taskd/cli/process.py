"""One command under the reactor, until it ends or a signal interrupts it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from taskd.cli.errors import BROKEN_PIPE, ERROR, INTERRUPTED, OutputClosed, exit_status
from taskd.cli.reporting import Reporter
from taskd.cli.std_streams import flush, note
from taskd.cli.texts.catalogue import Texts
from taskd.client.errors import ClientError


class CommandProcess:
    """Runs one command. An interruption cancels its coroutine, which then can restore the terminal."""

    def __init__(self, reactor: Any, texts: Texts, reporter: Reporter) -> None:
        self._reactor = reactor
        self._texts = texts
        self._reporter = reporter
        self._status = ERROR
        self._interrupted: int | None = None
        self._task: Deferred[None] = Deferred()

    def run(self, command: Coroutine[Any, Any, int], pipe: int | None = None) -> int:
        """The exit status; after a signal 128 and its number. The command also ends when ``pipe`` has no reader."""
        self._catch_signals()
        self._reactor.callWhenRunning(self._start, command, pipe)
        self._reactor.run()
        return self._status

    def _catch_signals(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        # A signal handler can interrupt any code; the reactor calls back between two events
        self._reactor.callFromThread(self._interrupt, 128 + number)

    def _start(self, command: Coroutine[Any, Any, int], pipe: int | None) -> None:
        # Replace the handlers that the reactor has just installed, but keep its wakeup descriptor: without it, a signal
        # that comes right before the reactor sleeps is not handled until something else wakes the reactor
        self._catch_signals()
        self._task = Deferred.fromCoroutine(self._supervise(command))
        if pipe is not None and not self._task.called:
            self._reactor.addReader(_PipeWatch(self._reactor, pipe, partial(self._interrupt, BROKEN_PIPE)))

    def _interrupt(self, status: int) -> None:
        self._interrupted = status
        self._task.cancel()

    async def _supervise(self, command: Coroutine[Any, Any, int]) -> None:
        try:
            self._status = await command
        except Exception as e:
            self._status = self._failed(e) if self._interrupted is None else self._interrupted
            if self._status == INTERRUPTED:
                note("\n" + self._texts("interrupted"))
        finally:
            if self._reactor.threadpool is not None:
                # A name lookup that hangs cannot be interrupted, and stop() would wait for its thread
                flush()
                os._exit(self._status)
            self._reactor.stop()

    def _failed(self, error: Exception) -> int:
        """The exit status for an exception that nobody has reported."""
        if isinstance(error, OutputClosed):
            return BROKEN_PIPE
        if isinstance(error, ClientError):  # the normal report of this error has failed
            note(f"taskclient: {self._reporter.explain(error)}")
            return exit_status(error)
        why = f"{type(error).__name__}: {error}"
        note(f"taskclient: {self._texts('unexpected', why=' '.join(why.split()))}")
        return ERROR


@implementer(IReadDescriptor)
class _PipeWatch:
    """Notices that the reader of our output pipe has closed it: epoll and poll report that without a write."""

    def __init__(self, reactor: Any, pipe: int, closed: Callable[[], None]) -> None:
        self._reactor = reactor
        self._pipe = pipe
        self._closed = closed

    def fileno(self) -> int:
        return self._pipe

    def doRead(self) -> None:
        """A reactor that calls this cannot watch a pipe for writing this way; do without."""
        self._reactor.removeReader(self)

    def connectionLost(self, reason: Failure) -> None:
        self._closed()

    def logPrefix(self) -> str:
        return "pipe"
