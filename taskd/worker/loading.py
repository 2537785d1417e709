"""Finds the handlers that a worker serves: in the modules that it is told, and among the plugins of Twisted."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from types import ModuleType

from twisted.plugin import getPlugins

from taskd.model.errors import SettingsError, quote
from taskd.model.tasks import PROGRAM_PREFIX
from taskd.model.text import one_line
from taskd.ports.handler import ITaskHandler
from taskd.worker.handler import by_kind, check_handler, collect
from taskd.worker.handler_results import error_line

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep


def load(modules: Sequence[str], plugins: Iterable[ITaskHandler] | None = None) -> list[ITaskHandler]:
    """The handlers of these modules, and those that Twisted plugins provide, each once and each of a kind of its own.

    The current folder comes first on ``sys.path`` from here on, as with ``python -m``, because handlers may import more
    when they run; child processes get the same path. Raises SettingsError, one line that says what to mend.
    """
    if modules:
        _add_folder(os.getcwd())
    found: list[ITaskHandler] = []
    for name in dict.fromkeys(modules):
        handlers = collect(import_module(name))
        if not handlers:
            raise SettingsError(f'handlers {name!r}: there is none in it: put @handler("KIND") above a function')
        for each in handlers:
            _check(each, f"handlers {name!r}: {each!r}")
        found += handlers
    for each in getPlugins(ITaskHandler) if plugins is None else plugins:
        if any(each is other for other in found):
            continue
        _check(each, f"plugin {each!r}")
        if each.isolation == "process" and not any(each is other for other in collect(sys.modules[_module_of(each)])):
            raise SettingsError(f"plugin {each!r}: child processes do not find it: make it in the module of its code")
        found.append(each)
    return list(by_kind(found).values())


def modules_for_children(modules: Sequence[str], handlers: Iterable[ITaskHandler]) -> list[str]:
    """Names of the modules in which child processes find those of the handlers that they run: they know no plugins."""
    others = [_module_of(each) for each in handlers if each.isolation == "process"]
    return list(dict.fromkeys([*modules, *others]))


def _module_of(handler: ITaskHandler) -> str:
    function = getattr(handler, "function", None)
    return str(function.__module__ if function is not None else type(handler).__module__)


def import_module(name: str) -> ModuleType:
    """A module by its name. Raises SettingsError with one line that says why it cannot be imported, and where."""
    where = f"handlers {name!r}"
    if not all(part.isidentifier() for part in name.split(".")):
        raise SettingsError(f"handlers {quote(name)}: name a module as import does, such as lab.handlers, not a file")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        # or else one that it imports itself
        if e.name is not None and f"{name}.".startswith(f"{e.name}."):
            missing = f"there is no module {e.name!r} in {os.getcwd()} or where Python looks"
            raise SettingsError(f"{where}: {missing}") from None
        raise SettingsError(f"{where}: {_why(e)}") from None
    except SettingsError as e:
        raise SettingsError(f"{where}: {e}{_place(e)}") from None
    except KeyboardInterrupt:
        raise
    # a module that calls sys.exit is no reason to vanish without a word
    except BaseException as e:
        raise SettingsError(f"{where}: {_why(e)}") from None


def _add_folder(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _check(found: ITaskHandler, name: str) -> None:
    name = one_line(name)
    check_handler(found, name)
    if found.kind.startswith(PROGRAM_PREFIX):
        raise SettingsError(
            f"{name}: kinds that begin with {PROGRAM_PREFIX!r} are those of programs: choose another one"
        )


def _why(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return one_line(f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})")
    return error_line(error) + _place(error)


def _place(error: BaseException) -> str:
    """Where it was raised, in somebody else's code."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith(("<frozen", _OURS)) and f.filename != importlib.__file__]
    return f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
