"""Runs one attempt: from a claimed task to its outcome. It knows neither store nor broker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from taskd.errors import TaskdError
from taskd.model import MAX_RESULT_BYTES, State, Task, encode_json
from taskd.ports import ITaskHandler, Outcome

MAX_ERROR_CHARS = 1000

_payload = msgspec.json.Decoder(dict[str, Any]).decode


class Stopped(Exception):
    """The attempt was ended from outside, by :meth:`Attempt.stop`. It has no outcome."""


class Attempt:
    """One task while a handler has it. ``done`` fires with its Outcome, or fails with Stopped."""

    __slots__ = ("_stopped", "done", "task")

    def __init__(self, task: Task) -> None:
        self.task = task
        self.done: Deferred[Outcome]
        self._stopped = False

    def stop(self) -> None:
        """End it: a CancelledError at what the handler awaits. Whatever the handler makes of it does not count."""
        self._stopped = True
        self.done.cancel()

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stopped


class Runner:
    """Runs tasks by the handlers of their kinds."""

    _log = Logger()

    def __init__(self, handlers: Iterable[ITaskHandler]) -> None:
        self._handlers = {handler.kind: handler for handler in handlers}

    @property
    def kinds(self) -> tuple[str, ...]:
        """What it can run."""
        return tuple(self._handlers)

    def run(self, task: Task) -> Attempt:
        """Begin an attempt."""
        attempt = Attempt(task)
        attempt.done = Deferred.fromCoroutine(self._run(attempt))
        return attempt

    async def _run(self, attempt: Attempt) -> Outcome:
        task = attempt.task
        try:
            handler = self._handlers.get(task.kind)
            if handler is None:
                raise TaskdError(f"no worker serves the kind {task.kind!r}; known are: {', '.join(self._handlers)}")
            payload = _payload(task.payload) if task.payload != "{}" else {}
            result = encode_json(await handler.run(task, payload), MAX_RESULT_BYTES, "result")
            outcome = Outcome(task.id, task.dispatch, task.attempt, State.COMPLETED, result)
        except (Exception, CancelledError, SystemExit) as e:
            outcome = Outcome(task.id, task.dispatch, task.attempt, State.FAILED, error=_why(e))
            if not isinstance(e, TaskdError | CancelledError):
                self._log.failure("task {id} attempt {attempt} failed", id=task.id, attempt=task.attempt)
        if attempt.stopped:
            raise Stopped
        return outcome


def _why(e: BaseException) -> str:
    """One line for people."""
    text = " ".join(str(e).split())
    if not isinstance(e, TaskdError):
        text = f"{type(e).__name__}: {text}" if text else type(e).__name__
    return text if len(text) <= MAX_ERROR_CHARS else text[: MAX_ERROR_CHARS - 3] + "..."
