"""The command line of both daemons, made from the declarations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from twisted.python import usage

from taskd.config.declarations import options


class DaemonOptions(usage.Options):
    """Options of one daemon; the values are texts that ``taskd.config.reading`` checks.

    A repeatable option is a list, and absent when it was not given.
    """

    synopsis = "[options]"
    optParameters: ClassVar[list[list[Any]]]

    def __init_subclass__(cls, daemon: str) -> None:
        cls.optParameters = []
        for option, text in options(daemon).items():
            if option.repeatable:
                # Twisted takes two names of one function as synonyms
                collect = _collector(option.name, text)
                for name in filter(None, (option.name, option.short)):
                    setattr(cls, f"opt_{name}", collect)
            else:
                cls.optParameters.append([option.name, option.short or None, option.default, text])


def _collector(name: str, text: str) -> Callable[[Any, str], None]:
    def collect(self: Any, value: str) -> None:
        self.setdefault(name, []).append(value)

    collect.__doc__ = text
    return collect
