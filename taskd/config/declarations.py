"""Every variable and option, declared once: name, format, default and meaning.

Reading, ``--help``, ``.env.example`` and ``docs/settings.md`` all come from here. After a change, run
``python -m taskd.config.docs``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from taskd.model.errors import BadRequest, SettingsError
from taskd.model.quotas import MAX_QUOTA, MAX_QUOTA_MIB
from taskd.model.users import normalize_username

T = TypeVar("T")
N = TypeVar("N", int, float)

MAX_INSTALLATION_CHARS = 32

MAX_QUEUE_BYTES = 150
"""Long enough for any name. Each task has it in its row and in an index."""

MAX_VHOST_BYTES = 255

SERVER, WORKER = "taskserver", "taskworker"


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


TEXT = Format("", lambda name, text: text)
PATH = Format("", lambda name, text: Path(text))
ENDPOINTS = Format("endpoints separated by spaces", lambda name, text: tuple(text.split()))
INSTALLATION = Format(f"1 to {MAX_INSTALLATION_CHARS} letters, digits, - or _", _installation)
VHOST = Format(f"a name of at most {MAX_VHOST_BYTES} bytes", _vhost)
QUEUE = Format(f"a name of 1 to {MAX_QUEUE_BYTES} bytes without #", _queue)
QUEUES = Format("names of queues separated by commas", _queues)
USERNAMES = Format("usernames separated by commas", _usernames)
MODULE = Format("the name of a Python module", _module)
MODULES = Format("names of Python modules separated by commas", _modules)


@dataclass(frozen=True)
class Option:
    """An option of the command line; a repeatable one is read value by value."""

    name: str
    format: Format[Any]
    daemons: tuple[str, ...] = (SERVER, WORKER)
    short: str = ""
    repeatable: bool = False
    help: str = ""
    """Empty: the help of the variable that the option overrides."""
    default: str | None = None


@dataclass(frozen=True)
class Setting(Generic[T]):
    """A variable of the environment, and the option that overrides it."""

    name: str
    format: Format[T]
    default: str
    """As it is written in ``.env``; empty: none."""
    help: str
    option: Option | None = None
    secret: bool = False
    """A password: the spaces around it are part of it."""


POSTGRES_HOST = Setting(
    "POSTGRES_HOST",
    TEXT,
    "",
    "Host of PostgreSQL. Set it together with RABBITMQ_HOST to run distributed; set neither to run embedded.",
)
POSTGRES_PORT = Setting("POSTGRES_PORT", whole_number(1, 65535), "5432", "Port of PostgreSQL.")
POSTGRES_USER = Setting("POSTGRES_USER", TEXT, "taskd", "Role in PostgreSQL.")
POSTGRES_PASSWORD = Setting("POSTGRES_PASSWORD", TEXT, "", "Password of the role.", secret=True)
POSTGRES_DB = Setting("POSTGRES_DB", TEXT, "taskd", "Database. It must exist; taskd creates the tables.")

RABBITMQ_HOST = Setting("RABBITMQ_HOST", TEXT, "", "Host of RabbitMQ.")
RABBITMQ_PORT = Setting("RABBITMQ_PORT", whole_number(1, 65535), "5672", "Port of RabbitMQ.")
RABBITMQ_USER = Setting(
    "RABBITMQ_USER", TEXT, "guest", "User in RabbitMQ. RabbitMQ accepts guest from its own machine only."
)
RABBITMQ_PASSWORD = Setting("RABBITMQ_PASSWORD", TEXT, "guest", "Password of the user.", secret=True)
RABBITMQ_VHOST = Setting("RABBITMQ_VHOST", VHOST, "/", "Virtual host in RabbitMQ. It must exist.")
TASKD_INSTALLATION = Setting(
    "TASKD_INSTALLATION",
    optional(INSTALLATION),
    "",
    "Id of this installation: everything of taskd in RabbitMQ is named after it. The first daemon writes it into a new"
    " database; a daemon whose id is not that of its database does not start. Without it: the id that the database has"
    " or makes up.",
    Option("installation", INSTALLATION),
)
RABBITMQ_QUEUE = Setting("RABBITMQ_QUEUE", QUEUE, "tasks", "Queue of the tasks that name no queue.")
TASKD_QUEUES = Setting(
    "TASKD_QUEUES", QUEUES, "", "More queues. Servers accept tasks for them, and workers take tasks from them."
)
QUEUE_OPTION = Option(
    "queue",
    QUEUE,
    (WORKER,),
    "q",
    repeatable=True,
    help="A queue to take tasks from. Overrides RABBITMQ_QUEUE and TASKD_QUEUES.",
)

TASKD_LISTEN = Setting(
    "TASKD_LISTEN",
    ENDPOINTS,
    "tcp:5000:interface=127.0.0.1",
    "Twisted endpoints on which a server listens. tcp:5000 listens on every interface; for TLS, use for example"
    " ssl:5001:privateKey=key.pem:certKey=cert.pem.",
    Option("listen", TEXT, (SERVER,), "l", repeatable=True),
)
TASKD_DATA = Setting(
    "TASKD_DATA", PATH, "./taskd-data", "Folder of the embedded database.", Option("data", PATH, (SERVER,), "d")
)
TASKD_WINDOW = Setting(
    "TASKD_WINDOW",
    whole_number(1, 1_000_000),
    "2000",
    "Without effect: accepted for older configurations. Tasks wait in the database until a worker has room for them.",
)
TASKD_LEASE = Setting(
    "TASKD_LEASE",
    decimal("seconds", 1.0, 3600.0),
    "30",
    "How long a worker may be silent before its tasks are given to other workers.",
)
TASKD_STALL = Setting(
    "TASKD_STALL",
    decimal("seconds", 5.0, 86_400.0),
    "300",
    "How long a handler may block a worker's reactor before the worker is ended. The log names the handler after a"
    " second.",
)
TASKD_HEALTH = Setting(
    "TASKD_HEALTH",
    optional(PATH),
    "",
    "UNIX socket on which a taskworker answers health checks (deploy/healthcheck.py). Without it there is none.",
    Option("health", optional(PATH), (WORKER,)),
)
TASKD_KEEP_DAYS = Setting(
    "TASKD_KEEP_DAYS",
    decimal("days", 0.0, 36_500.0),
    "0",
    "Age at which finished tasks are deleted with their results, logs and attempts. 0: never.",
)
TASKD_BCRYPT_ROUNDS = Setting(
    "TASKD_BCRYPT_ROUNDS", whole_number(4, 18), "12", "Cost of a password hash: each step doubles the time."
)
TASKD_SESSION_DAYS = Setting(
    "TASKD_SESSION_DAYS", whole_number(1, 3650), "30", "Days after a login until the user must log in again."
)
TASKD_ADMINS = Setting(
    "TASKD_ADMINS",
    USERNAMES,
    "",
    "Users who are admins: they set weights, and see how many tasks all users have. Register them before their names"
    " stand here: servers refuse to register these names.",
)

TASKD_QUOTA_OPEN = Setting(
    "TASKD_QUOTA_OPEN",
    whole_number(0, MAX_QUOTA),
    "100000",
    "How many tasks a user may have that have not ended. 0: no limit. An admin can set another limit for a user, as for"
    " the next two.",
)
TASKD_QUOTA_DAILY = Setting(
    "TASKD_QUOTA_DAILY",
    whole_number(0, MAX_QUOTA),
    "1000000",
    "How many tasks a user may create within 24 hours. 0: no limit.",
)
TASKD_QUOTA_MIB = Setting(
    "TASKD_QUOTA_MIB",
    whole_number(0, MAX_QUOTA_MIB),
    "10240",
    "How many MiB the payloads, results and logs of a user may take up. 0: no limit.",
)

TASKD_SLOTS = Setting(
    "TASKD_SLOTS",
    whole_number(0, 100_000),
    "100",
    "Tasks that a worker runs at the same time on its reactor (handlers with async def).",
    Option("slots", whole_number(1, 100_000), short="s"),
)
TASKD_THREADS = Setting(
    "TASKD_THREADS",
    whole_number(1, 1000),
    "10",
    "Tasks that a worker runs at the same time in threads.",
    Option("threads", whole_number(1, 1000)),
)
TASKD_PROCESSES = Setting(
    "TASKD_PROCESSES",
    optional(whole_number(0, 1000)),
    "",
    "Tasks that a worker runs at the same time in child processes, and as many programs. Without it: as many as the"
    " machine has cores.",
    Option("processes", whole_number(1, 1000)),
)
TASKD_HANDLERS = Setting(
    "TASKD_HANDLERS",
    MODULES,
    "",
    "Where workers find handlers: Python modules such as lab.handlers.",
    Option("handlers", MODULE, repeatable=True),
)
TASKD_PROGRAMS = Setting(
    "TASKD_PROGRAMS",
    optional(PATH),
    "",
    "TOML file of the programs that workers may run. Without it they run none.",
    Option("programs", optional(PATH)),
)
TASKD_LOG_KIB = Setting(
    "TASKD_LOG_KIB",
    whole_number(1, 1_048_576),
    "1024",
    "Size to which the log of a task is cut, in KiB. The oldest lines are deleted first.",
)
GRACE = Option(
    "grace",
    whole_number(0, 86_400),
    short="g",
    help="Seconds that running tasks get to end when the daemon stops.",
    default="30",
)
ENV_FILE = Option("env-file", TEXT, short="e", help="Read the variables from this file instead of ./.env.")

TASKD_PUBLISH = Setting(
    "TASKD_PUBLISH",
    TEXT,
    "127.0.0.1:5000",
    "Address and port of the balancer outside the containers. Only docker-compose.yml reads it.",
)

GROUPS: dict[str, tuple[Setting[Any], ...]] = {
    "PostgreSQL": (POSTGRES_HOST, POSTGRES_PORT, POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB),
    "RabbitMQ": (
        RABBITMQ_HOST,
        RABBITMQ_PORT,
        RABBITMQ_USER,
        RABBITMQ_PASSWORD,
        RABBITMQ_VHOST,
        TASKD_INSTALLATION,
        RABBITMQ_QUEUE,
        TASKD_QUEUES,
    ),
    "Server": (
        TASKD_LISTEN,
        TASKD_DATA,
        TASKD_WINDOW,
        TASKD_LEASE,
        TASKD_KEEP_DAYS,
        TASKD_BCRYPT_ROUNDS,
        TASKD_SESSION_DAYS,
        TASKD_ADMINS,
        TASKD_QUOTA_OPEN,
        TASKD_QUOTA_DAILY,
        TASKD_QUOTA_MIB,
    ),
    "Worker, also the one in an embedded server": (
        TASKD_SLOTS,
        TASKD_THREADS,
        TASKD_PROCESSES,
        TASKD_HANDLERS,
        TASKD_PROGRAMS,
        TASKD_LOG_KIB,
        TASKD_STALL,
        TASKD_HEALTH,
    ),
    "Docker Compose": (TASKD_PUBLISH,),
}
"""All variables, in the order of the documentation."""


def options(daemon: str) -> dict[Option, str]:
    """The options of a daemon, each with its help text."""
    found = {}
    for each in (setting for group in GROUPS.values() for setting in group):
        if each.option is not None:
            default = f" (default {each.default})" if each.default else ""
            found[each.option] = f"{each.help} Overrides {each.name}{default}."
    found |= {option: option.help for option in (QUEUE_OPTION, GRACE, ENV_FILE)}
    return {
        option: f"{text} Repeatable." if option.repeatable else text
        for option, text in found.items()
        if daemon in option.daemons
    }
