"""What both daemons that run tasks are made of: the options that say what, and the worker made from them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from twisted.python import usage

from taskd.config import Settings, check_module, whole_number
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore
from taskd.worker.executors.thread_pool import Threads
from taskd.worker.forkserver.client import ForkServerClient
from taskd.worker.loading import load, modules_for_children
from taskd.worker.programs import read_programs
from taskd.worker.runner import Runner
from taskd.worker.simulate import Simulate
from taskd.worker.worker import Worker


@dataclass(frozen=True)
class Work:
    """What a worker runs, and how many at a time of each way of running: see taskd.config.Settings."""

    slots: int
    threads: int
    processes: int
    handlers: Sequence[str]
    programs: str | None

    def slots_by_isolation(self) -> dict[str, int]:
        """For each of taskd.ports.handler.ISOLATIONS."""
        return {"async": self.slots, "thread": self.threads, "process": self.processes, "program": self.processes}


class WorkOptions(usage.Options):
    """What both daemons that run tasks take: the embedded server and the worker."""

    optParameters: ClassVar[list[list[Any]]] = [
        ["threads", None, None, "How many tasks run at a time in threads (default TASKD_THREADS, 10)."],
        ["processes", None, None, "How many run at a time in child processes (default TASKD_PROCESSES, the cores)."],
        ["programs", None, None, "A TOML file of programs that may be run, as tasks of kind command:NAME."],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["handlers"] = []

    def opt_handlers(self, module: str) -> None:
        """A Python module with handlers to serve, such as lab.handlers; repeatable (default TASKD_HANDLERS)."""
        self["handlers"].append(module)


def read_work(options: WorkOptions, settings: Settings, default_slots: int) -> Work:
    """What the options and settings say. Raises SettingsError."""
    return Work(
        slots=whole_number(options["slots"], "--slots", 1, 100_000) or settings.slots or default_slots,
        threads=whole_number(options["threads"], "--threads", 1, 1000) or settings.threads,
        processes=whole_number(options["processes"], "--processes", 1, 1000) or settings.processes or _cores(),
        handlers=[check_module(name, "--handlers") for name in options["handlers"]] or settings.handlers,
        programs=options["programs"] or (str(settings.programs) if settings.programs else None),
    )


def open_worker(
    reactor: Any,
    store: IStore,
    broker: IBroker,
    settings: Settings,
    work: Work,
    queues: Sequence[str],
    name: str,
) -> Worker:
    """A worker with its handlers, not started. Raises SettingsError when one cannot be loaded."""
    handlers = [Simulate(reactor), *load(work.handlers)]
    programs = read_programs(work.programs) if work.programs else None
    children = programs is not None or any(handler.isolation == "process" for handler in handlers)
    runner = Runner(
        reactor,
        handlers,
        threads=Threads(reactor, work.threads),
        forkserver=ForkServerClient(reactor, modules_for_children(work.handlers, handlers), work.processes)
        if children
        else None,
        programs=programs,
    )
    slots = work.slots_by_isolation()
    return Worker(reactor, store, broker, runner, queues, slots, settings.lease, name, log_bytes=settings.log_bytes)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
