"""Finds the executor for a task and has it run an attempt. It knows neither store nor broker."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from taskd.model.tasks import Task
from taskd.model.text import one_line
from taskd.ports.handler import ITaskHandler
from taskd.ports.workers import KindInfo
from taskd.worker.attempt import Attempt
from taskd.worker.context import OutputListener
from taskd.worker.executors import forks
from taskd.worker.executors.entries import NO_ENTRIES, IEntries
from taskd.worker.executors.executor import IExecutor
from taskd.worker.executors.process import ProcessExecutor
from taskd.worker.executors.program import ProgramExecutor
from taskd.worker.executors.reactor import ReactorExecutor
from taskd.worker.executors.thread import ThreadExecutor
from taskd.worker.executors.thread_pool import IThreads
from taskd.worker.forkserver.client import ForkServerClient
from taskd.worker.handler_results import Fault, handler_raised
from taskd.worker.programs import Command

_decode_payload = msgspec.json.Decoder(dict[str, Any]).decode


class Runner:
    """Runs tasks by the handlers of their kinds, and by programs.

    If two handlers serve the same kind, the later one is used. Handlers that block need ``threads``, those with
    isolation ``process`` need the ``forkserver``, programs need both. ``entries`` learns which handler runs in
    which thread. ``chance`` gives random numbers from 0 to 1.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        handlers: Iterable[ITaskHandler],
        *,
        threads: IThreads | None = None,
        forkserver: ForkServerClient | None = None,
        programs: Iterable[Command] = (),
        entries: IEntries = NO_ENTRIES,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._threads = threads
        self._forkserver = forkserver
        self._chance = chance
        self._running: set[Attempt] = set()
        self._handlers: dict[str, ITaskHandler | Command] = {handler.kind: handler for handler in handlers}
        self._handlers.update((command.kind, command) for command in programs)
        self.kinds: Mapping[str, KindInfo] = {kind: info_of(handler) for kind, handler in self._handlers.items()}
        self._executors: dict[str, IExecutor] = {"async": ReactorExecutor(clock, entries)}
        if threads is not None:
            self._executors["thread"] = ThreadExecutor(threads, entries)
        if forkserver is not None:
            self._executors["process"] = ProcessExecutor(forkserver)
        if threads is not None and forkserver is not None:
            self._executors["program"] = ProgramExecutor(forkserver, threads)
        for info in self.kinds.values():
            if info.isolation not in self._executors:
                raise ValueError(f"the kind {info.kind!r} needs threads or a fork server")

    @property
    def hung(self) -> Mapping[str, int]:
        """By isolation, how many slots are taken by handlers that should have ended. Isolations without any are left
        out."""
        return Counter(self.kinds[attempt.task.kind].isolation for attempt in self._running if attempt.hung)

    @property
    def running_ids(self) -> set[int]:
        """The ids of all tasks of which something runs, also of those whose outcome is there."""
        return {attempt.task.id for attempt in self._running}

    async def start(self) -> None:
        """Start the threads and the fork server. Raises SettingsError if child processes cannot import the handlers."""
        forks.watch(self._clock)
        if self._threads is not None:
            self._threads.start()
        if self._forkserver is not None:
            await self._forkserver.start()

    async def stop(self) -> None:
        """Stop all attempts. A thread or a child process that hangs delays this by a few seconds at most. Never
        fails."""
        for attempt in list(self._running):
            try:
                attempt.stop()
            except Exception:
                self._log.failure("task {id} cannot be stopped", id=attempt.task.id)
        for each in self._forkserver, self._threads:
            try:
                if each is not None:
                    await each.stop()
            except Exception:
                self._log.failure("a part of the worker cannot be stopped")

    def run(self, task: Task, user: str, listener: OutputListener) -> Attempt:
        """Begin an attempt of a task that belongs to ``user``. ``listener`` receives its output until it ends."""
        handler = self._handlers.get(task.kind)
        attempt = Attempt(task, self._clock, handler, self._chance, listener, self._running.discard)
        self._running.add(attempt)
        try:
            attributes = {
                "id": task.id,
                "attempt": task.attempt,
                "max_attempts": attempt.max_attempts,
                "user": user,
                "task": task.task,
                "kind": task.kind,
                "queue": task.queue,
                "payload": _decode_payload(task.payload) if task.payload != "{}" else {},
            }
            if handler is None:
                attempt.end(Fault(f"this worker does not serve the kind {task.kind!r}"))
            else:
                self._executors[handler.isolation].run(attempt, handler, attributes)
        except msgspec.DecodeError as e:
            attempt.end(Fault(f"the payload cannot be read: {one_line(str(e))}", final=True))
        except Exception as e:
            # Reject for a payload that does not fit a program, or no thread can be started
            if not attempt.free:
                attempt.end(handler_raised(e))
        return attempt


def info_of(handler: ITaskHandler | Command) -> KindInfo:
    """What a worker announces about a kind that it serves."""
    return KindInfo(handler.kind, handler.isolation, handler.timeout, handler.max_attempts, handler.summary)
