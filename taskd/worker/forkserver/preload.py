"""The start of the fork server: it imports the handlers once, so that each child is forked with all of them in
memory."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence

from taskd.model.errors import SettingsError
from taskd.ports.handler import ITaskHandler
from taskd.worker.forkserver import process_tree
from taskd.worker.forkserver.messages import Broken, Setup, decode_cancel_order, encode
from taskd.worker.forkserver.server import ForkServer, report
from taskd.worker.handler import by_kind, collect
from taskd.worker.handler_results import one_line


def run(reaper: int, orders: int, news: int, modules: Sequence[str]) -> None:
    """The fork server from its fork to its end."""
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
            os.write(news, encode(Broken(str(e))))
        return
    names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if names:
        report(f"the handler modules start threads when imported, which no child will have: {', '.join(names)}")
    # forks share these objects for as long as nobody writes to them, as a collection would
    gc.collect()
    gc.freeze()
    ForkServer(orders, news, handlers, setup).run()


def _read_setup(orders: int) -> Setup | None:
    """The first line, read byte by byte: the next one is the loop's."""
    line = bytearray()
    while not line.endswith(b"\n"):
        data = os.read(orders, 1)
        if not data:
            return None
        line += data
    setup = decode_cancel_order(bytes(line))
    return setup if isinstance(setup, Setup) else None


def load(modules: Sequence[str]) -> dict[str, ITaskHandler]:
    """The handlers of these modules that run in a child, by kind. Raises SettingsError, one line that says which module
    cannot be imported and why."""
    found: list[ITaskHandler] = []
    for name in modules:
        try:
            module = importlib.import_module(name)
        # a module that calls sys.exit is no reason to vanish without a word
        except BaseException as e:
            raise SettingsError(f"cannot import the handlers of {name!r}: {_why(e)}") from None
        found += collect(module)
    return {kind: handler for kind, handler in by_kind(found).items() if handler.isolation == "process"}


def _why(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    if len(frames) > 2 and not isinstance(error, SyntaxError):
        text += f" ({frames[-1].filename}, line {frames[-1].lineno})"
    return one_line(text)
