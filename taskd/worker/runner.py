"""Chooses how a task is run, and begins it. It knows neither store nor broker."""

from __future__ import annotations

import functools
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from taskd.model.tasks import Task
from taskd.ports.handler import ITaskHandler
from taskd.ports.workers import KindInfo
from taskd.worker.attempt import Attempt, _Hearing, _Rules
from taskd.worker.context import Relay, TaskContext
from taskd.worker.executors.executor import IExecution, name_of
from taskd.worker.executors.process import ProcessExecutor
from taskd.worker.executors.reactor import ReactorExecutor
from taskd.worker.executors.thread import ThreadExecutor
from taskd.worker.executors.thread_pool import IThreads
from taskd.worker.forkserver.client import ForkServerClient, Job, OutputListener
from taskd.worker.handler import Reject
from taskd.worker.handler_results import Fault, fault, one_line
from taskd.worker.programs import Command, Programs

_payload = msgspec.json.Decoder(dict[str, Any]).decode


class Runner:
    """Runs tasks by the handlers of their kinds and by programs.

    Of two handlers of a kind the later one counts. Handlers that block need ``threads``, those with isolation
    ``process`` need the ``forkserver``, programs need both. ``chance`` gives random numbers from 0 to 1.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        handlers: Iterable[ITaskHandler],
        *,
        threads: IThreads | None = None,
        forkserver: ForkServerClient | None = None,
        programs: Programs | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._handlers = {handler.kind: handler for handler in handlers}
        self._commands: Mapping[str, Command] = programs.commands if programs is not None else {}
        self._threads = threads
        self._forkserver = forkserver
        self._chance = chance
        self._running: set[Attempt] = set()
        self.kinds: Mapping[str, KindInfo] = {
            **{handler.kind: info_of(handler) for handler in self._handlers.values()},
            **{kind: info_of(command) for kind, command in self._commands.items()},
        }
        for info in self.kinds.values():
            if threads is None and info.isolation in ("thread", "program"):
                raise ValueError(f"the kind {info.kind!r} needs threads")
            if forkserver is None and info.isolation in ("process", "program"):
                raise ValueError(f"the kind {info.kind!r} needs a fork server")

    async def start(self) -> None:
        """Make ready to run. Raises SettingsError when child processes cannot import the handlers."""
        if self._threads is not None:
            self._threads.start()
        if self._forkserver is not None:
            await self._forkserver.start()

    async def stop(self) -> None:
        """Stop what runs. A thread that hangs, or a child, does not hold this up for long."""
        for attempt in list(self._running):
            attempt.stop()
        if self._forkserver is not None:
            await self._forkserver.stop()
        if self._threads is not None:
            await self._threads.stop()

    def run(self, task: Task, user: str, said: OutputListener) -> Attempt:
        """Begin an attempt of a task of this kind, which is ``user``'s. ``said`` hears what it says until it ends."""
        handler, command = self._handlers.get(task.kind), self._commands.get(task.kind)
        rules = _Rules(task, handler if command is None else command, self._chance)
        hearing = _Hearing(said)
        attempt = Attempt(task, self._clock, rules, hearing, self._running.discard)
        self._running.add(attempt)
        try:
            payload = _payload(task.payload) if task.payload != "{}" else {}
            if command is not None:
                attempt.begin(self._program(command, payload, hearing), None)
            elif handler is not None:
                attempt.begin(*self._way(handler, task, user, payload, rules.max_attempts, hearing))
            else:
                attempt.end(Fault(f"this worker does not serve the kind {task.kind!r}"))
        except msgspec.DecodeError as e:
            attempt.end(Fault(f"the payload cannot be read: {one_line(str(e))}", final=True))
        except Reject as e:
            attempt.end(fault(e))
        return attempt

    def _way(
        self,
        handler: ITaskHandler,
        task: Task,
        user: str,
        payload: Mapping[str, Any],
        max_attempts: int,
        hearing: _Hearing,
    ) -> tuple[IExecution, TaskContext | None]:
        if handler.isolation == "process":
            assert self._forkserver is not None
            said = {"id": task.id, "attempt": task.attempt, "max_attempts": max_attempts, "user": user}
            said |= {"task": task.task, "kind": task.kind, "queue": task.queue, "payload": payload}
            start = functools.partial(self._forkserver.call, task.kind, said, hearing)
            return ProcessExecutor(name_of(handler), start), None
        if handler.isolation == "thread":
            assert self._threads is not None
            relay = Relay(hearing, self._threads.wake)
            context = TaskContext(task, user, payload, max_attempts, relay)
            return ThreadExecutor(handler, context, relay, self._threads), context
        context = TaskContext(task, user, payload, max_attempts, hearing)
        return ReactorExecutor(self._clock, handler, context), context

    def _program(self, command: Command, payload: Mapping[str, Any], hearing: _Hearing) -> IExecution:
        """Raises Reject for a payload that does not fit."""
        assert self._forkserver is not None and self._threads is not None
        forkserver, threads = self._forkserver, self._threads
        arguments = command.arguments(payload)
        if command.cwd is not None:
            program = command.program(arguments, command.cwd)
            return ProcessExecutor(command.kind, lambda: forkserver.execute(program, hearing))
        folder: list[str] = []

        def start() -> Job:
            folder.append(tempfile.mkdtemp(prefix="taskd-"))
            return forkserver.execute(command.program(arguments, folder[0]), hearing)

        def over() -> None:
            # there may be a million files in it
            for path in folder:
                threads.call(functools.partial(shutil.rmtree, path, ignore_errors=True))

        return ProcessExecutor(command.kind, start, over)


def info_of(handler: ITaskHandler | Command) -> KindInfo:
    """What a worker says of a kind that it serves."""
    return KindInfo(handler.kind, handler.isolation, handler.timeout, handler.max_attempts, handler.summary)
