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

from taskd.model.errors import SettingsError
from taskd.ports.handler import ITaskHandler
from taskd.worker.forkserver import process_tree
from taskd.worker.forkserver.messages import ImportFailed, Setup, decode_order, encode
from taskd.worker.forkserver.process_tree import report
from taskd.worker.forkserver.server import ForkServer
from taskd.worker.handler import by_kind, collect
from taskd.worker.importing import import_module


def run(reaper: int, orders: int, events: int, modules: Sequence[str]) -> None:
    """Run the fork server until the worker hangs up, or return if the modules cannot be imported."""
    process_tree.become_subreaper()
    process_tree.die_with_parent(reaper, signal.SIGUSR1)
    setup = _read_setup(orders)
    if setup is None:
        return
    sys.path[:] = setup.path
    try:
        handlers = load(modules)
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


def _read_setup(orders: int) -> Setup | None:
    """Read the first line byte by byte: ForkServer reads the next one."""
    line = bytearray()
    while not line.endswith(b"\n"):
        data = os.read(orders, 1)
        if not data:
            return None
        line += data
    setup = decode_order(bytes(line))
    return setup if isinstance(setup, Setup) else None


def load(modules: Sequence[str]) -> dict[str, ITaskHandler]:
    """The handlers of these modules that run in a child, by kind. Raises SettingsError with one line that names the
    module that cannot be imported, and why."""
    found = [handler for name in modules for handler in collect(import_module(name))]
    return {kind: handler for kind, handler in by_kind(found).items() if handler.isolation == "process"}
