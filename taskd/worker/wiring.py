"""The worker of both daemons that run tasks, made from the settings."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from taskd.config import Settings
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore
from taskd.watchdog.board import Board
from taskd.watchdog.starter import Watchdog
from taskd.worker.executors.thread_pool import Threads
from taskd.worker.forkserver.client import ForkServerClient
from taskd.worker.loading import load, modules_for_children
from taskd.worker.programs import read_programs
from taskd.worker.runner import Runner
from taskd.worker.simulate import Simulate
from taskd.worker.worker import Worker


def open_worker(
    reactor: Any, store: IStore, broker: IBroker, settings: Settings, new_name: Callable[[], str]
) -> Worker:
    """A worker with its handlers and its watchdog, not started. ``new_name`` makes names that no process has or had.
    Raises SettingsError when a handler cannot be loaded."""
    handlers = [Simulate(reactor), *load(settings.handlers)]
    programs = read_programs(str(settings.programs)) if settings.programs else []
    processes = settings.processes or _cores()
    forkserver = None
    if programs or any(handler.isolation == "process" for handler in handlers):
        forkserver = ForkServerClient(reactor, modules_for_children(settings.handlers, handlers), processes)
    threads = Threads(reactor, settings.threads)
    board = Board(settings.threads)
    dsn = settings.postgres.dsn() if settings.postgres is not None else None
    watchdog = Watchdog(reactor, board, dsn, stall=settings.stall, lease=settings.lease)
    runner = Runner(reactor, handlers, threads=threads, forkserver=forkserver, programs=programs, entries=board)
    slots = {"async": settings.slots, "thread": settings.threads, "process": processes, "program": processes}
    return Worker(
        reactor,
        store,
        broker,
        runner,
        settings.queues,
        slots,
        new_name,
        log_bytes=settings.log_bytes,
        board=board,
        watchdog=watchdog,
    )


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
