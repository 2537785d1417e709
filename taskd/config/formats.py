"""Formats of settings: from the text of a variable or option to a checked value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from taskd.model.errors import SettingsError

T = TypeVar("T")

MAX_QUEUE_BYTES = 180


@dataclass(frozen=True)
class Format(Generic[T]):
    """``read(name, text)`` gives the value. It raises SettingsError with one line that names the setting.

    ``words`` describe the format for the documentation; they are empty for plain text.
    """

    words: str
    read: Callable[[str, str], T]


def whole_number(low: int, high: int) -> Format[int]:
    """A whole number within bounds, both included."""
    return _bounded("a whole number", _digits, low, high)


def decimal(unit: str, low: float, high: float) -> Format[float]:
    """A number of ``unit`` within bounds, both included."""
    return _bounded(f"a number of {unit}", float, low, high)


def optional(format: Format[T]) -> Format[T | None]:
    """The same; None when there is no text."""
    return Format(format.words, lambda name, text: format.read(name, text) if text else None)


def _bounded(what: str, convert: Callable[[str], T], low: T, high: T) -> Format[T]:
    words = f"{what} from {low} to {high}"

    def read(name: str, text: str) -> T:
        try:
            value = convert(text)
            if low <= value <= high:  # type: ignore[operator]
                return value
        except ValueError:
            pass
        raise SettingsError(f"{name} must be {words}, not {text!r}")

    return Format(words, read)


def _digits(text: str) -> int:
    # int() alone would accept 5_000 and the digits of every script
    if not text.isascii() or not text.removeprefix("-").isdigit() or len(text) > 20:
        raise ValueError
    return int(text)


def _queue(name: str, text: str) -> str:
    # RabbitMQ must accept the name, also with "#KIND" behind it (taskd.model.tasks.Route)
    if not text.isprintable() or not 1 <= len(text.encode()) <= MAX_QUEUE_BYTES or text.startswith("amq."):
        rule = f"a queue's name has 1 to {MAX_QUEUE_BYTES} bytes and does not begin with amq."
        raise SettingsError(f"{name}: {rule}, not {text!r}")
    if "#" in text:
        raise SettingsError(f"{name}: a queue's name has no # in it, not {text!r}")
    return text


def _queues(name: str, text: str) -> tuple[str, ...]:
    return tuple(_queue(name, queue.strip()) for queue in text.split(",") if queue.strip())


def _module(name: str, text: str) -> str:
    if not all(part.isidentifier() for part in text.split(".")):
        raise SettingsError(f"{name}: {text!r} is not the name of a Python module, such as lab.handlers")
    return text


def _modules(name: str, text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_module(name, module) for module in text.replace(",", " ").split()))


TEXT = Format("", lambda name, text: text)
PATH = Format("", lambda name, text: Path(text))
ENDPOINTS = Format("endpoints separated by spaces", lambda name, text: tuple(text.split()))
QUEUE = Format(f"a name of 1 to {MAX_QUEUE_BYTES} bytes without # and without the prefix amq. of RabbitMQ", _queue)
QUEUES = Format("names of queues separated by commas", _queues)
MODULE = Format("the name of a Python module", _module)
MODULES = Format("names of Python modules separated by commas", _modules)
