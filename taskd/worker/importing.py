"""Imports a handler module, in the worker and in the fork server: it uses no Twisted."""

from __future__ import annotations

import importlib
import os
import traceback
from types import ModuleType

from taskd.model.errors import SettingsError, quote
from taskd.model.text import one_line
from taskd.worker.handler_results import error_line

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep


def import_module(name: str) -> ModuleType:
    """Import a module by its name. Raises SettingsError with one line that says why it cannot be imported, and where
    the error is."""
    where = f"handlers {name!r}"
    if not all(part.isidentifier() for part in name.split(".")):
        raise SettingsError(f"handlers {quote(name)}: name a module as import does, such as lab.handlers, not a file")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        # this module or its package is missing, not a module that it imports
        if e.name is not None and f"{name}.".startswith(f"{e.name}."):
            missing = f"there is no module {e.name!r} in {os.getcwd()} or where Python looks"
            raise SettingsError(f"{where}: {missing}") from None
        raise SettingsError(f"{where}: {_why(e)}") from None
    except SettingsError as e:
        raise SettingsError(f"{where}: {e}{_place(e)}") from None
    except KeyboardInterrupt:
        raise
    # SystemExit too: a module that calls sys.exit must not end this process silently
    except BaseException as e:
        raise SettingsError(f"{where}: {_why(e)}") from None


def _why(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return one_line(f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})")
    return error_line(error) + _place(error)


def _place(error: BaseException) -> str:
    """The innermost line outside of taskd.worker and the import system."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith(("<frozen", _OURS)) and f.filename != importlib.__file__]
    return f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
