"""Following a task's log: what comes after a reply, as events, until the task has ended.

A follow is fed from the store. News only tell it when to look, so that whatever is lost, doubled or late of them, each
line is sent once and in order.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from taskd.api.log_pages import log_cursor, read_lines, view_lines
from taskd.events.hub import Hub
from taskd.model.errors import Draining, Unavailable
from taskd.model.states import TERMINAL
from taskd.ports.logs import LogPlace
from taskd.ports.store import IStore
from taskd.protocol import limits
from taskd.protocol.messages import encode

PACE = 0.25
"""Seconds between two looks at least, and so between two events."""

RECHECK = 10.0
"""Seconds after which it looks by itself: news are not promised to arrive."""

MAX_EVENT_CHARS = 256 * 1024
"""Of the lines of one event, more or less; the next one goes on."""


class Follow:
    """One reader's follow of one task's log. It does nothing before :meth:`begin`; ``on_end`` is called when it is
    over, be it closed or at the task's end."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        hub: Hub,
        user_id: int,
        task_id: int,
        send: Callable[[bytes], None],
        reading: AbstractAsyncContextManager[Any],
        on_end: Callable[[Follow], None],
    ) -> None:
        self.task_id = task_id
        self.closed = False
        self._clock = clock
        self._store = store
        self._hub = hub
        self._user_id = user_id
        self._send = send
        self._reading = reading
        self._on_end = on_end
        self._after: LogPlace | None = None
        self._news = False
        self._idle = False
        self._pause: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None

    def begin(self, after: LogPlace | None) -> None:
        """Send what stands behind this place now, and whatever comes."""
        if not self.closed:
            self._after = after
            self._hub.listen(self.task_id, self._stir)
            Deferred.fromCoroutine(self._run())

    def close(self) -> None:
        """Send nothing more."""
        self._over()
        self._go_on()

    def _over(self) -> None:
        if not self.closed:
            self.closed = True
            self._hub.forget_listener(self.task_id, self._stir)
            self._on_end(self)

    async def _run(self) -> None:
        try:
            while not self.closed:
                self._news = False
                again = await self._look()
                if not self.closed:
                    await self._wait(PACE)
                if not (self.closed or again or self._news):
                    self._idle = True
                    await self._wait(RECHECK - PACE)
                    self._idle = False
        except Draining:
            pass  # the connection is gone
        finally:
            self._over()

    async def _look(self) -> bool:
        """Send what is new; whether there is more already."""
        try:
            async with self._reading:
                if self.closed:
                    return False
                # The task before its log: what has ended says no more.
                tasks = await self._store.get_tasks(self._user_id, [self.task_id])
                found = await read_lines(self._store, self.task_id, self._after, limits.MAX_LOG_LINES, MAX_EVENT_CHARS)
                if found.lines:
                    self._after = found.lines[-1].place
                    self._tell("log", lines=view_lines(found.lines), cursor=log_cursor(self._after), cut=found.cut)
                if not found.more and (not tasks or tasks[0].state in TERMINAL):
                    self._tell("log_end", state=tasks[0].state.value if tasks else None)
                    self._over()
                return found.more
        except Unavailable:
            pass  # it is looked again later
        except Draining:
            raise
        except Exception:
            self._log.failure("following the log of task {task_id}", task_id=self.task_id)
        return False

    def _tell(self, event: str, **fields: Any) -> None:
        if not self.closed:
            self._send(encode({"event": event, "task_id": self.task_id, **fields}) + b"\n")

    def _stir(self) -> None:
        self._news = True
        if self._idle:
            self._go_on()

    def _wait(self, seconds: float) -> Deferred[None]:
        self._pause = Deferred()
        self._timer = self._clock.callLater(seconds, self._go_on)
        return self._pause

    def _go_on(self) -> None:
        pause, self._pause = self._pause, None
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        if pause is not None:
            pause.callback(None)
