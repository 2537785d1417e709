"""Finds the handlers that a worker serves: in the modules of its settings, and among the plugins of Twisted."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

from twisted.plugin import getPlugins

from taskd.model.errors import SettingsError
from taskd.model.tasks import PROGRAM_PREFIX
from taskd.model.text import one_line
from taskd.ports.handler import ITaskHandler
from taskd.worker.handler import by_kind, check_handler, collect
from taskd.worker.importing import import_module


def load(modules: Sequence[str], plugins: Iterable[ITaskHandler] | None = None) -> list[ITaskHandler]:
    """The handlers of these modules and of Twisted's plugins, each once. No two serve the same kind.

    The current folder stays first on ``sys.path``, as with ``python -m``, because handlers may import more modules when
    they run. Child processes get the same path. Raises SettingsError with one line that says what to correct.
    """
    if modules:
        _add_folder(os.getcwd())
    found: list[ITaskHandler] = []
    for name in dict.fromkeys(modules):
        handlers = collect(import_module(name))
        if not handlers:
            raise SettingsError(f'handlers {name!r}: it has no handler: put @handler("KIND") above a function')
        for each in handlers:
            _check(each, f"handlers {name!r}: {each!r}")
        found += handlers
    for each in getPlugins(ITaskHandler) if plugins is None else plugins:
        if each in found:
            continue
        _check(each, f"plugin {each!r}")
        if each.isolation == "process" and each not in collect(sys.modules[_module_of(each)]):
            raise SettingsError(f"plugin {each!r}: child processes do not find it: create it in the module of its code")
        found.append(each)
    return list(by_kind(found).values())


def modules_for_children(modules: Sequence[str], handlers: Iterable[ITaskHandler]) -> list[str]:
    """The modules that child processes import to find the handlers that they run: they do not load plugins."""
    others = [_module_of(each) for each in handlers if each.isolation == "process"]
    return list(dict.fromkeys([*modules, *others]))


def _module_of(handler: ITaskHandler) -> str:
    function = getattr(handler, "function", None)
    return str(function.__module__ if function is not None else type(handler).__module__)


def _add_folder(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _check(found: ITaskHandler, name: str) -> None:
    name = one_line(name)
    check_handler(found, name)
    if found.kind.startswith(PROGRAM_PREFIX):
        raise SettingsError(f"{name}: kinds that begin with {PROGRAM_PREFIX!r} belong to programs: choose another one")
