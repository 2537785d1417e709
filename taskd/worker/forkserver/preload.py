"""The start of the fork server: it imports the handler modules before it forks children, so that each child has them in
memory from the start."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Sequence

import msgspec

from taskd.model.errors import SettingsError
from taskd.ports.handler import ITaskHandler
from taskd.worker.forkserver import process_tree
from taskd.worker.forkserver.messages import ImportFailed, Setup, encode
from taskd.worker.forkserver.process_tree import report
from taskd.worker.forkserver.server import ForkServer
from taskd.worker.handler import by_kind, collect
from taskd.worker.importing import import_module


def run(reaper: int, orders: int, events: int, argument: str) -> None:
    """Run the fork server until the worker hangs up, or return if the modules cannot be imported. ``argument`` is the
    JSON text of Setup."""
    process_tree.become_subreaper()
    process_tree.die_with_parent(reaper, signal.SIGUSR1)
    setup = msgspec.json.decode(argument, type=Setup)
    sys.path[:] = setup.path
    try:
        handlers = load(setup.modules)
    except SettingsError as e:
        with contextlib.suppress(OSError):
            os.write(events, encode(ImportFailed(str(e))))
        return
    names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if names:
        report(f"the handler modules start threads when imported, which no child will have: {', '.join(names)}")
    # children share these objects in memory until somebody writes to them, which a garbage collection would do
    gc.collect()
    gc.freeze()
    ForkServer(orders, events, handlers, setup).run()


def load(modules: Sequence[str]) -> dict[str, ITaskHandler]:
    """The handlers of these modules that run in a child, by kind. Raises SettingsError with one line that names the
    module that cannot be imported, and why."""
    found = [handler for name in modules for handler in collect(import_module(name))]
    return {kind: handler for kind, handler in by_kind(found).items() if handler.isolation == "process"}
