"""Follows a task's log: sends what comes after a reply as events, until the task has ended.

A follow reads from the store. Events from other processes only tell it when to look, so it sends each line once and in
order even if events are lost, doubled or late.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from taskd.api.cursors import log_cursor
from taskd.api.log_pages import read_lines, view_lines
from taskd.api.states import StateReader
from taskd.events.watch_hub import Hub, Send
from taskd.model.errors import Draining, NotFound, Unavailable
from taskd.model.states import TERMINAL, State
from taskd.ports.logs import LogPlace
from taskd.ports.store import IStore
from taskd.protocol import limits
from taskd.protocol.messages import encode

PACE = 0.25
"""Seconds between two looks at least, and so between two events."""

RECHECK = 10.0
"""Seconds after which it looks by itself: an event may be lost."""

MAX_EVENT_CHARS = 256 * 1024
"""About the most characters in the lines of one event; the next event continues."""


class LogFollow:
    """One reader's follow of one task's log. It does nothing before :meth:`begin`. It calls ``on_end`` when it is
    closed or the task has ended."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        states: StateReader,
        hub: Hub,
        user_id: int,
        task_id: int,
        send: Send,
        large_reply: AbstractAsyncContextManager[Any],
        on_end: Callable[[LogFollow], None],
    ) -> None:
        self.task_id = task_id
        self.user_id = user_id
        self.closed = False
        self._clock = clock
        self._store = store
        self._states = states
        self._hub = hub
        self._send = send
        self._large_reply = large_reply
        self._on_end = on_end
        self._after: LogPlace | None = None
        self._changed = False
        self._idle = False
        self._pause: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None

    def begin(self, after: LogPlace | None) -> None:
        """Send what stands after this place now, and whatever comes."""
        if not self.closed:
            self._after = after
            self._hub.listen(self.task_id, self._on_event)
            Deferred.fromCoroutine(self._run())

    def close(self) -> None:
        """Send nothing more."""
        self._end()
        self._wake()

    def refuse(self) -> None:
        """The reader may not see the task any more: for it, the task is gone."""
        self._emit("log_end", state=None)
        self.close()

    def _end(self) -> None:
        if not self.closed:
            self.closed = True
            self._hub.forget_listener(self.task_id, self._on_event)
            self._on_end(self)

    async def _run(self) -> None:
        try:
            while not self.closed:
                self._changed = False
                more = await self._send_new_lines()
                if not self.closed:
                    await self._wait(PACE)
                if not (self.closed or more or self._changed):
                    self._idle = True
                    await self._wait(RECHECK - PACE)
                    self._idle = False
        except Draining:
            pass  # the connection is closed
        finally:
            self._end()

    async def _send_new_lines(self) -> bool:
        """True if there are more lines already."""
        try:
            async with self._large_reply:
                if self.closed:
                    return False
                # The task before its log: after its end a task writes no more lines.
                state = await self._state()
                found = await read_lines(self._store, self.task_id, self._after, limits.MAX_LOG_LINES, MAX_EVENT_CHARS)
                if found.lines:
                    self._after = found.lines[-1].place
                    self._emit("log", lines=view_lines(found.lines), cursor=log_cursor(self._after), cut=found.cut)
                if not found.more and (state is None or state in TERMINAL):
                    self._emit("log_end", state=None if state is None else state.value)
                    self._end()
                return found.more
        except Unavailable:
            pass  # the next look finds the lines
        except Draining:
            raise
        except Exception:
            self._log.failure("following the log of task {task_id}", task_id=self.task_id)
        return False

    async def _state(self) -> State | None:
        """None if taskd has deleted the task."""
        try:
            return (await self._states.own_states(self.user_id, [self.task_id], "task_id"))[self.task_id]
        except NotFound:
            return None

    def _emit(self, event: str, **fields: Any) -> None:
        if not self.closed:
            self._send((encode({"event": event, "task_id": self.task_id, **fields}),))

    def _on_event(self) -> None:
        self._changed = True
        if self._idle:
            self._wake()

    def _wait(self, seconds: float) -> Deferred[None]:
        self._pause = Deferred()
        self._timer = self._clock.callLater(seconds, self._wake)
        return self._pause

    def _wake(self) -> None:
        pause, self._pause = self._pause, None
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        if pause is not None:
            pause.callback(None)
