"""The log of a daemon as people read it: no text in it can control a terminal or pass for a line of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogBeginner,
    LogEvent,
    eventAsText,
    globalLogBeginner,
)
from zope.interface import implementer

from taskd.model.visible import visible, visible_lines

_FORMATTED = frozenset({"log_failure", "log_flattened", "log_legacy", "message", "format", "failure", "why"})
"""What observers make the text of, of new events and of those of ``twisted.python.log``."""


def escape_log(beginner: LogBeginner = globalLogBeginner) -> None:
    """From now on everything that is logged is escaped where it is written: the fields and the text of exceptions,
    tracebacks, what handlers print, and what Twisted and other libraries log.

    To be called before the logging begins, as twistd does after it has made the service. It works for each of twistd's
    targets: a file, standard output, syslog, and an observer of ``--logger``.
    """
    begin = beginner.beginLoggingTo

    def begin_escaped(observers: Iterable[ILogObserver], *args: Any, **kwargs: Any) -> None:
        begin([_escaping(observer) for observer in observers], *args, **kwargs)

    beginner.beginLoggingTo = begin_escaped  # type: ignore[method-assign]


def _escaping(observer: ILogObserver) -> ILogObserver:
    if isinstance(observer, FileLogObserver):
        # the same object, so that twistd can remove it when it stops
        observer.formatEvent = _escaped_format(observer.formatEvent)
        return observer
    return EscapingObserver(observer)


def _escaped_format(format: Callable[[LogEvent], str | None]) -> Callable[[LogEvent], str | None]:
    """The lines of this format, escaped. Twisted's format begins each line of an event but the first with a tab, so
    none of them looks like the begin of another event."""

    def escaped(event: LogEvent) -> str | None:
        text = format(event)
        return visible_lines(text) if text else text

    return escaped


@implementer(ILogObserver)
class EscapingObserver:
    """Passes each event on with its text made already: escaped, with its traceback, and each further line begins with a
    tab."""

    def __init__(self, observer: ILogObserver) -> None:
        self._observer = observer

    def __call__(self, event: LogEvent) -> None:
        """Observe an event."""
        text = eventAsText(event, includeTimestamp=False, includeSystem=False)
        made = {key: value for key, value in event.items() if key not in _FORMATTED}
        made["log_format"], made["log_text"] = "{log_text}", visible_lines(text.replace("\n", "\n\t"))
        for key in ("log_system", "system"):
            if key in made:
                made[key] = visible(str(made[key]))
        self._observer(made)
