"""How the text of a setting becomes its value, and how that is described.

A format raises SettingsError with one line that names the setting and says what is expected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Generic, TypeVar

from taskd.model.errors import BadRequest, SettingsError
from taskd.model.users import Registration, normalize_username

T = TypeVar("T")
N = TypeVar("N", int, float)

MAX_INSTALLATION_CHARS = 32

MAX_QUEUE_BYTES = 150
"""Long enough for any name. Each task has it in its row and in an index."""

MAX_VHOST_BYTES = 255


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


def _bounded(what: str, convert: Callable[[str], N], low: N, high: N) -> Format[N]:
    words = f"{what} from {low} to {high}"

    def read(name: str, text: str) -> N:
        with suppress(ValueError):
            value = convert(text)
            if low <= value <= high:
                return value
        raise SettingsError(f"{name} must be {words}, not {text!r}")

    return Format(words, read)


def _digits(text: str) -> int:
    # int() alone would accept 5_000 and the digits of every script
    if not re.fullmatch("-?[0-9]{1,20}", text):
        raise ValueError
    return int(text)


def _queue(name: str, text: str) -> str:
    if not text.isprintable() or not 1 <= len(text.encode()) <= MAX_QUEUE_BYTES:
        raise SettingsError(f"{name}: a queue's name has 1 to {MAX_QUEUE_BYTES} bytes, not {text!r}")
    if "#" in text:
        raise SettingsError(f"{name}: a queue's name has no # in it, not {text!r}")
    return text


def _queues(name: str, text: str) -> tuple[str, ...]:
    return tuple(_queue(name, queue.strip()) for queue in text.split(",") if queue.strip())


def _usernames(name: str, text: str) -> tuple[str, ...]:
    found = []
    for username in filter(None, map(str.strip, text.split(","))):
        try:
            found.append(normalize_username(username)[1])
        except BadRequest as e:
            raise SettingsError(f"{name}: {username!r} is not a username: {e.message}") from None
    return tuple(dict.fromkeys(found))


def _installation(name: str, text: str) -> str:
    # a pattern of RabbitMQ's permissions can name it without quoting
    if not re.fullmatch(f"[A-Za-z0-9_-]{{1,{MAX_INSTALLATION_CHARS}}}", text):
        raise SettingsError(f"{name} must be {INSTALLATION.words}, not {text!r}")
    return text


def _vhost(name: str, text: str) -> str:
    if len(text.encode()) > MAX_VHOST_BYTES:
        raise SettingsError(f"{name}: a virtual host has {VHOST.words}, not {text!r}")
    return text


def _module(name: str, text: str) -> str:
    if not all(part.isidentifier() for part in text.split(".")):
        raise SettingsError(f"{name}: {text!r} is not the name of a Python module, such as lab.handlers")
    return text


def _modules(name: str, text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_module(name, module) for module in text.replace(",", " ").split()))


def _flag(name: str, text: str) -> bool:
    found = {"1": True, "yes": True, "true": True, "0": False, "no": False, "false": False}.get(text.lower())
    if found is None:
        raise SettingsError(f"{name} must be {FLAG.words}, not {text!r}")
    return found


def _sslmode(name: str, text: str) -> str:
    if text not in SSLMODES:
        raise SettingsError(f"{name} must be {SSLMODE.words}, not {text!r}")
    return text


def _existing(name: str, text: str) -> Path:
    # absolute, because a daemon may change its folder before it reads the file
    path = Path(text).absolute()
    if not path.exists():
        raise SettingsError(f"{name}: {text}: there is no such file")
    if not os.access(path, os.R_OK):
        raise SettingsError(f"{name}: {text}: this user may not read it")
    return path


def _networks(name: str, text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    found = []
    for network in filter(None, map(str.strip, text.split(","))):
        try:
            found.append(ip_network(network))
        except ValueError as e:
            raise SettingsError(f"{name}: {network!r} is not a network, such as 10.0.0.0/8 or 192.0.2.7: {e}") from None
    return tuple(dict.fromkeys(found))


SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
"""Those of libpq, in rising order."""


def _registration(name: str, text: str) -> Registration:
    try:
        return Registration(text.lower())
    except ValueError:
        raise SettingsError(f"{name} must be {REGISTRATION.words}, not {text!r}") from None


TEXT = Format("", lambda name, text: text)
PATH = Format("", lambda name, text: Path(text))
ENDPOINTS = Format("endpoints separated by spaces", lambda name, text: tuple(text.split()))
INSTALLATION = Format(f"1 to {MAX_INSTALLATION_CHARS} letters, digits, - or _", _installation)
VHOST = Format(f"a name of at most {MAX_VHOST_BYTES} bytes", _vhost)
REGISTRATION = Format("open, invitation or closed", _registration)
FLAG = Format("1 or 0", _flag)
SSLMODE = Format(f"{', '.join(SSLMODES[:-1])} or {SSLMODES[-1]}", _sslmode)
EXISTING = Format("", _existing)
QUEUE = Format(f"a name of 1 to {MAX_QUEUE_BYTES} bytes without #", _queue)
QUEUES = Format("names of queues separated by commas", _queues)
USERNAMES = Format("usernames separated by commas", _usernames)
NETWORKS = Format("networks separated by commas", _networks)
MODULE = Format("the name of a Python module", _module)
MODULES = Format("names of Python modules separated by commas", _modules)
