"""What a module of handlers imports. It imports neither the reactor nor the worker."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from zope.interface import classImplements, implementer

from taskd.model.backoff import Backoff
from taskd.model.errors import BadRequest, SettingsError
from taskd.model.invalid import invalid
from taskd.model.limits import DEFAULT_ATTEMPTS, MAX_ATTEMPTS, MAX_TIMEOUT_SECONDS
from taskd.model.task_checks import check_kind
from taskd.ports.handler import ITaskContext, ITaskHandler

MAX_SUMMARY_CHARS = 200

Timeout = Annotated[float, Meta(gt=0, le=MAX_TIMEOUT_SECONDS)]
"""Seconds that an attempt may take."""

MaxAttempts = Annotated[int, Meta(ge=1, le=MAX_ATTEMPTS)]

HIDDEN_IN_TRACEBACKS = True


class Retry(Exception):
    """A handler raises it to have the task tried again ``after`` so many seconds. None: after the backoff of its kind.
    The attempt counts; after the last one the task fails with ``why`` as its error."""

    def __init__(self, why: str = "to be tried again", *, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


class Reject(Exception):
    """A handler raises it to fail the task at once, even if attempts are left: another one would not help."""


@implementer(ITaskHandler)
@dataclass(eq=False, repr=False)
class Handler:
    """A kind of task and the function that runs it. Calling it calls the function, for example in a test."""

    function: Callable[[ITaskContext], Any]
    kind: str
    isolation: str
    timeout: float | None
    max_attempts: int
    backoff: Backoff

    def __post_init__(self) -> None:
        self.summary = summary_of(self.function)
        self.__doc__ = self.function.__doc__
        self.__name__ = getattr(self.function, "__name__", self.kind)

    def run(self, task: ITaskContext) -> Any:
        """Do the work."""
        return self.function(task)

    __call__ = run

    def __repr__(self) -> str:
        return f"<handler of {self.kind!r}: {self.isolation}, {self.__name__}>"


if "twisted.plugin" in sys.modules:
    # A decorated function in a module of twisted.plugins is a plugin. Twisted imports twisted.plugin before these
    # modules. A process that has not imported it, such as a child process, does not look for plugins.
    _declare: Callable[..., None] = classImplements
    _declare(Handler, sys.modules["twisted.plugin"].IPlugin)


def handler(
    kind: str,
    *,
    timeout: float | None = None,
    max_attempts: int = DEFAULT_ATTEMPTS,
    backoff: Backoff | None = None,
    isolation: str | None = None,
) -> Callable[[Callable[[Any], Any]], Handler]:
    """Make a function of one argument, the :class:`~taskd.ports.handler.ITaskContext`, the handler of a kind of task.

    An ``async def`` runs on the worker's reactor and must not block; a ``def`` runs in a thread or, with
    ``isolation="process"``, in a child process, which can be killed and can use another core. ``timeout`` is in
    seconds. Raises SettingsError for invalid arguments.
    """

    def decorate(function: Callable[[Any], Any]) -> Handler:
        if not callable(function):
            raise SettingsError(f"handler {kind!r}: put @handler(...) above a function, not {function!r}")
        name = f"handler {kind!r} ({getattr(function, '__qualname__', function)})"
        awaits = inspect.iscoroutinefunction(function)
        found = isolation or ("async" if awaits else "thread")
        made = Handler(function, kind, found, timeout, max_attempts, backoff or Backoff())
        check_handler(made, name)
        if awaits != (found == "async"):
            fits = "'thread' or 'process' takes a plain def" if awaits else "'async' needs an async def"
            raise SettingsError(f"{name}: isolation {fits}")
        return made

    return decorate


class _Backoff(Backoff, frozen=True):
    """msgspec does not look into an object of the right class, so the check needs another class."""


class _Attributes(msgspec.Struct):
    """What a handler must have, and in which ranges."""

    kind: str
    isolation: str
    timeout: Timeout | None
    max_attempts: MaxAttempts
    backoff: _Backoff
    summary: str
    run: Callable[..., Any]


def check_handler(found: Any, name: str) -> None:
    """Check the attributes of a handler, which may be of any class. Raises SettingsError, whose text begins with
    ``name``."""
    try:
        check_kind(msgspec.convert(found, _Attributes, from_attributes=True).kind)
    except BadRequest as e:
        raise SettingsError(f"{name}: {e.message}") from None
    except msgspec.ValidationError as e:
        raise SettingsError(f"{name}: {invalid(e).message}") from None
    if found.isolation not in ("async", "thread", "process"):
        raise SettingsError(f"{name}: isolation must be 'async', 'thread' or 'process', not {found.isolation!r}")


def collect(module: ModuleType) -> list[ITaskHandler]:
    """The handlers among the names of a module in their order, each once."""
    found: list[ITaskHandler] = []
    for value in vars(module).values():
        if not isinstance(value, type) and ITaskHandler.providedBy(value) and value not in found:
            found.append(value)
    return found


def by_kind(handlers: Iterable[ITaskHandler]) -> dict[str, ITaskHandler]:
    """Handlers by their kinds. Raises SettingsError if two serve the same kind."""
    found: dict[str, ITaskHandler] = {}
    for each in handlers:
        other = found.setdefault(each.kind, each)
        if other is not each:
            raise SettingsError(f"two handlers serve the kind {each.kind!r}: {other!r} and {each!r}")
    return found


def summary_of(function: Any) -> str:
    """The first line of a function's docstring."""
    lines = (inspect.getdoc(function) or "").strip().splitlines()
    return lines[0][:MAX_SUMMARY_CHARS] if lines and inspect.isroutine(function) else ""
